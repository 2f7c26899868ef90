"""From a preset or a file, and overrides, to a valid config; and back to the file that repeats the run.

Values come in layers: the defaults, a preset, a file, the overrides of the command line. A key that somebody set and
that can have no effect is an error; one that was only inherited from a lower layer is dropped with one line.
"""

import difflib
import re
import types
from collections.abc import Iterable, Mapping, Set
from importlib import resources
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import ValidationError

from minigpt.config.depth import DEEPEST, SHALLOWEST, depth_of, depth_preset
from minigpt.config.errors import RequestError
from minigpt.config.extension import anchored, is_extension_kind
from minigpt.config.optimizer import GroupConfig
from minigpt.config.tree import Config, fields, ineffective
from minigpt.config.yaml import dump_yaml, parse_json, parse_yaml, show

RESOLVED_FROM = "resolved_from"
"""First key of a resolved config that a preset was the beginning of: its name, which no longer gives any values."""
OWN_OPTIONS = ("objective.", "model.mlp.")
"""What begins the keys of options that a class of the user's own has (see `minigpt.config.extension`)."""
LENGTHS = ("training.max_steps", "training.max_tokens", "training.epochs")


def preset_names() -> list[str]:
    """Names of the configs shipped with the package, beside those of the depth dial."""
    return sorted(
        f.name.removesuffix(".yaml") for f in resources.files("minigpt.presets").iterdir() if f.name.endswith(".yaml")
    )


def is_preset(name: str) -> bool:
    """Whether a config of this name is shipped with the package, or follows from the depth that it names."""
    return name in preset_names() or depth_of(name) is not None


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any] = ()
) -> tuple[Config, list[str]]:
    """Read a config.

    source: a preset's name, a YAML or JSON file, or a mapping. overrides: `section.key=value` strings,
    or a tree of values.
    Returns the config and one line for each inherited value that an override made meaningless.
    Raises RequestError in one sentence that names the key, the bad value and what would do.
    """
    if isinstance(source, Mapping):
        preset: dict[str, Any] = {}
        own: dict[str, Any] = anchored(source, Path())
        name: str | None = None
    else:
        preset, own, name = _read(str(source))
    made_from = own.pop(RESOLVED_FROM, name if preset else None)
    if "preset" in own:
        made_from = base = own.pop("preset")
        if not is_preset(str(base)):
            raise RequestError(f"preset={base!r} is not a preset: {_presets_like(str(base))}")
        preset, _, _ = _read(base)
    command = dict(overrides) if isinstance(overrides, Mapping) else _parse_overrides(overrides)
    command = anchored(command, Path())  # of the file too, in `_read`
    notes: list[str] = []
    preset = _with_validation_of_its_own(preset, set(_flatten(own)) | set(_flatten(command)), notes)
    if (_flatten(own) | _flatten(command)).get("model.init_from") is not None:
        preset = _without_its_network(preset, notes)
    if command:
        below = _merge(_merge({}, preset), own)
        config = _settled(below, command, notes, strict=_meaningless(preset, own))
    else:
        config = _settled(_merge({}, preset), own, notes)
    if config.run.name is None and name is not None:
        config = config.model_copy(update={"run": config.run.model_copy(update={"name": name})})
    config._preset = str(made_from) if made_from else None
    return config, notes


def _with_validation_of_its_own(preset: dict[str, Any], above: Set[str], notes: list[str]) -> dict[str, Any]:
    """The preset, without its validation text if only its training text is replaced: they belong together."""
    value = _flatten(preset).get("data.val")
    if value is None or "data.train" not in above or "data.val" in above:
        return preset
    notes.append(f"data.val={show(value)} is dropped because data.train is another text than the preset's")
    return preset | {"data": {key: kept for key, kept in preset["data"].items() if key != "val"}}


def _without_its_network(preset: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The preset, of whose network only the dropout stays, for a run that begins with another model.

    Its micro-batch goes as well: how many rows fit, and divide the batch, depends on the network.
    """
    model = preset.get("model", {})
    kept = {key: value for key, value in model.items() if key == "dropout"}
    if len(kept) < len(model):
        notes.append("the preset's network is dropped because model.init_from brings its own")
    training = {key: value for key, value in preset.get("training", {}).items() if key != "micro_batch"}
    return preset | {"model": kept, "training": training}


def _meaningless(preset: dict[str, Any], own: dict[str, Any]) -> set[str]:
    """The file's keys that have no effect even without overrides (none if it is not valid alone: they may mend it)."""
    try:
        merged = _drop_inherited_lengths(_merge(_merge({}, preset), own), set(_flatten(own)), [])
        return {key for key in ineffective(Config.model_validate(merged)) if _flatten(own).get(key) is not None}
    except ValidationError:
        return set()


def _settled(below: dict[str, Any], above: dict[str, Any], notes: list[str], strict: Set[str] = frozenset()) -> Config:
    """Put the layer `above` on the one `below`.

    Every key of `above`, and those of `below` in `strict`, must have an effect; others of `below` that have none are
    dropped, with a line in `notes`.
    """
    flat_above, flat_below = _flatten(above), _flatten(below)
    merged = _drop_inherited_lengths(_merge(_merge({}, below), above), set(flat_above), notes)
    for key, why in ineffective(validate(merged)).items():
        value = flat_above.get(key, flat_below.get(key))
        if value is None:  # a null asks for nothing
            continue
        if key in flat_above or key in strict:
            raise RequestError(f"{key}={show(value)} can have no effect because {why}: leave it out")
        _remove(merged, key)
        notes.append(f"{key}={show(value)} is dropped because {why}")
    return validate(merged)


def _drop_inherited_lengths(merged: dict[str, Any], explicit: set[str], notes: list[str]) -> dict[str, Any]:
    """A run has one length: one that is set here replaces one that was inherited."""
    chosen = [key for key in LENGTHS if key in explicit and _flatten(merged).get(key) is not None]
    for key in LENGTHS:
        value = _flatten(merged).get(key)
        if chosen and key not in explicit and value is not None:
            _remove(merged, key)
            notes.append(f"{key}={show(value)} is dropped because {chosen[0]} sets the length of the run")
    return merged


def validate(tree: dict[str, Any]) -> Config:
    """A config from plain values. Raises RequestError in one sentence."""
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise RequestError(_sentence(error)) from None


def resolved(config: Config) -> dict[str, Any]:
    """Plain values of every key that has an effect: the file that repeats the run."""
    tree = config.model_dump(mode="json")
    for key in ineffective(config):
        _remove(tree, key)
    for split in ("train", "val"):  # a source says only what is set
        for source in tree["data"].get(split) or []:
            for name in [name for name, value in source.items() if value is None and "kind" not in source]:
                del source[name]
    return {section: values for section, values in tree.items() if values}


def config_yaml(config: Config) -> str:
    """`resolved` as YAML text, with the name of the preset that it was made from."""
    origin = {RESOLVED_FROM: config.preset} if config.preset else {}
    return dump_yaml(origin | resolved(config))


def _read(source: str) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """(preset values, file values, name) of a preset's name or a file's path."""
    depth = depth_of(source)
    if depth is not None:
        return depth_preset(depth), {}, source
    if source in preset_names():
        text = (resources.files("minigpt.presets") / f"{source}.yaml").read_text("utf-8")
        return parse_yaml(text, f"preset {source}"), {}, source
    path = Path(source)
    if not path.is_file():
        if path.is_dir():
            raise RequestError(f"{source} is a folder: a config is a YAML or JSON file, or a preset's name")
        raise RequestError(f"config {source!r} is neither a file nor a preset: {_presets_like(source)}")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise RequestError(f"config {source} is not UTF-8 text: give a YAML or JSON file") from None
    except OSError as error:
        raise RequestError(f"config {source} cannot be read: {error.strerror}") from None
    tree = (parse_json if path.suffix == ".json" else parse_yaml)(text, f"config {source}")
    if not isinstance(tree, dict):
        raise RequestError(f"config {source} holds no settings: it must be a mapping such as 'model: {{n_layer: 4}}'")
    return {}, anchored(tree, path.parent), path.stem if path.stem != "config" else path.resolve().parent.name


def _presets_like(name: str) -> str:
    if re.fullmatch("d[0-9]+", name):
        return f"the dial goes from d{SHALLOWEST} to d{DEEPEST}"
    close = difflib.get_close_matches(name, preset_names(), 1, 0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"{hint}minigpt train --help lists the presets"


def _parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    known = fields()
    for item in overrides:
        key, equals, text = item.partition("=")
        key = key.strip().removeprefix("--")
        if not equals or not key:
            raise RequestError(f"override {item!r} is not of the form section.key=value")
        value = text if key in known and _is_text(known[key][0], text) else parse_yaml(text, f"override {item!r}")
        if key not in known and not isinstance(value, dict) and not key.startswith(OWN_OPTIONS):
            raise RequestError(_unknown(key, value))
        node = tree
        *parents, leaf = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
        node[leaf] = (
            _merge(node.get(leaf, {}), value) if isinstance(value, dict) and isinstance(node.get(leaf), dict) else value
        )
    return tree


def _is_text(kind: Any, text: str) -> bool:
    """Whether an override of this type is taken to the letter, so that `run.name=007` stays what it is."""
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    if str not in options or any(option in options for option in (int, float, bool)):
        return False
    return not (text == "null" and type(None) in options)


def _sentence(error: ValidationError) -> str:
    """One sentence about the first thing wrong: unknown keys first, since they explain the rest."""
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = problems[0]
    # Members of a union appear in the location as type names: only real keys and list positions are shown.
    names = {part for key in fields() for part in key.split(".")} | {*_source_fields(), *GroupConfig.model_fields}
    last = len(first["loc"]) - 1
    loc = [
        part
        for i, part in enumerate(first["loc"])
        if isinstance(part, int) or part in names or (first["type"] == "extra_forbidden" and i == last)
    ]
    key = ".".join(str(part) for part in loc)
    value = first["input"]
    if first["type"] == "extra_forbidden":
        return _unknown(key, value)
    if first["type"] == "unknown_option":
        return _unknown(f"{key}.{first['ctx']['name']}", first["ctx"]["value"])
    message = first["msg"].removeprefix("Value error, ")
    said = "=" in message.split(" ")[0] and key.count(".") <= 1 and "data." not in key
    if first["type"] == "value_error" and (said or not key):
        return message
    if first["type"] == "value_error":
        return f"{key}: {message}"
    if first["type"] == "missing":
        return f"{key} is missing in {show(value)}"
    union = [e for e in problems if [part for part in e["loc"] if part in loc][: len(loc)] == loc]
    expected = " or ".join(
        dict.fromkeys(re.sub(r"^(Input|String|List) should (be |have )?", "", e["msg"]) for e in union)
    )
    described = next((name for name in fields() if f"{key}.".startswith(f"{name}.")), None)  # the list that it is in
    help_text = fields()[described][2] if described else ""
    return f"{key}={show(value)} is not possible: expected {expected}" + (
        f" ({help_text.rstrip('.')})" if help_text else ""
    )


def _source_fields() -> list[str]:
    from minigpt.config.sources import SourceConfig

    return list(SourceConfig.model_fields)


def _unknown(key: str, value: Any) -> str:
    known = list(fields())
    if key in Config.model_fields:
        example = next((name for name in known if name.startswith(f"{key}.")), key)
        return f"{key}={show(value)} sets a whole section: name one of its keys, such as {example}"
    if key.startswith(("data.train.", "data.val.")):
        known = [f"{key.rpartition('.')[0]}.{name}" for name in _source_fields()]
    if key.startswith("optimizer.groups."):
        known = [f"{key.rpartition('.')[0]}.{name}" for name in GroupConfig.model_fields]
    leaf = key.rpartition(".")[2]
    elsewhere = [name for name in known if name.rpartition(".")[2] == leaf]  # the right name in the wrong section
    close = difflib.get_close_matches(key, elsewhere or known, 1, 0 if elsewhere else 0.75)
    if not close:  # a name that is nearly right in the wrong section, or in none
        leaves = {k.rpartition(".")[2]: k for k in reversed(known)}
        close = [leaves[name] for name in difflib.get_close_matches(leaf, list(leaves), 1, 0.6)]
    close = close or difflib.get_close_matches(key, known, 1, 0)
    return (
        f"unknown key {key}={show(value)}: the nearest one is {close[0]}"
        if close
        else f"unknown key {key}={show(value)}"
    )


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the values of `above` put in, section by section; lists are replaced whole. Changes `below`."""
    for key, value in above.items():
        old = below.get(key, {})
        if isinstance(value, Mapping) and isinstance(old, dict) and not _replaces(key, value, old):
            below[key] = _merge(dict(old), value)
        else:
            below[key] = value
    return below


def _replaces(key: str, value: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether a mapping is put in whole: a source, and a class of the user's own, whose options are its own."""
    kinds = {value["kind"], old.get("kind")} if "kind" in value else set()
    return key in ("train", "val") or (len(kinds) == 2 and any(map(is_extension_kind, kinds)))


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and prefix + key not in ("data.train", "data.val"):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _remove(tree: dict[str, Any], key: str) -> None:
    """Take a key out, and with it the section that it was the last one of."""
    part, _, rest = key.partition(".")
    if not rest:
        tree.pop(part, None)
    elif tree.get(part):
        _remove(tree[part], rest)
        if not tree[part]:
            del tree[part]
