"""The objective that a config asks for."""

import inspect
from typing import Any

from minigpt.config import Config, RequestError
from minigpt.config.extension import build, load_class
from minigpt.config.pace import Pace
from minigpt.data import PreparedData
from minigpt.data.rows.training_rows import ValidationRows, make_rows
from minigpt.objectives.base import Objective
from minigpt.objectives.pretrain import PretrainObjective
from minigpt.tokenizer import Tokenizer


def make_objective(config: Config, data: PreparedData, tokenizer: Tokenizer, max_steps: int | None = None) -> Objective:
    """The meaning of the rows: one of the package's, or the user's own `Class(config, **the same arguments)`.

    max_steps: the run's length in optimizer steps; None if it is not known yet, and only `rows_per_epoch` is wanted.
    Raises RequestError for a class that cannot be used, and for rows that cannot be made (see `make_rows`).
    """
    length = config.model.context_length
    given: dict[str, Any] = {
        "train": data.train if data.stream is None else None,
        "validation": data.val,
        "context_length": length,
        "seed": config.run.seed,
        "tokenizer": tokenizer,
        "validation_tokens": config.evaluation.max_tokens,
    }
    layout: dict[str, Any] = {
        "context_length": length,
        "seed": config.run.seed,
        "batch_rows": config.batch_rows,
        "max_steps": max_steps,
        "first_row": None if config.schedule.accumulation is None else Pace(config).first_row,
    }
    rows: dict[str, Any] = {
        "rows": data.stream.rows(**layout) if data.stream is not None else make_rows(data, config.data, **layout),
        "held_out": ValidationRows(
            data.validation, config.data, context_length=length, max_tokens=config.evaluation.max_tokens
        ),
    }
    if config.objective.kind in config.objective.BUILT_IN:
        return PretrainObjective(**given, **rows)
    return _own_objective(config, given, rows)


def _own_objective(config: Config, given: dict[str, Any], rows: dict[str, Any]) -> Objective:
    """A class of the user's own. One that makes its rows from `train` alone is refused where they would be others."""
    kind, special = config.objective.kind, _special_rows(config)
    parameters = inspect.signature(load_class(kind, Objective, "objective")).parameters.values()
    taken = {name for name in rows for p in parameters if p.kind is p.VAR_KEYWORD or p.name == name}
    given |= {name: rows[name] for name in taken}
    if special and "rows" not in taken:
        raise RequestError(
            f"objective.kind={kind} makes its rows itself, so {special} would have no effect: let it take `rows` "
            "and pass it on to PretrainObjective, or leave that out"
        )
    made: Objective = build(config.objective, Objective, "objective", **given)
    if config.data.document_mask and not config.data.streaming and "document_ids" not in made.row(0):
        raise RequestError(
            f"objective.kind={kind} leaves document_ids out of its rows, so data.document_mask=true would have no "
            "effect: keep them in row(), or leave the mask out"
        )
    return made


def _special_rows(config: Config) -> str:
    """What makes the rows others than windows of the whole text in random order; "" if nothing does."""
    data = config.data
    reasons = {
        "data.streaming=true": data.streaming,
        "the mixture of data.train": data.is_mixture,
        "data.packing=documents": data.packing == "documents",
        "data.document_mask=true": data.document_mask,
        "data.shuffle=false": not data.shuffle,
        f"data.shuffle_tokens={data.shuffle_tokens}": data.shuffle_tokens is not None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
