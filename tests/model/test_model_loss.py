"""The chunked cross-entropy against PyTorch's plain one: values, gradients, memory, number formats."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minigpt.model import GPT, IGNORED, cross_entropy, token_losses

N, C, V = 53, 12, 31


def case(
    n: int = N, dtype: torch.dtype = torch.float32, padding: int = 0, scale: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Random hidden states, head and targets, a third of which are ignored."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(n, C, generator=generator).mul(scale).to(dtype).requires_grad_()
    weight = torch.randn(V + padding, C, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(V, (n,), generator=generator)
    targets[torch.rand(n, generator=generator) < 1 / 3] = IGNORED
    return hidden, weight, targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    logits = F.linear(hidden, weight)[:, :V].float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("chunk", [1, 7, 52, 53, 54, None])
def test_value_and_gradients_equal_the_plain_ones(chunk: int | None, padding: int, softcap: float | None) -> None:
    hidden, weight, targets = case(padding=padding)
    expected = plain(hidden, weight, targets, softcap)
    expected_gradients = torch.autograd.grad(3.7 * expected, (hidden, weight))
    options: dict[str, Any] = {"vocab_size": V, "softcap": softcap, "chunk_tokens": chunk}
    loss = cross_entropy(hidden, weight, targets, **options)
    gradients = torch.autograd.grad(3.7 * loss, (hidden, weight))
    torch.testing.assert_close(loss, expected)
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-5, rtol=1e-5)
    assert not gradients[1][V:].any()
    each = token_losses(hidden, weight, targets, **options)
    assert torch.equal(each.sum(), loss) and not each.requires_grad
    assert not each[targets == IGNORED].any()
    with torch.no_grad():
        assert torch.equal(cross_entropy(hidden, weight, targets, **options), loss)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_by_finite_differences_in_fp64(softcap: float | None) -> None:
    hidden, weight, targets = case(n=9, dtype=torch.float64, padding=2)
    torch.autograd.gradcheck(
        lambda h, w: cross_entropy(h, w, targets[:9], vocab_size=V, softcap=softcap, chunk_tokens=4), (hidden, weight)
    )


def test_only_the_gradients_that_are_wanted() -> None:
    hidden, weight, targets = case()
    cross_entropy(hidden, weight.detach(), targets).backward()
    cross_entropy(hidden.detach(), weight, targets).backward()
    expected = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    torch.testing.assert_close((hidden.grad, weight.grad), expected, atol=1e-5, rtol=1e-5)


def test_used_twice_and_backward_twice() -> None:
    hidden, weight, targets = case()
    expected = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    loss = cross_entropy(hidden, weight, targets, chunk_tokens=10)
    (loss + 2 * loss).backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(hidden.grad, 4 * expected[0], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(weight.grad, 4 * expected[1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("n", [0, N])
def test_nothing_to_predict_is_zero_with_zero_gradients(n: int) -> None:
    hidden, weight, targets = case(n=n)
    loss = cross_entropy(hidden, weight, torch.full_like(targets, IGNORED), chunk_tokens=10)
    loss.backward()
    assert loss.item() == 0.0
    assert hidden.grad is not None and weight.grad is not None
    assert not hidden.grad.any() and not weight.grad.any()


def test_extreme_logits_stay_finite() -> None:
    hidden, weight, targets = case(scale=1e4)
    loss = cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(loss, plain(hidden, weight, targets))
    loss.backward()
    assert hidden.grad is not None and hidden.grad.isfinite().all()


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_never_more_logits_than_a_chunk() -> None:
    tokens, vocabulary, chunk = 1000, 2000, 50
    hidden = torch.randn(tokens, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))
    with Largest() as seen:
        cross_entropy(hidden, weight, targets, chunk_tokens=chunk, softcap=5.0).backward()
    assert seen.numel == chunk * vocabulary
    with Largest() as seen:
        token_losses(hidden, weight, targets, chunk_tokens=chunk)
    assert seen.numel == chunk * vocabulary
    with Largest() as seen:  # the probe does see the plain loss's
        F.cross_entropy(F.linear(hidden, weight), targets).backward()
    assert seen.numel == tokens * vocabulary


def test_chunks_fit_the_budget() -> None:
    """By default: GPT-2's head on the CPU takes 667 tokens at a time, 128 MiB of fp32 logits."""
    with Largest() as seen:
        token_losses(torch.randn(700, 2), torch.randn(50304, 2), torch.zeros(700, dtype=torch.int64))
    assert 120 * 2**20 < 4 * seen.numel <= 128 * 2**20


def test_the_softmax_of_a_chunk_is_taken_in_slices() -> None:
    """On the CPU no fp32 copy of more than 8 MiB of the logits: it would fall out of the cache."""
    hidden = torch.randn(500, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(50304, 8, dtype=torch.bfloat16, requires_grad=True)

    class LargestWide(Largest):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.dtype == torch.float32 and result.shape[1:] == (50304,):
                self.numel = max(self.numel, result.numel())
            return result

    with LargestWide() as seen:
        cross_entropy(hidden, weight, torch.zeros(500, dtype=torch.int64)).backward()
    assert 0 < 4 * seen.numel <= 8 * 2**20


def test_under_bf16_autocast_it_is_the_plain_loss_under_autocast() -> None:
    hidden, weight, targets = case(padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain(hidden, weight, targets)
        loss = cross_entropy(hidden, weight, targets, vocab_size=V, chunk_tokens=20)
        each = token_losses(hidden, weight, targets, vocab_size=V)
    assert loss.dtype == each.dtype == torch.float32
    # the logits are the same bf16 numbers, so the fp32 softmax differs only in the order of sums
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(each.sum(), expected, atol=1e-4, rtol=1e-5)
    truth = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    for gradient, reference in zip(torch.autograd.grad(loss, (hidden, weight)), truth, strict=True):
        assert gradient.dtype == torch.float32
        assert (gradient - reference).norm() < 0.02 * reference.norm()  # bf16 keeps 8 bits: 2^-8 = 0.4 % each


def test_bf16_parameters_get_bf16_gradients() -> None:
    hidden, weight, targets = case(dtype=torch.bfloat16)
    cross_entropy(hidden, weight, targets, chunk_tokens=5).backward()
    truth = torch.autograd.grad(plain(hidden.float(), weight.float(), targets), (hidden, weight))
    for tensor, reference in zip((hidden, weight), truth, strict=True):
        assert tensor.grad is not None and tensor.grad.dtype == torch.bfloat16
        assert (tensor.grad - reference).norm() < 0.02 * reference.norm()


def test_fp16_neither_overflows_before_the_scale_nor_underflows() -> None:
    # a common token: 4,096 rows of 40 add up to 163,840 > 65,504, but their mean is an ordinary fp16 number
    hidden = torch.full((4096, 2), 40.0, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(8, 2, dtype=torch.float16, requires_grad=True)
    (cross_entropy(hidden, weight, torch.zeros(4096, dtype=torch.int64)) / 4096).backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad[0].float(), torch.full((2,), -40 * 7 / 8), atol=0, rtol=1e-3)
    # a confident prediction: the gradient (3e-8) is below fp16's least number, the loss scale brings it back
    hidden = torch.tensor([[4.0]], dtype=torch.float16, requires_grad=True)
    weight = torch.tensor([[1.5], [-1.5]], dtype=torch.float16, requires_grad=True)
    wide_hidden, wide_weight = (t.detach().float().requires_grad_() for t in (hidden, weight))
    target = torch.tensor([0])
    (cross_entropy(hidden, weight, target) * (65536 * 2**-6)).backward()
    (F.cross_entropy(F.linear(wide_hidden, wide_weight), target, reduction="sum") * (65536 * 2**-6)).backward()
    assert hidden.grad is not None and wide_hidden.grad is not None and wide_hidden.grad.abs().item() > 6e-8
    torch.testing.assert_close(hidden.grad.float(), wide_hidden.grad, atol=0, rtol=0.05)


@pytest.mark.parametrize("options", [{}, {"tie_embeddings": False}, {"embedding_size": 8}, {"logit_softcap": 3.0}])
def test_in_a_model_with_tied_weights_and_padded_vocabulary(
    options: dict[str, Any], tiny: Callable[..., GPT], ids: Callable[..., Tensor]
) -> None:
    model, tokens, targets = tiny(vocab_multiple=32, **options), ids(3, 10), ids(3, 10, seed=1)
    targets[0, 4:] = IGNORED
    expected = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum")
    expected.backward()
    reference = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    loss = model(tokens, targets=targets)
    assert loss.dtype == torch.float32 and loss.ndim == 0
    loss.backward()
    torch.testing.assert_close(loss, expected)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, reference[name], atol=2e-5, rtol=1e-4, msg=lambda m, n=name: n + m)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_on_cuda(dtype: torch.dtype) -> None:
    hidden, weight, targets = (tensor.detach().cuda() for tensor in case(padding=1))
    hidden.requires_grad_()
    weight.requires_grad_()
    with torch.autocast("cuda", dtype=dtype):
        loss = cross_entropy(hidden, weight, targets, vocab_size=V, chunk_tokens=20)
    truth = torch.autograd.grad(plain(hidden, weight, targets), (hidden, weight))
    for gradient, reference in zip(torch.autograd.grad(loss, (hidden, weight)), truth, strict=True):
        assert (gradient - reference).norm() < 0.02 * reference.norm()
