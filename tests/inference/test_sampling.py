"""Filters against transformers' logits processors, draws against the distribution that they should follow."""

import math

import pytest
import torch

from minigpt.config import GenerationConfig
from minigpt.inference import sampling

B, V = 5, 37


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(B, V, generator=torch.Generator().manual_seed(0)) * 3


def _seen(ids: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(ids), V, dtype=torch.bool).scatter(1, ids, True)


def test_repetition_penalty_is_transformers(logits: torch.Tensor) -> None:
    processors = pytest.importorskip("transformers.generation.logits_process")
    ids = torch.randint(0, V, (B, 9), generator=torch.Generator().manual_seed(1))
    for penalty in (0.7, 1.3, 5.0):
        expected = processors.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
        assert torch.equal(sampling.repetition_penalty(logits, _seen(ids), penalty), expected)


@pytest.mark.parametrize(
    ("ours", "theirs", "values"),
    [
        ("temperature", "TemperatureLogitsWarper", [0.1, 0.8, 2.5]),
        ("top_k", "TopKLogitsWarper", [1, 2, 10, V, 1000]),
        ("top_p", "TopPLogitsWarper", [0.01, 0.5, 0.9, 0.999]),
        ("min_p", "MinPLogitsWarper", [0.0, 0.05, 0.5, 1.0]),
    ],
)
def test_each_filter_is_transformers(ours: str, theirs: str, values: list[float], logits: torch.Tensor) -> None:
    processors = pytest.importorskip("transformers.generation.logits_process")
    for value in values:
        expected = getattr(processors, theirs)(value)(None, logits)
        found = getattr(sampling, ours)(logits, value)
        assert torch.equal(found.isinf(), expected.isinf())
        # Softmax, because ours is shifted by a constant per row; 1e-6 is a few roundings of fp32.
        torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), rtol=1e-6, atol=1e-7)


def test_all_filters_together_in_the_order_of_transformers_generate(logits: torch.Tensor) -> None:
    pytest.importorskip("transformers")
    from transformers import GenerationConfig as TheirConfig
    from transformers import GPT2Config, GPT2LMHeadModel

    ids = torch.randint(0, V, (B, 9), generator=torch.Generator().manual_seed(2))
    settings = {"temperature": 1.7, "top_k": 12, "top_p": 0.8, "min_p": 0.1, "repetition_penalty": 1.5}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=8, n_layer=1, n_head=1))
    processors = model._get_logits_processor(
        TheirConfig(do_sample=True, **settings), input_ids_seq_length=9, encoder_input_ids=ids
    )
    expected = processors(ids, logits)
    found = sampling.filter_logits(logits, _seen(ids), GenerationConfig(**settings))
    assert torch.equal(found.isinf(), expected.isinf())
    assert 1 < (~found.isinf()).sum(-1).max() < 12  # each filter had something to do
    torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), rtol=1e-6, atol=1e-7)


def test_filters_leave_their_argument_alone(logits: torch.Tensor) -> None:
    before = logits.clone()
    config = GenerationConfig(temperature=0.5, top_k=3, top_p=0.5, min_p=0.1, repetition_penalty=2.0)
    sampling.filter_logits(logits, torch.ones(B, V, dtype=torch.bool), config)
    assert torch.equal(logits, before)


def test_tiny_temperature_is_greedy_and_never_nan(logits: torch.Tensor) -> None:
    for value in (1e-6, 1e-30, 1e-320):
        assert torch.equal(sampling.temperature(logits, value).softmax(-1).argmax(-1), logits.argmax(-1))


def test_temperature_zero_is_greedy_and_needs_no_randomness(logits: torch.Tensor) -> None:
    config = GenerationConfig(temperature=0.0, top_k=5)
    assert torch.equal(
        sampling.next_tokens(logits, _seen(torch.zeros(B, 0, dtype=torch.long)), config, []), logits.argmax(-1)
    )


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, -math.inf, 0.0, -3.0]])
    generator = sampling.sample_generator(7, 0)
    n = 20_000
    drawn = sampling.draw(logits.expand(n, -1), [generator] * n)
    observed = torch.bincount(drawn, minlength=5).double()
    expected = logits[0].double().softmax(-1) * n
    possible = expected > 0
    assert observed[2] == 0
    # chi-square with 3 degrees of freedom: 21.1 is exceeded with probability 1e-4
    assert ((observed - expected)[possible] ** 2 / expected[possible]).sum() < 21.1


def test_a_token_of_probability_zero_is_never_drawn_at_the_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.tensor([[-math.inf, 1.0, 2.0, -math.inf]])
    for edge, token in ((0.0, 1), (1.0, 2)):  # 1.0 stands for a product that rounded up to the total
        monkeypatch.setattr(torch, "rand", lambda *a, edge=edge, **k: torch.full((1, 1), edge, dtype=torch.float64))
        assert sampling.draw(logits, [torch.Generator()]).tolist() == [token]


def test_draws_are_the_generators_own(logits: torch.Tensor) -> None:
    state = torch.get_rng_state()
    first = sampling.draw(logits, [sampling.sample_generator(3, i) for i in range(B)])
    torch.manual_seed(99)
    again = sampling.draw(logits, [sampling.sample_generator(3, i) for i in range(B)])
    alone = [sampling.draw(logits[i : i + 1], [sampling.sample_generator(3, i)]) for i in range(B)]
    torch.set_rng_state(state)
    assert torch.equal(first, again)
    assert torch.equal(first, torch.cat(alone))
    sampling.draw(logits, [sampling.sample_generator(3, i) for i in range(B)])
    assert torch.equal(torch.get_rng_state(), state)


def test_different_seeds_and_samples_differ() -> None:
    firsts = {
        torch.rand(1, generator=sampling.sample_generator(s, i)).item() for s in (-1, 0, 1, 2**70) for i in range(50)
    }
    assert len(firsts) == 200
