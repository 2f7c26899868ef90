"""Other sizes for a model: what must stay the same stays the same."""

import pytest
import torch

from minigpt.config import ModelConfig, RequestError
from minigpt.interop.resize import resize, stretch_rows
from minigpt.model import GPT

SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_inner": 32, "vocab_size": 10, "context_length": 8}
IDS = torch.arange(8)[None]


def same(new: torch.Tensor, old: torch.Tensor) -> None:
    """The same sums; a matrix of another width may add them up in another order, which costs some last digits."""
    torch.testing.assert_close(new, old, rtol=1e-5, atol=1e-4)


def resized(model: GPT, **sizes: int) -> tuple[GPT, list[str]]:
    config, tensors, notes = resize(model.config, iter(model.state_dict().items()), **sizes)
    new = GPT(config)
    new.load_state_dict(dict(tensors))
    return new.eval(), notes


def drawn(**keys) -> GPT:
    model = GPT(ModelConfig(**SMALL | keys)).eval()
    for parameter in model.parameters():  # positions too, which begin as zeros in some inits
        torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


@pytest.fixture(params=[{}, {"tie_embeddings": False}, {"vocab_multiple": 8}, {"embedding_size": 8},
                        {"speed": {"value_embeddings": "all"}}], ids=str)  # fmt: skip
def model(request) -> GPT:
    return drawn(**request.param)


@torch.no_grad()
def test_new_tokens_are_the_mean_and_leave_the_others_alone(model):
    new, notes = resized(model, vocab_size=13, vocab_multiple=4)
    assert new.embed.weight.size(0) == 16 and notes == ["3 new tokens begin as the mean of the 10 old"]
    same(new(IDS)[..., :10], model(IDS))
    torch.testing.assert_close(new.embed.weight[10:13], model.embed.weight[:10].mean(0).expand(3, -1))
    assert not new.embed.weight[13:].any()


@torch.no_grad()
def test_padding_changes_nothing(model):
    new, notes = resized(model, vocab_multiple=64)
    assert new.embed.weight.size(0) == 64 and notes == []
    same(new(IDS), model(IDS))
    back, _ = resized(new, vocab_multiple=model.config.vocab_multiple)
    same(back(IDS), model(IDS))


@torch.no_grad()
def test_fewer_tokens_are_the_first_ones(model):
    new, notes = resized(model, vocab_size=8)
    assert notes == ["the last 2 of 10 tokens are gone"]
    same(new(IDS), model(IDS)[..., :8])


@torch.no_grad()
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_a_shorter_context_computes_the_same(position):
    model = drawn(position=position)
    new, notes = resized(model, context_length=5)
    assert new.config.context_length == 5 and notes == []
    same(new(IDS[:, :5]), model(IDS[:, :5]))


@torch.no_grad()
def test_a_longer_context_of_rotary_positions_is_the_same_and_goes_on():
    model = drawn()
    new, notes = resized(model, context_length=16)
    same(new(IDS), model(IDS))
    assert new(torch.zeros(1, 16, dtype=torch.int64)).isfinite().all()
    assert "from 8 to 16 tokens: it has never seen such distant tokens" in notes[0]


def test_a_table_is_stretched_along_straight_lines():
    new, notes = resized(drawn(position="learned"), context_length=15)
    assert "stretched by linear interpolation" in notes[0]
    old = drawn(position="learned").position.weight
    torch.testing.assert_close(new.position.weight[::2], old)  # 15 = 2 * 8 - 1: every second row is an old one
    torch.testing.assert_close(new.position.weight[1::2], (old[1:] + old[:-1]) / 2)
    table = torch.randn(5, 3)
    as_torch = torch.nn.functional.interpolate(table.T[None], size=12, mode="linear", align_corners=True)[0].T
    torch.testing.assert_close(stretch_rows(table, 12), as_torch)
    assert torch.equal(stretch_rows(table[:1], 3), table[:1].expand(3, -1))


@pytest.mark.parametrize("key", ["context_length", "vocab_size", "vocab_multiple"])
def test_impossible_sizes_are_one_sentence(key):
    with pytest.raises(RequestError, match=f"{key}=0 is not possible: it must be at least 1"):
        resize(drawn().config, iter(()), **{key: 0})
