"""`minigpt merge`: several models of one shape become one."""

from typing import Annotated, Any

import typer

from minigpt.cli.output import say
from minigpt.config import RequestError
from minigpt.interop.merge.options import DEFAULTS, DENSITY, METHODS, MergeOptions, Method

MethodOption = Annotated[
    Method, typer.Option(metavar="|".join(METHODS), help="How their weights become those of one model")
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="X,X,...",
        help="A number for each model: their ratio (linear, slerp, ties) or what each change is multiplied by "
        "(task-arithmetic, dare)  [default: all alike]",
        show_default=False,
    ),
]
Base = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="The model that the others were fine-tuned from (task-arithmetic, ties, dare)",
        show_default=False,
    ),
]
Last = Annotated[
    int | None,
    typer.Option(
        metavar="K", help="Merge the last K checkpoints of the one run given (linear, ema)", show_default=False
    ),
]
Density = Annotated[
    float | None,
    typer.Option(
        metavar="D",
        help="Share of each model's changes that is kept  "
        f"[default: {', '.join(f'{value} ({name})' for name, value in DENSITY.items())}]",
        show_default=False,
    ),
]
Scale = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help=f"The merged change to the base is multiplied by this  [default: {DEFAULTS['scale']}]",
        show_default=False,
    ),
]
Decay = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help=f"Share of the moving average that is kept at each model (ema)  [default: {DEFAULTS['decay']}]",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", help=f"Seed of what dare drops  [default: {DEFAULTS['seed']}]", show_default=False),
]


def merge(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write; it must not exist", show_default=False)],
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Runs, checkpoints or model folders of one shape", show_default=False),
    ],
    method: MethodOption = "linear",
    weights: Weights = None,
    base: Base = None,
    last: Last = None,
    density: Density = None,
    scale: Scale = None,
    decay: Decay = None,
    seed: Seed = None,
) -> None:
    """Merge models into one of the same size."""
    asked: dict[str, Any] = {"method": method, "weights": _numbers(weights), "base": base, "last": last,
                             "density": density, "scale": scale, "decay": decay, "seed": seed}  # fmt: skip
    MergeOptions(**asked).checked(len(models))
    from minigpt.interop.merge.run import merge_models

    folder = merge_models(out, models, lambda line: say(f"minigpt: {line}"), **asked)
    count = last or len(models)
    say(f"merged {count} model{'' if count == 1 else 's'} by {method} into {folder}")


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(number) for number in text.split(","))
    except ValueError:
        raise RequestError(f"--weights={text} is not possible: give numbers with commas between them") from None
