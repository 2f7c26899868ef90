"""JSON that gives back exactly what went in, or refuses it.

Finite floats are written by `repr`, which Python reads back to the same bits; NaN and the infinities, for which JSON
has no word, become `{"$float": "nan"}`. What JSON would quietly change (tuples, keys that are no strings) is an error.
"""

import json
import math
from typing import Any

_TAG = "$float"


def dumps(value: Any) -> bytes:
    """Encode None, bool, int, float, str, lists and string-keyed dicts of these; `TypeError` names where others are."""
    return (json.dumps(_encode(value, "state"), allow_nan=False, indent=1, ensure_ascii=False) + "\n").encode()


def loads(data: bytes) -> Any:
    """The inverse of `dumps`; `ValueError` if the bytes are not its output."""
    return json.loads(data, object_hook=_decode, parse_constant=_refuse)


def _encode(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {_TAG: str(float(value))}
    if type(value) is list:
        return [_encode(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if type(value) is dict:
        for key in value:
            if not isinstance(key, str) or key == _TAG:
                raise TypeError(f"{place} has the key {key!r}, which JSON cannot keep: use another string")
        return {key: _encode(item, f"{place}.{key}") for key, item in value.items()}
    raise TypeError(
        f"{place} is a {type(value).__name__}, which JSON does not give back as it was: use a list, dict or number"
    )


def _decode(item: dict[str, Any]) -> Any:
    return float(item[_TAG]) if item.keys() == {_TAG} else item


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")
