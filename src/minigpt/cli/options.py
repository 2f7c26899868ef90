"""Options made from the config's own fields, so that names, defaults, types and help texts cannot drift apart."""

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from pydantic import ValidationError

from minigpt.config import RequestError, Section, fields

Command = TypeVar("Command", bound=Callable[..., None])


def flag(name: str, kind: Any, text: str) -> Any:
    """The option of a command that stands for a config field of this name, type and help text."""
    if meaning := re.search(r"; null means (.*)\.$", text):  # on a command line null is leaving the option out
        text = f"{text[: meaning.start()]}  [default: {meaning[1]}]"
    if get_origin(kind) is list:
        text = f"{text.rstrip('.')}; may be given several times"
    return typer.Option("--" + name.replace("_", "-"), metavar=_metavar(kind), help=text.rstrip("."))


def _metavar(kind: Any) -> str:
    """What stands for a value of this type in the help."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    kinds = {kind, *get_args(kind)}
    return "N" if int in kinds else "X" if float in kinds else "TEXT"


def key_flag(key: str, name: str | None = None) -> Any:
    """The option that stands for the config's key `section.name`, under another name if one is given."""
    kind, _, text = fields()[key]
    return flag(name or key.rpartition(".")[2], kind, text)


def key_default(key: str) -> Any:
    """The default of the config's key `section.name`."""
    return fields()[key][1]


def was_given(context: typer.Context, name: str) -> bool:
    """Whether the person wrote this option, even if with its default value."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def section_options(section: type[Section], parameter: str) -> Callable[[Command], Command]:
    """Give a command an option for every field of `section`; they arrive, validated, as its argument `parameter`."""

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.get_default(call_default_factory=True),
                annotation=Annotated[field.annotation, flag(name, field.annotation, field.description or "")],
            )
            for name, field in section.model_fields.items()
        ]
        parameters: list[inspect.Parameter] = []
        for own in signature.parameters.values():
            parameters += options if own.name == parameter else [own.replace(kind=inspect.Parameter.KEYWORD_ONLY)]

        @functools.wraps(command)
        def run(**values: Any) -> None:
            chosen = {name: values.pop(name) for name in section.model_fields}
            command(**values, **{parameter: _validated(section, chosen)})

        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {own.name: own.annotation for own in parameters} | {"return": None}
        return run  # type: ignore[return-value]

    return decorate


def _validated(section: type[Section], values: Mapping[str, Any]) -> Section:
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        wanted = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        raise RequestError(
            f"--{name.replace('_', '-')}={first['input']} is not possible: it should be {wanted} "
            f"({(section.model_fields[name].description or '').rstrip('.')})"
        ) from None


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else")]
Device = Annotated[str, key_flag("run.device")]
Threads = Annotated[int | None, key_flag("run.threads")]
TrustCode = Annotated[
    bool | None,
    typer.Option("--trust-code", help="Run the Python files that the model or its run brings along (read them first)"),
]
DEFAULT_DEVICE: str = key_default("run.device")
DEFAULT_THREADS: int | None = key_default("run.threads")
Config = Annotated[
    str, typer.Argument(metavar="CONFIG", help="A preset's name, or a YAML or JSON file", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Settings that replace the config's, as optimizer.lr=1e-3", show_default=False
    ),
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="A run, checkpoint or model folder", show_default=False)]
