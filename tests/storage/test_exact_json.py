"""What goes in comes out to the bit, and what would not is refused."""

import json
import math
import random
import struct

import pytest

from minigpt.storage import exact_json


def bits(value: float) -> bytes:
    return struct.pack("<d", value)


def test_random_floats_round_trip_to_the_bit():
    generator = random.Random(0)
    values = [struct.unpack("<d", generator.randbytes(8))[0] for _ in range(5000)]
    values = [v for v in values if not math.isnan(v)]
    values += [0.0, -0.0, 5e-324, 1.7976931348623157e308, 0.1, 1 / 3, math.inf, -math.inf]
    back = exact_json.loads(exact_json.dumps(values))
    assert [bits(v) for v in back] == [bits(v) for v in values]


def test_everything_else_round_trips_with_its_type():
    value = {
        "none": None, "true": True, "one": 1, "float one": 1.0, "big": 2**200, "negative": -(2**64),
        "text": 'ünï "q" \u2028 \U0001f600', "list": [[], {}, [1, 2.5, None]], "deep": {"a": {"b": [{"c": 1e-300}]}},
    }  # fmt: skip
    back = exact_json.loads(exact_json.dumps(value))
    assert repr(back) == repr(value)
    assert math.isnan(exact_json.loads(exact_json.dumps({"loss": math.nan}))["loss"])


def test_the_bytes_are_plain_json():
    def refuse(word):
        raise AssertionError(word)

    json.loads(exact_json.dumps([math.nan, math.inf, 1.5]), parse_constant=refuse)
    with pytest.raises(ValueError):
        exact_json.loads(b"[NaN]")


@pytest.mark.parametrize("value", [(1, 2), {1: 2}, {"$float": "x"}, {"a": [b"x"]}, {1.5}, object()])
def test_what_json_would_change_is_refused_naming_the_place(value):
    with pytest.raises(TypeError, match=r"state\.outer"):
        exact_json.dumps({"outer": value})
