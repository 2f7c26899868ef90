"""Losses of single tokens against one forward pass per token, and against the loop of Hugging Face's documentation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.config import ModelConfig, RequestError
from minigpt.evaluation import evaluate_text, per_token, sequence_losses
from minigpt.model import GPT
from minigpt.tokenizer import CharTokenizer, Tokenizer, train_bpe

TEXT = "hello hello world. one two three, café 日本 hello"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([TEXT] * 3, 280, "gpt2", ["<|endoftext|>"])


@pytest.fixture(scope="module")
def model() -> GPT:
    config = ModelConfig(n_layer=1, n_head=2, n_embd=32, context_length=8, vocab_size=300, dropout=0.5, init_std=0.3)
    return GPT(config, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def brute_force(model: GPT, ids: list[int], length: int, stride: int) -> list[float]:
    """Each token in a pass of its own, over the first window (beginning at a multiple of stride) that reaches it."""
    model.eval()
    out = []
    for t in range(1, len(ids)):
        start = next(s for s in range(0, t, stride) if s + length >= t)
        logits = model(torch.tensor([ids[start:t]]))[0, -1]
        out.append(float(F.cross_entropy(logits.double(), torch.tensor(ids[t]))))
    return out


@pytest.mark.parametrize("n", [2, 3, 8, 9, 10, 17, 31])
@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 1), (8, 3), (8, 4), (5, 5), (5, 2), (1, 1)])
@pytest.mark.parametrize("batch_rows", [1, 3])
def test_equals_one_pass_per_token(n: int, length: int, stride: int, batch_rows: int, model: GPT) -> None:
    ids = torch.randint(0, 300, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    found = sequence_losses(model, ids, stride=stride, context_length=length, batch_rows=batch_rows)
    assert found == pytest.approx(brute_force(model, ids, length, stride), rel=1e-4, abs=1e-5)


@torch.no_grad()
def hugging_face_perplexity(model: GPT, ids: Tensor, max_length: int, stride: int) -> float:
    """As in https://huggingface.co/docs/transformers/perplexity: labels masked with -100, shifted by the model."""
    model.eval()
    nll_sum, n_tokens, prev_end = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + max_length, len(ids))
        labels = ids[begin:end].clone()
        labels[: len(labels) - (end - prev_end)] = -100
        logits = model(ids[None, begin:end])[0]
        losses = F.cross_entropy(logits[:-1].double(), labels[1:], ignore_index=-100, reduction="sum")
        nll_sum += float(losses)
        n_tokens += int((labels[1:] != -100).sum())
        prev_end = end
        if end == len(ids):
            break
    return math.exp(nll_sum / n_tokens)


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_equals_the_documented_sliding_window(stride: int, model: GPT) -> None:
    """Their windows of L tokens have L - 1 inputs that predict something, so ours of context L - 1 see the same."""
    ids = torch.randint(0, 300, (60,), generator=torch.Generator().manual_seed(1))
    losses = sequence_losses(model, ids.tolist(), stride=stride, context_length=7)
    assert losses is not None
    assert math.exp(math.fsum(losses) / 59) == pytest.approx(hugging_face_perplexity(model, ids, 8, stride), rel=1e-5)


def test_tokens_of_a_text(model: GPT, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    tokens = per_token(model, tokenizer, TEXT)
    assert tokens is not None
    assert [t.id for t in tokens] == ids and [t.text for t in tokens] == [tokenizer.decode([i]) for i in ids]
    assert tokens[0].nll is None
    assert [t.nll for t in tokens[1:]] == sequence_losses(model, ids)
    text, nll = tokens[1][:2]
    assert isinstance(text, str) and isinstance(nll, float)


def test_from_eot_scores_the_first_token_too(model: GPT, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    tokens = per_token(model, tokenizer, TEXT, from_eot=True, stride=4)
    assert tokens is not None and tokenizer.eot_id is not None
    assert [t.nll for t in tokens] == sequence_losses(model, [tokenizer.eot_id, *ids], stride=4)
    characters = CharTokenizer.from_texts([TEXT])
    with pytest.raises(RequestError, match="no end-of-text token"):
        per_token(model, characters, TEXT, from_eot=True)


@pytest.mark.parametrize("from_eot", [False, True])
def test_summary_of_a_text(from_eot: bool, model: GPT, tokenizer: Tokenizer) -> None:
    tokens = per_token(model, tokenizer, TEXT, from_eot=from_eot)
    found = evaluate_text(model, tokenizer, TEXT, from_eot=from_eot)
    assert tokens is not None and found is not None
    losses = [t.nll for t in tokens if t.nll is not None]
    first = b"" if from_eot else tokenizer.token_bytes(tokens[0].id)
    assert first is not None
    assert found["tokens"] == len(losses) == len(tokens) - (not from_eot)
    assert found["bytes"] == len(TEXT.encode()) - len(first)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses))
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["bits_per_byte"] == pytest.approx(sum(losses) / math.log(2) / found["bytes"])


def test_more_context_changes_only_what_had_less(model: GPT) -> None:
    ids = torch.randint(0, 300, (17,), generator=torch.Generator().manual_seed(3)).tolist()
    quick, careful = sequence_losses(model, ids), sequence_losses(model, ids, stride=1)
    assert quick is not None and careful is not None
    assert quick[:8] == pytest.approx(careful[:8], rel=1e-5)
    assert quick[8] != pytest.approx(careful[8], rel=1e-5)


def test_nothing_is_changed_and_stopping_gives_none(model: GPT, tokenizer: Tokenizer) -> None:
    model.train()
    state = torch.get_rng_state()
    assert evaluate_text(model, tokenizer, TEXT) == evaluate_text(model, tokenizer, TEXT)
    answers = iter([False, True])
    assert evaluate_text(model, tokenizer, TEXT, batch_rows=1, should_stop=lambda: next(answers)) is None
    assert per_token(model, tokenizer, TEXT, should_stop=lambda: True) is None
    assert torch.equal(torch.get_rng_state(), state) and model.training


@pytest.mark.parametrize("text", ["", "h"])
def test_a_text_too_short(text: str, model: GPT, tokenizer: Tokenizer) -> None:
    assert [t.text for t in per_token(model, tokenizer, text) or []] == list(text)
    with pytest.raises(RequestError, match=f"the text has {len(text)} tokens, too few"):
        evaluate_text(model, tokenizer, text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "stride=0 is not possible: it must be 1 to the context length, 8"),
        ({"stride": 9}, "stride=9"),
        ({"context_length": 9}, "context_length=9 is not possible: this model takes 1 to 8"),
        ({"context_length": 4, "stride": 5}, "stride=5"),
    ],
)
def test_impossible_windows(options: dict[str, int], message: str, model: GPT, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match=message):
        evaluate_text(model, tokenizer, TEXT, **options)


def test_a_tokenizer_with_more_ids_than_the_model(model: GPT) -> None:
    large = CharTokenizer.from_texts(["".join(map(chr, range(32, 432)))])
    with pytest.raises(RequestError, match="400 ids but the model only 300"):
        evaluate_text(model, large, TEXT)
