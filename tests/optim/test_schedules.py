"""Learning rates against formulas written down independently: nanoGPT's, transformers', and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.config import load_config
from minigpt.optim import learning_rate

PEAK = 1e-3


def settings(kind, warmup=0, low=0.0, **more):
    schedule = {"kind": kind, "warmup_steps": warmup, **({"min_lr": low} if low else {}), **more}
    return load_config({"optimizer": {"lr": PEAK}, "schedule": schedule})[0]


def nanogpt(iteration, warmup, total, low):
    """get_lr of karpathy/nanoGPT's train.py, from its description: `iteration` counts from 0."""
    if iteration < warmup:
        return PEAK * (iteration + 1) / (warmup + 1)
    if iteration > total:
        return low
    ratio = (iteration - warmup) / (total - warmup)
    return low + 0.5 * (1 + math.cos(math.pi * ratio)) * (PEAK - low)


@given(total=st.integers(2, 500), warmup=st.integers(0, 50), low=st.sampled_from([0.0, 1e-4, 1e-3]))
def test_cosine_is_nanogpts(total, warmup, low):
    if warmup >= total:
        return
    config = settings("cosine", warmup, low)
    for step in range(1, total + 1):
        assert learning_rate(step, total, config) == pytest.approx(nanogpt(step - 1, warmup, total, low), rel=1e-12)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_decay_to_zero_is_that_of_transformers(kind):
    """Its warm-up begins with a step of rate zero and ours does not: compared after the warm-up."""
    transformers = pytest.importorskip("transformers")
    make = {"cosine": transformers.get_cosine_schedule_with_warmup,
            "linear": transformers.get_linear_schedule_with_warmup}[kind]  # fmt: skip
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = make(optimizer, num_warmup_steps=10, num_training_steps=80)
    theirs = []
    for _ in range(80):
        theirs.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    ours = [learning_rate(step, 80, settings(kind, 10)) for step in range(1, 81)]
    assert ours[10:] == pytest.approx(theirs[10:], rel=1e-12)


def test_warmup_rises_evenly_from_above_zero_to_just_below_the_peak():
    rates = [learning_rate(step, 100, settings("constant", 4)) for step in range(1, 8)]
    assert rates == pytest.approx([PEAK * share for share in (0.2, 0.4, 0.6, 0.8, 1, 1, 1)], rel=1e-12)


def test_linear_reaches_the_floor_one_step_after_the_last():
    rates = [learning_rate(step, 4, settings("linear", low=2e-4)) for step in range(1, 6)]
    assert rates == pytest.approx([1e-3, 8e-4, 6e-4, 4e-4, 2e-4], rel=1e-12)


def test_warmup_stable_decay():
    """100 steps, 10 of warm-up, the last fifth decays to the floor: flat at the peak in between."""
    config = settings("wsd", 10, 1e-4, decay_fraction=0.2)
    rates = {step: learning_rate(step, 100, config) for step in range(1, 101)}
    assert all(rates[step] == PEAK for step in range(11, 82))
    for step in range(81, 101):
        assert rates[step] == pytest.approx(PEAK - (PEAK - 1e-4) * (step - 81) / 20, rel=1e-12)


def test_warmup_stable_decay_with_all_of_it_decay_is_linear():
    wsd, linear = settings("wsd", 10, decay_fraction=1.0), settings("linear", 10)
    assert all(learning_rate(s, 50, wsd) == learning_rate(s, 50, linear) for s in range(1, 51))


@given(kind=st.sampled_from(["cosine", "linear", "wsd", "constant"]), warmup=st.integers(0, 300),
       total=st.integers(1, 200), step=st.integers(1, 250))  # fmt: skip
def test_always_positive_and_never_above_the_peak(kind, warmup, total, step):
    """Also with a warm-up longer than the run, and beyond its end."""
    config = settings(kind, warmup)
    rate = learning_rate(step, total, config)
    assert 0 <= rate <= PEAK and (rate > 0 or step > total)
