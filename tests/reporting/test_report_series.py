"""The thinned series, the smoothing and the words for numbers, against exact properties."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.reporting.series import Series, smooth
from minigpt.reporting.text import (
    amount,
    decimal,
    duration,
    labels,
    linear_ticks,
    log_ticks,
    printable,
    time_ticks,
)

finite = st.floats(-1e6, 1e6)


def series(values, limit=10_000, every=1):
    made = Series(limit)
    for i, value in enumerate(values, 1):
        made.add(i * every, 100.0 * i, float(i), value)
    return made


@given(st.lists(finite, min_size=1, max_size=300), st.integers(2, 20))
def test_thinning_keeps_extremes_mean_and_number(values, limit):
    made = series(values, limit)
    points = made.points()
    assert len(points) <= 2 * limit
    assert sum(point.count for point in points) == len(values)
    assert min(point.low for point in points) == min(values) and max(point.high for point in points) == max(values)
    assert sum(point.total for point in points) == pytest.approx(sum(values), rel=1e-9, abs=1e-3)
    assert [point.step for point in points] == sorted({point.step for point in points})
    assert points[-1].step == len(values) and made.last == (len(values), values[-1])
    assert made.lowest == (values.index(min(values)) + 1, min(values))
    for point in points:
        assert point.low - 1e-6 <= point.mean <= point.high + 1e-6


def test_few_values_are_kept_as_they_are():
    values = [random.Random(0).uniform(0, 9) for _ in range(500)]
    points = series(values, 400).points()
    assert [(point.step, point.mean) for point in points] == list(enumerate(values, 1))


@given(st.lists(finite, min_size=1, max_size=50))
def test_the_median_is_the_median(values):
    assert series(values).median() == pytest.approx(statistics.median(values))


def test_values_that_are_not_finite_are_kept_apart():
    made = series([1.0, math.nan, 2.0, math.inf, -math.inf, 1e300])
    assert [point.mean for point in made.points()] == [1.0, 2.0]
    assert made.not_finite_count == 4 and [step for step, _, _ in made.not_finite] == [2, 4, 5, 6]


@pytest.mark.parametrize("count", [1, 2, 3, 10, 400])
def test_smoothing_leaves_a_straight_line_alone(count):
    made = series([3 - 0.01 * i for i in range(count)], every=7)
    assert smooth(made.points()) == pytest.approx([point.mean for point in made.points()], abs=1e-9)


def test_smoothing_takes_noise_away_without_lagging():
    draw = random.Random(1)
    true = [2 + 2 * math.exp(-i / 300) for i in range(2000)]
    smoothed = smooth(series([value + draw.gauss(0, 0.1) for value in true], 4000).points())
    errors = [found - value for found, value in zip(smoothed, true, strict=True)]
    assert max(map(abs, errors[300:])) < 0.06  # of noise of 0.1 over a window of some 60 points
    assert abs(statistics.fmean(errors)) < 0.01


def test_smoothing_follows_the_steep_beginning():
    true = [2 + 2 * step**-0.5 for step in range(10, 20_001, 10)]
    points = series(true, 400, every=10).points()
    assert smooth(points) == pytest.approx([point.mean for point in points], abs=0.1)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.booleans())
def test_ticks_are_round_few_and_told_apart(low, span, inside):
    high = low + span
    if high - low < 1e-6 * abs(low):  # a float has no room for ticks there
        return
    ticks = linear_ticks(low, high, 5, inside)
    slack = 1e-6 * (high - low)
    if inside:
        assert all(low - slack <= tick <= high + slack for tick in ticks) and len(ticks) <= 6
    else:
        assert ticks[0] <= low + slack and ticks[-1] >= high - slack and 2 <= len(ticks) <= 8
    if len(ticks) > 1:
        step = ticks[1] - ticks[0]
        assert float(f"{step:.3e}"[0]) in (1, 2, 5) or step == pytest.approx(10 ** round(math.log10(step)))
    if max(map(abs, ticks), default=0) < 1e3 * (high - low):
        assert len(set(labels(ticks))) == len(ticks)


@given(st.floats(1e-9, 1e9), st.floats(30, 1e12))
def test_logarithmic_ticks_lie_inside_and_are_enough(low, ratio):
    ticks = log_ticks(low, low * ratio)
    assert 2 <= len(ticks) <= 9
    assert all(low * 0.999 <= tick <= low * ratio * 1.001 for tick in ticks)


@given(st.floats(0.01, 1e9))
def test_ticks_of_time_are_few_and_inside(seconds):
    ticks, names = time_ticks(seconds, 5)
    assert 2 <= len(ticks) <= 7 and len(set(names)) == len(names)
    assert ticks[0] == 0 and ticks[-1] <= seconds * (1 + 1e-6)


def test_words_for_numbers():
    assert [amount(v) for v in (0, 0.5, 950, 999.6, 28_123, 10_700_000, 1.5e30)] == [
        "0", "0.5", "950", "1k", "28.1k", "10.7M", "1500000Y"]  # fmt: skip
    assert amount(3.21e15, "FLOP") == "3.21 PFLOP"
    assert [duration(v) for v in (0, 9.94, 9.96, 59.4, 59.6, 3599.6, 7380, 2 * 86400, 90_000 * 3)] == [
        "0.0 s", "9.9 s", "10 s", "59 s", "1 min 00 s", "1 h 00 min", "2 h 03 min", "2 d 0 h", "3 d 3 h"]  # fmt: skip
    assert [decimal(v) for v in (2.28904, 0, 1e-5, math.nan, math.inf, -math.inf)] == [
        "2.2890", "0.0000", "1e-5", "NaN", "∞", "−∞"]  # fmt: skip
    assert labels([0, 5000, 10_000]) == ["0", "5k", "10k"] and labels([0, 2e-4, 4e-4]) == ["0", "2e-4", "4e-4"]
    assert labels([2.0, 2.5, 3.0]) == ["2.0", "2.5", "3.0"] and labels([0, 500, 1000]) == ["0", "500", "1,000"]
    assert time_ticks(300, 5) == ([0, 60, 120, 180, 240, 300], ["0", "1 min", "2 min", "3 min", "4 min", "5 min"])


def test_what_a_page_cannot_hold_is_replaced():
    assert printable("a\x00b\ud800c\u202ed\te\nf\r\ng") == "a\ufffdb\ufffdc\ufffdd\te\nf\ng"
