"""The schedules of batch, row length and window, against walking through a run step by step."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import Config, RequestError, load_config
from minigpt.config.pace import Pace

LENGTH = 16


def config(schedule: dict[str, Any], micro: int = 3, **more: Any) -> Config:
    model = {"n_layer": 2, "n_head": 2, "n_embd": 8, "context_length": LENGTH, "vocab_size": 11}
    training = {"max_steps": 100, "micro_batch": micro}
    if "accumulation" not in schedule:
        training["batch_tokens"] = 6 * LENGTH
    return load_config({"model": model, "training": training, "schedule": schedule, "data": {"train": "x"}} | more)[0]


def pairs(values: st.SearchStrategy[int], most: int) -> st.SearchStrategy[list[list[int]]]:
    begins = st.lists(st.integers(1, most), unique=True, max_size=4).map(lambda found: [0, *sorted(found)])
    return begins.flatmap(lambda b: st.tuples(*(values for _ in b)).map(lambda v: [list(p) for p in zip(b, v)]))  # noqa: B905


def value(steps: list[list[int]], at: int) -> int:
    return [size for begin, size in steps if begin <= at][-1]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["steps", "tokens"]), st.integers(1, 3), st.data())
def test_it_is_what_walking_through_the_run_finds(unit: str, micro: int, data: st.DataObject) -> None:
    most = 30 if unit == "steps" else 60 * LENGTH
    accumulation = data.draw(pairs(st.integers(1, 5), most))
    lengths = [*data.draw(pairs(st.sampled_from([2, 4, 8]), most)), [most + 1, LENGTH]]
    pace = Pace(config({"unit": unit, "accumulation": accumulation, "context_length": lengths}, micro))
    row, starts = 0, []
    for step in range(1, 50):
        at = step - 1 if unit == "steps" else row * LENGTH
        starts.append(row)
        assert pace.first_row(step) == row and pace.tokens_before(step) == row * LENGTH
        assert pace.batch_rows(step) == micro * value(accumulation, at)
        assert pace.context_length(step) == value(lengths, at)
        row += pace.batch_rows(step)
    for rows in range(row):
        assert pace.steps_of(rows) == sum(start < rows for start in starts)
    assert not pace.is_constant


def test_without_schedules_every_step_is_alike() -> None:
    pace = Pace(config({}))
    assert pace.is_constant and pace.window(7) is None and pace.context_length(7) == LENGTH
    assert [pace.batch_rows(1), pace.first_row(1), pace.first_row(8), pace.tokens_before(8)] == [6, 0, 42, 42 * LENGTH]
    assert [pace.steps_of(rows) for rows in (0, 1, 6, 7, 12, 13)] == [0, 1, 1, 2, 2, 3]


def test_the_first_numbers_count_updates_made() -> None:
    pace = Pace(config({"accumulation": [[0, 8], [8750, 16], [13125, 32]]}, micro=1))
    assert [pace.batch_rows(step) for step in (1, 8750, 8751, 13125, 13126)] == [8, 8, 16, 16, 32]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule.accumulation": [[0, 2]], "training.micro_batch": "auto"}, "set it to the rows of one"),
        ({"schedule.accumulation": [[0, 2]], "training.batch_tokens": 64}, "schedule.accumulation gives the batch"),
        ({"schedule.accumulation": [[1, 2]]}, "must begin at 0"),
        ({"schedule.accumulation": [[0, 2, 3]]}, "must be pairs"),
        ({"schedule.accumulation": [[0, 2], [5, 3], [5, 4]]}, "in the order of the run"),
        ({"schedule.context_length": [[0, 3], [5, 16]]}, "use a divisor of it"),
        ({"schedule.context_length": [[0, 4], [5, 8]]}, "must grow to model.context_length=16"),
        ({"schedule.window": [[0, 4]]}, "no layer has a short window"),
        ({"schedule.window": [[0, 4]], "model.attention_window": 8}, "must grow to model.attention_window=8"),
        ({"schedule.window": [[0, 9], [3, 8]], "model.attention_window": 8}, "go no higher"),
        ({"schedule.unit": "tokens"}, "nothing changes over the run"),
        ({"training.float8": True}, "is for the products of training.precision=bf16"),
        ({"training.tf32": True, "training.precision": "bf16"}, "narrower than TF32"),
        (
            {
                "model.moe": {"n_expert": 4},
                "training.compile": True,
                "training.activation_checkpointing": "selective",
            },
            "cannot look into compiled blocks with experts",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(change: dict[str, Any], said: str) -> None:
    tree: dict[str, Any] = {"model": {"context_length": LENGTH}, "training": {"max_steps": 5, "micro_batch": 1}}
    for key, setting in change.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = setting
    tree["training"].setdefault("batch_tokens", 64)
    if "schedule.accumulation" in change and "training.batch_tokens" not in change:
        del tree["training"]["batch_tokens"]
    with pytest.raises(RequestError) as error:
        load_config(tree)
    message = str(error.value)
    assert said in message and "\n" not in message and not message.startswith(":")


def test_a_window_may_grow_until_it_takes_in_the_whole_context() -> None:
    tree = {
        "model": {"context_length": LENGTH, "attention_window": LENGTH, "window_pattern": "SL"},
        "schedule": {"window": [[0, 4], [3, LENGTH]]},
        "training": {"max_steps": 5, "batch_tokens": 64, "micro_batch": 1},
    }
    loaded, notes = load_config(tree)
    assert not notes and Pace(loaded).window(4) == loaded.model.attention_window == LENGTH
