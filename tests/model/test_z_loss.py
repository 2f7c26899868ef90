"""The z-loss against autograd through the plain logits, and that nothing but gradients sees it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.model import IGNORED, cross_entropy
from minigpt.model.loss import ZLoss

N, C, V, WEIGHT = 23, 8, 19, 0.3


def case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(N, C, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(V + 3, C, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    targets[::4] = IGNORED
    return hidden, head, targets


def plain(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """(cross-entropy, sum of log(Z)^2), by autograd."""
    logits = F.linear(hidden, head)[:, :V]
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    squares = torch.logsumexp(logits, -1).square()[targets != IGNORED].sum()
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"), squares


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("chunk", [None, 5])
def test_gradients_are_those_of_the_sum_of_both_and_the_loss_is_not(chunk: int | None, softcap: float | None) -> None:
    hidden, head, targets = case()
    loss, squares = plain(hidden, head, targets, softcap)
    expected = torch.autograd.grad(1.7 * (loss + WEIGHT * squares), (hidden, head))
    z_loss = ZLoss(WEIGHT)
    found = cross_entropy(hidden, head, targets, vocab_size=V, softcap=softcap, chunk_tokens=chunk, z_loss=z_loss)
    gradients = torch.autograd.grad(1.7 * found, (hidden, head))
    torch.testing.assert_close(found, loss)
    torch.testing.assert_close(gradients, expected)
    assert z_loss.squares is not None
    torch.testing.assert_close(z_loss.squares, squares.detach())


def test_of_several_passes_it_is_the_sum_until_it_is_cleared() -> None:
    hidden, head, targets = case()
    z_loss, (_, squares) = ZLoss(WEIGHT), plain(hidden, head, targets, None)
    for _ in range(3):
        cross_entropy(hidden, head, targets, vocab_size=V, z_loss=z_loss)
    assert z_loss.squares is not None
    torch.testing.assert_close(z_loss.squares, 3 * squares.detach())
    z_loss.clear()
    assert z_loss.squares is None


def test_without_a_weight_or_without_gradients_there_is_none() -> None:
    hidden, head, targets = case(torch.float32)
    none, some = ZLoss(), ZLoss(WEIGHT)
    bare = torch.autograd.grad(cross_entropy(hidden, head, targets, vocab_size=V), (hidden, head))
    same = torch.autograd.grad(cross_entropy(hidden, head, targets, vocab_size=V, z_loss=none), (hidden, head))
    assert all(torch.equal(a, b) for a, b in zip(bare, same, strict=True)) and none.squares is None
    with torch.no_grad():
        cross_entropy(hidden, head, targets, vocab_size=V, z_loss=some)
    assert some.squares is None


def test_it_draws_the_logits_back(tiny, ids) -> None:
    """What it is for: with it, trained logits drift less."""
    found = []
    for weight in (0.0, 1.0):
        model = tiny().train()
        model.z_loss.weight = weight
        batch, optimizer = ids(4, 16), torch.optim.SGD(model.parameters(), 1e-2)
        for _ in range(20):
            model.z_loss.clear()
            (model(batch, targets=batch) / batch.numel()).backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            found.append(float(torch.logsumexp(model(batch), -1).square().mean()))
    assert found[1] < 0.9 * found[0]
