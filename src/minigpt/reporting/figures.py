"""The headline figures of a run: how good it got, and what that took."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from minigpt.reporting.parameters import Part, flops_per_token
from minigpt.reporting.runs import Run
from minigpt.reporting.text import amount, decimal, duration


@dataclass(frozen=True)
class Figure:
    """One number with its name."""

    label: str
    value: str
    detail: str = ""
    """A few words below it: where it was, what it counts."""
    number: float | None = None
    """What decides which run is the best one; None where no value is better than another."""


def figures(run: Run, parts: list[Part]) -> list[Figure]:
    """Everything that is known, the most important first."""
    makers: list[Callable[[Run], Figure | None]] = [
        _final_loss,
        _best_loss,
        _bits_per_byte,
        _train_loss,
        _tokens,
        _time,
    ]
    found = [figure for make in makers if (figure := make(run)) is not None]
    per_token = flops_per_token(run, parts)
    if per_token and run.tokens:
        found.append(
            Figure("Arithmetic", amount(per_token * run.tokens, "FLOP"), f"{amount(per_token, 'FLOP')} a token")
        )
    if parts:
        found.append(Figure("Parameters", amount(sum(part.parameters for part in parts))))
    found += [figure for make in (_speed, _mfu, _memory) if (figure := make(run)) is not None]
    return [*found, *_health(run)]


def _final_loss(run: Run) -> Figure | None:
    series = run.series.get("val/loss")
    if series is None or series.last is None:
        return None
    step, value = series.last
    detail = f"at step {step:,}"
    if 0 <= value < 12:  # beyond that a perplexity says nothing
        detail += f", perplexity {math.exp(value):.4g}"
    return Figure("Validation loss", decimal(value), detail, value)


def _best_loss(run: Run) -> Figure | None:
    series = run.series.get("val/loss")
    if series is None or series.lowest is None:
        return None
    return Figure("Best validation loss", decimal(series.lowest[1]), f"at step {series.lowest[0]:,}", series.lowest[1])


def _bits_per_byte(run: Run) -> Figure | None:
    series = run.series.get("val/bpb")
    if series is None or series.lowest is None or series.last is None:
        return None
    return Figure("Bits per byte", decimal(series.last[1], 3), f"best {decimal(series.lowest[1], 3)}", series.last[1])


def _train_loss(run: Run) -> Figure | None:
    series = run.series.get("train/loss")
    if series is None or series.last is None:
        return None
    return Figure("Training loss", decimal(series.last[1]), f"of the batch of step {series.last[0]:,}")


def _tokens(run: Run) -> Figure | None:
    if not run.lines:
        return None
    of = f" of {run.max_steps:,}" if run.max_steps and run.max_steps != run.step else ""
    return Figure("Tokens", amount(run.tokens), f"in {run.step:,}{of} steps")


def _time(run: Run) -> Figure | None:
    if not run.lines:
        return None
    count = len(run.sessions)
    detail = "evaluations and saving included" if count < 2 else f"in {count} sessions ({count - 1} resumed)"
    return Figure("Training time", duration(run.seconds), detail)


def _speed(run: Run) -> Figure | None:
    median = _median(run, "perf/tokens_per_second")
    if median is None:
        return None
    overall = f"median; {amount(run.tokens / run.seconds)} overall" if run.seconds else ""
    return Figure("Tokens a second", amount(median), overall)


def _mfu(run: Run) -> Figure | None:
    median = _median(run, "perf/mfu")
    return None if median is None else Figure("MFU", f"{median:.1%}", "of the machine's peak")


def _memory(run: Run) -> Figure | None:
    series = run.series.get("memory/peak_mb")
    if series is None or not series.points():
        return None
    return Figure("Peak memory", amount(1e6 * max(point.high for point in series.points()), "B"))


def _health(run: Run) -> list[Figure]:
    """Skipped steps and restorations; a run without metrics has neither."""
    if not run.lines:
        return []
    skipped, restored = _last(run, "train/skipped"), _last(run, "train/restorations")
    journal = sum("restored_to" in entry for entry in run.incidents)
    return [Figure("Skipped steps", f"{skipped:,.0f}", "loss or gradient not finite" if skipped else ""),
            Figure("Restorations", f"{max(restored, journal):,.0f}")]  # fmt: skip


def _last(run: Run, key: str) -> float:
    series = run.series.get(key)
    found = series.last[1] if series is not None and series.last is not None else 0.0
    return found if math.isfinite(found) else 0.0


def _median(run: Run, key: str) -> float | None:
    series = run.series.get(key)
    return None if series is None else series.median()
