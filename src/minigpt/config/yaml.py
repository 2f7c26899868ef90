"""YAML as people mean it: `1e-3` is a number, only true and false are booleans, a key given twice is an error.

JSON has a reader of its own: tabs between values and pairs of surrogate escapes are legal in it, but not in YAML.
"""

import json
import re
from typing import Any

import yaml

from minigpt.config.errors import RequestError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalar rules of YAML 1.2 (core schema, section 10.3.2)."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = key_node.value if isinstance(key_node, yaml.ScalarNode) else str(loader.construct_object(key_node))
        if key in found:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {key!r} stands there twice", problem_mark=key_node.start_mark
            )
        found[key] = loader.construct_object(value_node, deep=True)
    return found


_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:null|Null|NULL|~|)$"), ["n", "N", "~", ""])
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_NUMBER = list("-+.0123456789")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), _NUMBER)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"), _NUMBER
)  # fmt: skip
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
# PyYAML reads 010 as octal and 1:30 as base 60; YAML 1.2 does not.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value.replace("_", "")))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. Raises RequestError that names `where` and the line."""
    try:
        return yaml.load(text, Loader=_Loader)  # a subclass of SafeLoader: builds plain values only
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None and "\n" in text.strip() else ""
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise RequestError(f"{where}{line} is not valid YAML: {problem}") from None


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. Raises RequestError that names `where` and the line."""

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for i, (key, _) in enumerate(pairs):
            if key in [earlier for earlier, _ in pairs[:i]]:
                raise RequestError(f"{where} is not valid: the key {key!r} stands there twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=mapping)
    except json.JSONDecodeError as error:
        raise RequestError(f"{where}, line {error.lineno} is not valid JSON: {error.msg}") from None


def dump_yaml(value: Any) -> str:
    """YAML text that `parse_yaml` reads back as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100)


def show(value: Any) -> str:
    """A value in a message: as one would write it, in 60 characters at most."""
    text = dump_yaml([value]).strip()[1:-1].strip() if not isinstance(value, (dict, list)) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Dumper(yaml.SafeDumper):
    """Writes floats with every digit, and quotes text that would read as something else."""


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers
_Dumper.add_representer(float, lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:float", repr(value)))
_Dumper.add_representer(  # line breaks are shown as \n, not as empty lines
    str,
    lambda dumper, value: dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if "\n" in value else None),
)
_Dumper.add_representer(
    list,
    lambda dumper, value: dumper.represent_sequence(
        "tag:yaml.org,2002:seq", value, flow_style=all(not isinstance(item, (list, dict)) for item in value)
    ),
)
