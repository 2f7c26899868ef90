"""The blockwise attention against PyTorch's own, in fp64, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.model.attend import Attend
from minigpt.model.causal_attention import KEEP_TOKENS, LARGEST_BLOCK, SMALLEST_BLOCK, causal_attention


def heads(B: int, T: int, H: int, K: int, D: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(B + T + H + K + D)
    return [torch.randn(B, T, n, D, generator=generator, dtype=torch.float64).to(dtype) for n in (H, K, K, H)]


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)


LENGTHS = [1, 2, SMALLEST_BLOCK, SMALLEST_BLOCK + 1, KEEP_TOKENS, KEEP_TOKENS + 1, 300, LARGEST_BLOCK * 4 + 7]


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize(("H", "K"), [(3, 3), (4, 2), (6, 1)])
def test_values_and_gradients_are_pytorchs(T: int, H: int, K: int) -> None:
    *inputs, dy = heads(2, T, H, K, 8)
    mine, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    y, expected = causal_attention(*mine), reference(*theirs)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    for a, b in zip(torch.autograd.grad(y, mine, dy), torch.autograd.grad(expected, theirs, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("K", [1, 2])
def test_gradients_by_finite_differences(K: int) -> None:
    inputs = [x.requires_grad_() for x in heads(1, SMALLEST_BLOCK + 2, 2, K, 2)[:3]]
    assert torch.autograd.gradcheck(causal_attention, inputs, fast_mode=True)


def test_strided_and_uncopied_inputs() -> None:
    """As the model gives them: parts of one tensor."""
    packed = torch.randn(2, 70, 3 * 4, 8, dtype=torch.float64)
    q, k, v = packed.split(4, dim=2)
    torch.testing.assert_close(causal_attention(q, k, v), reference(q, k, v), rtol=1e-10, atol=1e-12)


def test_bf16_is_as_near_to_the_truth_as_bf16_can_be() -> None:
    """bf16 keeps 8 bits: 2^-8 = 0.4 % a rounding. Scores are rounded once more than in the fused kernel."""
    exact = heads(2, 256, 4, 4, 64)
    rounded = [x.to(torch.bfloat16).requires_grad_() for x in exact[:3]]
    truth = [x.detach().double().requires_grad_() for x in rounded]
    y, expected = causal_attention(*rounded), reference(*truth)
    dy = exact[3].to(torch.bfloat16)
    gradients = torch.autograd.grad(y, rounded, dy), torch.autograd.grad(expected, truth, dy.double())
    for mine, right in [(y, expected), *zip(*gradients, strict=True)]:
        assert float((mine.double() - right).detach().norm() / right.detach().norm()) < 2**-7


def test_long_contexts_keep_no_weights() -> None:
    """What autograd keeps grows with T, not with its square."""

    def kept(T: int) -> int:
        q, k, v, _ = heads(1, T, 2, 2, 4, torch.float32)
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            causal_attention(q.requires_grad_(), k, v)
        return sum(sizes)

    assert kept(4 * KEEP_TOKENS) == 2 * kept(2 * KEEP_TOKENS)


def test_the_model_gives_the_same_with_either_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(n_layer=2, n_head=4, n_kv_head=2, n_embd=32, context_length=96, vocab_size=50)
    model = GPT(config, generator=torch.Generator().manual_seed(0)).double()
    ids = torch.randint(50, (3, 96), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fused = model(ids)
        monkeypatch.setattr(Attend, "_blockwise", lambda self, q, v, span, dropout: True)
        blockwise = model(ids)
    torch.testing.assert_close(blockwise, fused, rtol=1e-9, atol=1e-10)


def by_document(q: Tensor, k: Tensor, v: Tensor, documents: Tensor) -> Tensor:
    """Each document of each row alone."""
    y = torch.empty_like(q)
    for b, row in enumerate(documents):
        for number in row.unique():
            at = row == number
            y[b, at] = reference(*(x[b : b + 1, at] for x in (q, k, v)))[0]
    return y


@pytest.mark.parametrize("T", [1, SMALLEST_BLOCK + 1, 300, KEEP_TOKENS + 1])
@pytest.mark.parametrize(("H", "K"), [(3, 3), (4, 2)])
def test_documents_are_as_if_alone(T: int, H: int, K: int) -> None:
    *inputs, dy = heads(2, T, H, K, 8)
    starts = torch.rand(2, T, generator=torch.Generator().manual_seed(T)) < 0.05
    documents = starts.cumsum(1)
    mine, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    y, expected = causal_attention(*mine, documents), by_document(*theirs, documents)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    for a, b in zip(torch.autograd.grad(y, mine, dy), torch.autograd.grad(expected, theirs, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("given", [False, True], ids=["positions restart", "positions go on"])
def test_a_model_in_bf16_masks_documents_as_in_fp32(given: bool) -> None:
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, context_length=100, vocab_size=50))
    ids = torch.randint(50, (2, 100), generator=torch.Generator().manual_seed(1))
    documents = (torch.arange(100) // 17).expand(2, -1)
    positions = torch.arange(100).expand(2, -1) if given else None
    exact = model(ids, document_ids=documents, positions=positions)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(ids, document_ids=documents, positions=positions)
    assert float((rounded - exact).detach().norm() / exact.detach().norm()) < 2**-5


@pytest.mark.parametrize("T", [2, SMALLEST_BLOCK + 1, 300, KEEP_TOKENS + 1])
@pytest.mark.parametrize(
    ("window", "softcap", "scale"),
    [(1, None, None), (7, None, 0.5), (100, 3.0, None), (None, 2.0, 0.7), (600, 1.0, 1.0)],
)
@pytest.mark.parametrize("packed", [False, True])
def test_windows_caps_and_scales(
    T: int, window: int | None, softcap: float | None, scale: float | None, packed: bool
) -> None:
    """Against all scores at once; values narrower than keys; gradients of all arguments."""
    q, k, v, dy = heads(2, T, 4, 2, 8)
    v, dy = v[..., :5], dy[..., :5]
    documents = (torch.rand(2, T, generator=torch.Generator().manual_seed(T)) < 0.02).cumsum(1) if packed else None

    def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = q.transpose(1, 2), *(x.transpose(1, 2).repeat_interleave(2, dim=1) for x in (k, v))
        scores = q @ k.mT * (8**-0.5 if scale is None else scale)
        scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
        past = torch.arange(T)[:, None] - torch.arange(T)
        seen = (past >= 0) & (past < (window or T))
        if documents is not None:
            seen = seen & (documents[:, :, None] == documents[:, None, :])[:, None]
        return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2)

    mine, theirs = ([x.clone().requires_grad_() for x in (q, k, v)] for _ in range(2))
    y = causal_attention(*mine, documents, scale=scale, softcap=softcap, window=window)
    expected = written_out(*theirs)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    for a, b in zip(torch.autograd.grad(y, mine, dy), torch.autograd.grad(expected, theirs, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_a_window_computes_only_what_it_sees() -> None:
    """Operations grow with T times the window, not with the square of T."""

    def operations(T: int, window: int | None) -> int:
        q, k, v, _ = heads(1, T, 2, 2, 4, torch.float32)
        with FlopCounterMode(display=False) as counter:
            causal_attention(q, k, v, window=window)
        return counter.get_total_flops()

    assert operations(2048, 64) < 2.2 * operations(1024, 64) < 0.5 * operations(1024, None)
