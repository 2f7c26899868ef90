"""The running average of the weights."""

import pytest
import torch

from minigpt.optim import Average


def drifting(steps, decay):
    """Weights that move on at each step, their average, and what they were."""
    generator = torch.Generator().manual_seed(0)
    weights = {"a": torch.zeros(3, 2), "b": torch.zeros(4)}
    average = Average(weights, decay)
    seen = []
    for step in range(1, steps + 1):
        for weight in weights.values():
            weight += torch.randn(weight.shape, generator=generator)
        average.update(step)
        seen.append({name: weight.clone() for name, weight in weights.items()})
    return weights, average, seen


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999])
def test_it_is_the_weighted_sum_of_all_weights(decay):
    """In closed form: weight t counts (1 - d_t) times all later d, the first one what is left."""
    _, average, seen = drifting(40, decay)
    rates = [min(decay, (1 + t) / (10 + t)) for t in range(1, 41)]
    total = torch.zeros(3, 2, dtype=torch.float64)
    for t, (rate, weights) in enumerate(zip(rates, seen, strict=True)):
        later = torch.tensor(rates[t + 1 :], dtype=torch.float64).prod()
        total += (1 - rate) * later * weights["a"].double()
    torch.testing.assert_close(average.average["a"].double(), total, rtol=1e-5, atol=1e-5)


def test_swapping_changes_the_weights_in_place_and_back():
    weights, average, seen = drifting(5, 0.9)
    kept, tensor = average.average["a"].clone(), weights["a"]
    with average.swapped():
        assert weights["a"] is tensor and torch.equal(tensor, kept)
        assert torch.equal(average.average["a"], seen[-1]["a"])
    assert torch.equal(tensor, seen[-1]["a"]) and torch.equal(average.average["a"], kept)
    with pytest.raises(KeyError), average.swapped():
        raise KeyError
    assert torch.equal(tensor, seen[-1]["a"])


def test_it_goes_on_bit_for_bit():
    weights, average, _ = drifting(5, 0.9)
    again = Average({name: weight.clone() for name, weight in weights.items()}, 0.9)
    for name, tensor in average.average.items():
        again.average[name].copy_(tensor)
    for step in (6, 7):
        for one in (average, again):
            for weight in one.weights.values():
                weight.mul_(1.1)
            one.update(step)
    assert all(torch.equal(average.average[name], again.average[name]) for name in weights)
    again.restart()
    assert all(torch.equal(again.average[name], again.weights[name]) for name in weights)
