"""Code of your own: `kind: path/to/file.py:Class` in a config names a class in a Python file.

The keys beside `kind` are the options of that class. It says which there are with a schema of its own, as strict as
the rest of the config, and is made from a valid one (and from what else one of its sort is given: see the examples):

    class WordCount(Callback):
        class Config(Section):
            every_steps: int = 100

        def __init__(self, config: Config) -> None: ...

A relative path in a config file starts from that file's folder, everywhere else from the working directory. The file is
imported by itself, under a private name: it may use installed packages, but not its neighbours. Files that shape what
a run computes are recorded with their SHA-256, so that a run never goes on with another version of them.
"""

import difflib
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from importlib.abc import InspectLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from minigpt.config.base import Section
from minigpt.config.errors import RequestError, WorkError
from minigpt.config.yaml import show

FORM = "path/to/file.py:Class"
TRUST = "MINIGPT_TRUST_CODE"
HOLDERS = ("kind", "objective", "mlp", "own", "train", "val")
"""Keys whose value may be such a kind; elsewhere it is text like any other."""
RESERVED = ("kind", "sha256")


class Extension(Section):
    """A class of the user's own and its options."""

    model_config = ConfigDict(extra="allow")
    BUILT_IN: ClassVar[tuple[str, ...]] = ()
    """Kinds besides (of a subclass), which are names and have no options."""

    kind: str
    """The class, as path/to/file.py:Class."""
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the file, in hexadecimal; recorded when a run begins."""

    @model_validator(mode="before")
    @classmethod
    def _a_mapping_with_a_kind(cls, value: Any) -> Any:
        if is_extension_kind(value):  # a class without options may stand alone
            return {"kind": value}
        given = value.keys() if isinstance(value, Mapping) else {"kind"} if isinstance(value, cls) else None
        if given is None or ("kind" not in given and cls.model_fields["kind"].is_required()):
            raise PydanticCustomError("extension", "{form}", {"form": FORM})
        return value

    @field_validator("kind")
    @classmethod
    def _a_file_and_a_class(cls, kind: str) -> str:
        if not is_extension_kind(kind) and kind not in cls.BUILT_IN:
            choices = [f"'{name}'" for name in cls.BUILT_IN] + [FORM]
            raise PydanticCustomError("extension", "{form}", {"form": " or ".join(choices)})
        return kind

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        tree: dict[str, Any] = handler(self)
        return {key: value for key, value in tree.items() if value is not None or key not in type(self).model_fields}

    @model_validator(mode="after")
    def _built_in_ones_have_no_options(self) -> Self:
        if self.kind in self.BUILT_IN and self.options:
            name, value = next(iter(self.options.items()))
            raise PydanticCustomError("unknown_option", "unknown option", {"name": name, "value": value})
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The keys beside `kind` and `sha256`."""
        return dict(self.model_extra or {})

    @property
    def path(self) -> Path:
        """The file."""
        return Path(os.path.abspath(Path(self.kind.rpartition(":")[0]).expanduser()))


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, Mapping, Extension)) else value


Extensions = Annotated[list[Extension], BeforeValidator(_as_list)]
"""Several classes of the user's own; one stands for a list of one."""


def is_extension_kind(kind: Any) -> bool:
    """Whether a `kind` names a class in a file."""
    return isinstance(kind, str) and re.fullmatch(r".+\.py:[A-Za-z_]\w*", kind) is not None


def anchored(tree: Any, folder: Path) -> Any:
    """A plain tree in which the path of every extension is absolute; relative ones start from `folder`."""
    return _with_kinds(tree, lambda path: Path(os.path.abspath(folder / path.expanduser())))


def portable(tree: Any) -> Any:
    """A plain tree in which the path of every extension is its file's name: what stays the same when it is moved."""
    return _with_kinds(tree, lambda path: Path(path.name))


def _with_kinds(tree: Any, place: Callable[[Path], Path], key: str = "") -> Any:
    if isinstance(tree, Mapping):
        return {name: _with_kinds(value, place, name) for name, value in tree.items()}
    if isinstance(tree, list):
        return [_with_kinds(item, place, key) for item in tree]
    if key in HOLDERS and is_extension_kind(tree):
        path, _, name = tree.rpartition(":")
        return f"{place(Path(path))}:{name}"
    return tree


def load_class(kind: str, base: type | None, what: str) -> type:
    """The class that `kind` names, from its file, which is imported.

    base: what it must be derived from; of a Protocol it needs the methods only. what: the key, for messages.
    Raises RequestError in one sentence if there is no such file or class, or if the file cannot be imported.
    """
    return _load(Extension(kind=kind), base, what)[0]


def build(extension: Extension, base: type | None, what: str, **given: Any) -> Any:
    """An object of the extension's class: `Class(config, **given)`, where `config` holds the valid options.

    Raises RequestError as `load_class` does, for an option that the class does not have or cannot use, for a file that
    is not the recorded one, and when the class cannot be made.
    """
    found, config, _ = _checked(extension, base, what)
    try:
        made = found(config, **given)
    except (RequestError, WorkError):
        raise
    except Exception as error:
        raise RequestError(f"{what}: {found.__name__} cannot be made: {_said(error, extension.path)}") from error
    missing = [name for name in _protocol(base) if not hasattr(made, name)]
    if missing:
        raise RequestError(f"{what}: {extension.kind} lacks {' and '.join(missing)}: set it in __init__")
    return made


def settled(extension: Extension, base: type | None, what: str) -> Extension:
    """The extension with nothing left open: the SHA-256 of its file and every option. Raises as `build` does."""
    _, config, sha256 = _checked(extension, base, what)
    return extension.model_copy(update={"sha256": sha256, **config.model_dump(mode="json")})


def source(extension: Extension) -> bytes:
    """The bytes of the extension's file: those that were imported, if they were, even if it has changed since."""
    for module in list(sys.modules.values()):
        loader = getattr(module, "__loader__", None)
        if isinstance(loader, _Loader) and loader.path == extension.path and loader.sha256 == extension.sha256:
            return loader.data
    return _read(extension.path, "kind")


def require_trust(parts: Iterable[Any], whose: str, trust_code: bool | None) -> None:
    """RequestError if using `parts` would run somebody's code, unless `trust_code` is true.

    Training on a config that names a file is consent; using a run or a model that brings one along is not. parts:
    values of a config, extensions or not. whose: what they belong to, for the message. trust_code: None means what the
    environment's MINIGPT_TRUST_CODE says, and no if it says nothing.
    """
    if trust_code is None:
        trust_code = os.environ.get(TRUST, "0") not in ("", "0")
    files = dict.fromkeys(str(part.path) for part in parts if isinstance(part, Extension))
    if files and not trust_code:
        raise RequestError(
            f"{whose} has code of its own, which would run: read {' and '.join(files)}, and if you trust it, "
            f"say --trust-code ({TRUST}=1, or trust_code=True in Python)"
        )


def blamed(error: BaseException) -> str | None:
    """Where in the user's own code an error arose, as "FILE line N"; None if none of it took part."""
    loaders = [getattr(module, "__loader__", None) for module in list(sys.modules.values())]
    files = {str(loader.path) for loader in loaders if isinstance(loader, _Loader)}
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    return f"{places[-1].filename} line {places[-1].lineno}" if places else None


class _Loader(InspectLoader):
    """Imports a module from bytes that were read once, so that the code is what its SHA-256 says."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path, self.data, self.sha256 = path, data, _sha256(data)

    def get_source(self, fullname: str) -> str:
        """The text of the file."""
        return importlib.util.decode_source(self.data)

    def get_code(self, fullname: str) -> CodeType:
        """The compiled file; tracebacks name it."""
        return self.source_to_code(self.data, str(self.path))


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise RequestError(f"{what}: there is no file {path}") from None
    except OSError as error:
        raise RequestError(f"{what}: {path} cannot be read: {error.strerror}") from None


def _load(extension: Extension, base: type | None, what: str) -> tuple[type, str]:
    """The class, and the SHA-256 of its file; a file that has not changed is imported once."""
    path = extension.path
    loader = _Loader(path, _read(path, what))
    if extension.sha256 not in (None, loader.sha256):
        raise RequestError(
            f"{what}: {path} is not the file that the config was recorded with (its SHA-256 differs): "
            "bring that one back, or start a new run without sha256"
        )
    name = f"_minigpt_extension_{_sha256(f'{path} {loader.sha256}'.encode())[:16]}"
    module = sys.modules.get(name) or _import(name, loader, what)
    return _class_in(module, path, extension.kind.rpartition(":")[2], base, what), loader.sha256


def _import(name: str, loader: "_Loader", what: str) -> ModuleType:
    path = loader.path
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their own module up while it is being imported
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, (Exception, SystemExit)):  # an interrupt is no fault of the file
            raise
        raise RequestError(f"{what}: {path} cannot be imported: {_said(error, path)}") from error
    return module


def _said(error: BaseException, path: Path) -> str:
    """The error in one line, with the last line of the file that took part in it."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno} is not valid Python: {error.msg}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _class_in(module: ModuleType, path: Path, name: str, base: type | None, what: str) -> type:
    found = getattr(module, name, None)
    own = [
        key for key, value in vars(module).items() if isinstance(value, type) and value.__module__ == module.__name__
    ]
    if found is None:
        close = difflib.get_close_matches(name, own, 1, 0.5) or own
        hint = f": the nearest one is {close[0]}" if close else ", nor any other"
        raise RequestError(f"{what}: {path} has no class {name}{hint}")
    if not isinstance(found, type):
        raise RequestError(f"{what}: {name} in {path} is not a class but {type(found).__name__}")
    if base is None:
        return found
    if missing := [key for key in _protocol(base, methods=True) if not hasattr(found, key)]:
        raise RequestError(f"{what}: {name} in {path} lacks {' and '.join(missing)}, so it is no {base.__name__}")
    if not _is_protocol(base) and not issubclass(found, base):
        raise RequestError(f"{what}: {name} in {path} is no {base.__name__}: write class {name}({base.__name__})")
    return found


class _NoOptions(Section):
    """The schema of a class without one."""


def _is_protocol(base: type | None) -> bool:
    return bool(getattr(base, "_is_protocol", False))


def _protocol(base: type | None, methods: bool = False) -> list[str]:
    """Names of the methods, or else of the values, that a Protocol asks for; none for a class."""
    if not _is_protocol(base):
        return []
    if methods:
        return [name for name, value in vars(base).items() if not name.startswith("_") and callable(value)]
    return list(inspect.get_annotations(base)) if base else []


def _checked(extension: Extension, base: type | None, what: str) -> tuple[type, Section, str]:
    """The class, its options as its schema has them, and the SHA-256 of its file."""
    found, sha256 = _load(extension, base, what)
    schema = getattr(found, "Config", _NoOptions)
    if not (isinstance(schema, type) and issubclass(schema, Section)):
        raise RequestError(f"{what}: Config of {found.__name__} is not a minigpt.config.Section: derive it from that")
    taken = [name for name in RESERVED if name in schema.model_fields]
    if taken:
        raise RequestError(
            f"{what}: Config of {found.__name__} has a field {taken[0]}, which means the file: rename it"
        )
    try:
        return found, schema.model_validate(extension.options), sha256
    except ValidationError as error:
        raise RequestError(_sentence(error, schema, found.__name__, what)) from None


def _sentence(error: ValidationError, schema: type[Section], name: str, what: str) -> str:
    """One sentence about the first thing wrong: unknown options first, since they explain the rest."""
    first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in (what, *first["loc"]))
    option = str(first["loc"][0]) if first["loc"] else ""
    known = list(schema.model_fields)
    message = first["msg"].removeprefix("Value error, ")
    about = (schema.model_fields[option].description or "").rstrip(".") if option in known else ""
    meaning = f" ({about})" if about else ""
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        close = difflib.get_close_matches(option, known, 1, 0)
        hint = f"the nearest one is {what}.{close[0]}" if close else f"{name} has no options"
        return f"unknown key {key}={show(first['input'])}: {hint}"
    if first["type"] == "missing":
        return f"{key} is missing: {name} needs it{meaning}"
    if not option:
        return f"{what}: {message}"
    return f"{key}={show(first['input'])} is not possible: {message[:1].lower()}{message[1:]}{meaning}"
