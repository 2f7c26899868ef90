"""Rules between their tensors and ours: exact both ways, against what the layouts are by definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.config import WorkError
from minigpt.interop.tensors import (
    Rule,
    check_source,
    half_from_interleaved,
    interleaved_from_half,
    offset,
    rows,
    same,
    stacked,
    to_ours,
    to_theirs,
    transposed,
)


class Tensors:
    """A `TensorSource` in memory."""

    place = "somewhere"

    def __init__(self, **tensors: torch.Tensor) -> None:
        self.tensors = tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def get(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(1.0, 1.0 + torch.Size(shape).numel()).view(shape)


@pytest.mark.parametrize(
    ("rule", "theirs", "ours"),
    [
        (same("x", "a"), [numbers(2, 3)], numbers(2, 3)),
        (transposed("x", "a"), [numbers(2, 3)], numbers(2, 3).T),
        (offset("x", "a"), [numbers(3)], numbers(3) + 1),
        (rows("x", ("a", "b"), (1, 2)), [numbers(1, 3), -numbers(2, 3)], torch.cat([numbers(1, 3), -numbers(2, 3)])),
        (rows("x", ("a", "b"), (1, 2)), [numbers(1), -numbers(2)], torch.tensor([1.0, -1.0, -2.0])),
        (stacked("x", ("a", "b")), [numbers(2, 3), -numbers(2, 3)], torch.stack([numbers(2, 3), -numbers(2, 3)])),
        (
            stacked("x", ("a", "b", "c", "d"), parts=2),
            [k * numbers(2, 3) for k in (1, 2, 3, 4)],
            torch.stack(
                [torch.cat([numbers(2, 3), 2 * numbers(2, 3)]), torch.cat([3 * numbers(2, 3), 4 * numbers(2, 3)])]
            ),
        ),
        (
            rows("x", ("a", "b"), (1, 1)).changed(1, lambda t: t * 2, lambda t: t / 2),
            [numbers(1, 2), numbers(1, 2)],
            torch.tensor([[1.0, 2.0], [2.0, 4.0]]),
        ),
    ],
    ids=["same", "transposed", "offset", "rows", "rows of vectors", "stacked", "stacked pairs", "changed"],
)
def test_each_rule_both_ways(rule: Rule, theirs: list[torch.Tensor], ours: torch.Tensor):
    files = dict(zip(rule.theirs, theirs, strict=True))
    ((name, made),) = to_ours([rule], files.__getitem__)
    assert name == "x" and torch.equal(made, ours) and made.is_contiguous()
    back = dict(to_theirs([rule], {"x": made}))
    assert list(back) == list(rule.theirs)
    assert all(torch.equal(back[name], files[name]) and back[name].is_contiguous() for name in files)
    check_source([rule], {"x": ours.to("meta")}, Tensors(**files))


def test_narrow_numbers_become_fp32():
    for kind in (torch.bfloat16, torch.float16, torch.float64):
        ((_, made),) = to_ours([offset("x", "a")], {"a": numbers(3).to(kind)}.__getitem__)
        assert made.dtype == torch.float32 and torch.equal(made, numbers(3) + 1)


@given(heads=st.integers(1, 3), pairs=st.integers(1, 4), rest=st.integers(0, 3), columns=st.integers(1, 2))
def test_interleaved_pairs(heads: int, pairs: int, rest: int, columns: int):
    tensor = numbers(heads * (2 * pairs + rest), columns)
    half = half_from_interleaved(tensor, heads, 2 * pairs)
    for head in range(heads):
        first = head * (2 * pairs + rest)
        for pair in range(pairs):  # dimensions 2 i and 2 i + 1 turn together there, i and i + d / 2 here
            assert torch.equal(half[first + pair], tensor[first + 2 * pair])
            assert torch.equal(half[first + pairs + pair], tensor[first + 2 * pair + 1])
        assert torch.equal(half[first + 2 * pairs : first + 2 * pairs + rest], tensor[first + 2 * pairs :][:rest])
    assert torch.equal(interleaved_from_half(half, heads, 2 * pairs), tensor)


def test_tensors_that_do_not_fit_are_named():
    rules = [rows("x", ("a", "b"), (1, 2)), same("y", "c")]
    expected = {"x": torch.empty(3, 2, device="meta"), "y": torch.empty(4, device="meta")}
    fits = {"a": numbers(1, 2), "b": numbers(2, 2), "c": numbers(4)}
    check_source(rules, expected, Tensors(**fits, old_table=numbers(1)), [r"old_.*"])
    for change, said in (
        ({"b": None, "c": None}, r"^somewhere does not fit .*: it lacks the tensor b \(and 1 more\)$"),
        ({"d": numbers(1), "e": numbers(1)}, r"it has the unknown tensor d \(and 1 more\)$"),
        ({"b": numbers(3, 2)}, r"the tensor b has the shape \(3, 2\) instead of \(2, 2\)$"),
    ):
        tensors = {name: tensor for name, tensor in {**fits, **change}.items() if tensor is not None}
        with pytest.raises(WorkError, match=said):
            check_source(rules, expected, Tensors(**tensors))
    with pytest.raises(WorkError, match=r"do not fit together to x: a \(1, 2\), b \(2, 3\)$"):
        list(to_ours(rules, {**fits, "b": numbers(2, 3)}.__getitem__))
    with pytest.raises(WorkError, match="the model has no tensor x"):
        list(to_theirs(rules, {}))
