"""The loop of generation, on a stand-in whose logits are exact (see conftest) and a short byte-level tokenizer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from minigpt.config import GenerationConfig, RequestError, WorkError
from minigpt.inference import Generation, generate, generate_stream, start_token
from minigpt.inference.sampling import next_tokens, sample_generator
from minigpt.tokenizer import CharTokenizer, Tokenizer, train_bpe

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["hello hello world. one two three"] * 3, 270, "gpt2", ["<|endoftext|>"])


def by_hand(
    model: Any, prompt: list[int], config: GenerationConfig, sample: int, vocab: int | None = None
) -> list[int]:
    """One row without batch, cache or engine: the window rule in its plainest form."""
    generator = sample_generator(config.seed or 0, sample)
    context = model.config.context_length
    tokens, window = list(prompt), list(prompt[-context:])
    for _ in range(config.max_new_tokens):
        logits: Tensor = model.function(window)[None, :vocab]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[0, [t for t in tokens if t < logits.shape[1]]] = True
        token = int(next_tokens(logits, seen, config, [generator]))
        tokens.append(token)
        window.append(token)
        if len(window) > context:
            window = window[-max(1, context // 2) :]
    return tokens[len(prompt) :]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.0}, {"top_k": 5, "temperature": 0.7}, {"repetition_penalty": 1.8, "min_p": 0.05}]
)
def test_each_row_is_what_it_would_be_alone(options: dict[str, Any], random_model: Make) -> None:
    """Ragged prompts, several samples, full contexts, a prompt beyond the context: every row equals the plain loop."""
    model = random_model()
    config = GenerationConfig(max_new_tokens=40, num_samples=3, seed=11, **options)
    prompts = [[3], [1, 2, 3, 4, 5, 6, 7], list(range(16)), list(range(40))]
    found = generate(model, None, prompts, config)
    expected = [by_hand(model, prompt, config, sample) for prompt in prompts for sample in range(3)]
    assert [g.ids for g in found] == expected
    assert {g.finish_reason for g in found} == {"length"}
    assert [g.prompt_tokens_dropped for g in found[::3]] == [0, 0, 0, 24]


@pytest.mark.parametrize("context_length", [1, 2, 3])
def test_tiny_contexts(context_length: int, random_model: Make) -> None:
    model = random_model(context_length=context_length)
    config = GenerationConfig(max_new_tokens=9, seed=0)
    assert generate(model, None, [[1, 2]], config)[0].ids == by_hand(model, [1, 2], config, 0)


def test_rows_that_end_leave_the_others_as_they_are(random_model: Make) -> None:
    model = random_model()
    config = GenerationConfig(max_new_tokens=60, num_samples=8, seed=5)
    found = generate(model, None, [[1], [2, 3]], config, stop_ids=[7, 8])
    lengths = set()
    for row, generation in enumerate(found):
        alone = by_hand(model, [[1], [2, 3]][row // 8], config, row % 8)
        end = next((i for i, token in enumerate(alone) if token in (7, 8)), len(alone))
        assert generation.ids == alone[:end]
        assert generation.finish_reason == ("stop" if end < len(alone) else "length")
        lengths.add(end)
    assert len(lengths) > 4


def test_samples_depend_on_seed_and_index_only(random_model: Make) -> None:
    model = random_model()
    few = generate(model, None, [[1]], GenerationConfig(seed=3, num_samples=2, max_new_tokens=20))
    many = generate(model, None, [[9, 9], [1]], GenerationConfig(seed=3, num_samples=5, max_new_tokens=20))
    assert many[5:7] == few
    assert len({tuple(g.ids) for g in many[5:]}) == 5
    other = generate(model, None, [[1]], GenerationConfig(seed=4, num_samples=2, max_new_tokens=20))
    assert other[0].ids != few[0].ids


def test_without_a_seed_texts_differ_and_the_global_random_state_is_left_alone(random_model: Make) -> None:
    model = random_model()
    state = torch.get_rng_state()
    config = GenerationConfig(max_new_tokens=20)
    assert generate(model, None, [[1]], config)[0].ids != generate(model, None, [[1]], config)[0].ids
    assert torch.equal(torch.get_rng_state(), state)


def test_the_modes_of_all_modules_are_kept(random_model: Make) -> None:
    model = random_model()
    model.frozen = torch.nn.Dropout().eval()
    model.train(True)
    model.frozen.eval()
    generate(model, None, [[1]], GenerationConfig(max_new_tokens=3))
    assert model.training and not model.frozen.training


def test_each_prompt_is_read_once_and_then_a_token_at_a_time(random_model: Make) -> None:
    model = random_model(context_length=64)
    generate(model, None, [list(range(30))], GenerationConfig(max_new_tokens=20, num_samples=4))
    assert model.reads == 30 + 19


# --- text


def test_end_token_stops_and_is_not_in_the_text(script: Make, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello world")
    model = script([*ids, tokenizer.eot_id, *ids])
    assert generate(model, tokenizer, [[1]], GenerationConfig()) == [Generation("hello world", ids, "stop")]
    events = [e for step in generate_stream(model, tokenizer, [[1]], GenerationConfig()) for e in step]
    assert [e.token for e in events] == [*ids, tokenizer.eot_id]
    assert [e.finish_reason for e in events] == [None] * len(ids) + ["stop"]


def test_other_end_tokens_instead(script: Make, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hello")
    model = script([tokenizer.eot_id, *ids, 5, 5, 5])
    config = GenerationConfig(max_new_tokens=20)
    assert generate(model, tokenizer, [[1]], config, stop_ids=[5])[0].text == "<|endoftext|>hello"
    assert generate(model, tokenizer, [[1]], config, stop_ids=[])[0].finish_reason == "length"


def test_stop_string_across_tokens(script: Make, tokenizer: Tokenizer) -> None:
    model = script(tokenizer.encode("one two three, hello world"))
    config = GenerationConfig(stop=["ee, h", "nowhere"])
    events = [e for step in generate_stream(model, tokenizer, [[1]], config) for e in step]
    assert "".join(e.text for e in events) == "one two thr"
    assert events[-1].finish_reason == "stop"
    found = generate(model, tokenizer, [[1]], config)[0]
    assert found.text == "one two thr" and tokenizer.decode(found.ids).startswith("one two three, h")


def test_length_ends_with_what_was_held_back(script: Make, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("hé")
    model = script(ids)
    found = generate(model, tokenizer, [[1]], GenerationConfig(max_new_tokens=len(ids) - 1))[0]
    assert found == Generation("h\ufffd", ids[:-1], "length")
    found = generate(model, tokenizer, [[1]], GenerationConfig(max_new_tokens=len(ids), stop=["é!"]))[0]
    assert found == Generation("hé", ids, "length")


@pytest.mark.parametrize("stop", [[], ["e", " w"], ["th", "\ufffd"]])
def test_deltas_of_every_row_concatenate_to_its_text(stop: list[str], random_model: Make, tokenizer: Tokenizer) -> None:
    model = random_model(vocab_size=tokenizer.vocab_size)
    config = GenerationConfig(max_new_tokens=30, num_samples=6, seed=2, stop=stop)
    whole = generate(model, tokenizer, [[1], [2, 3]], config)
    texts = [""] * 12
    last = [0] * 12
    for step in generate_stream(model, tokenizer, [[1], [2, 3]], config):
        for event in step:
            texts[event.row] += event.text
            last[event.row] += event.finish_reason is not None
    assert texts == [g.text for g in whole] and last == [1] * 12
    for g in whole:
        assert tokenizer.decode(g.ids).startswith(g.text)
        if g.finish_reason == "length":
            assert tokenizer.decode(g.ids) == g.text


# --- beginnings


def test_empty_prompt(random_model: Make, tokenizer: Tokenizer) -> None:
    assert start_token(tokenizer) == tokenizer.eot_id
    with_newline, without = CharTokenizer.from_texts(["ab\n"]), CharTokenizer.from_texts(["ab"])
    assert start_token(with_newline) == with_newline.encode("\n")[0]
    assert start_token(without) == 0 and start_token(None) == 0
    model, config = random_model(vocab_size=tokenizer.vocab_size), GenerationConfig(seed=1, max_new_tokens=10)
    assert generate(model, tokenizer, [[]], config) == generate(model, tokenizer, [[start_token(tokenizer)]], config)


def test_a_prompt_beyond_the_context_is_said(random_model: Make, caplog: pytest.LogCaptureFixture) -> None:
    generate(random_model(), None, [list(range(20))], GenerationConfig(max_new_tokens=1))
    assert "20 tokens" in caplog.text and "newest 16" in caplog.text


def test_no_prompts(random_model: Make) -> None:
    assert generate(random_model(), None, [], GenerationConfig()) == []


# --- what cannot work


def test_ids_beyond_the_tokenizers_are_never_drawn(random_model: Make, tokenizer: Tokenizer) -> None:
    model = random_model(vocab_size=5000)
    config = GenerationConfig(max_new_tokens=50, seed=0, repetition_penalty=1.2)
    found = generate(model, tokenizer, [[4000, 1]], config, stop_ids=[])[0]
    assert max(found.ids) < tokenizer.vocab_size
    assert found.ids == by_hand(model, [4000, 1], config, 0, tokenizer.vocab_size)


def test_a_model_with_fewer_ids_than_the_tokenizer(random_model: Make, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match=r"270 ids but the model only 50"):
        generate_stream(random_model(), tokenizer, [[1]], GenerationConfig())


@pytest.mark.parametrize("token", [50, -1])
def test_a_prompt_with_an_impossible_id(token: int, random_model: Make) -> None:
    with pytest.raises(RequestError, match=f"{token} is no token id of this model \\(0 to 49\\)"):
        generate_stream(random_model(), None, [[1, token]], GenerationConfig())


def test_stop_strings_that_cannot_work(random_model: Make, tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="empty stop string"):
        generate_stream(random_model(vocab_size=300), tokenizer, [[1]], GenerationConfig(stop=[""]))
    with pytest.raises(RequestError, match="need a tokenizer"):
        generate_stream(random_model(), None, [[1]], GenerationConfig(stop=["a"]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(bad: float, temperature: float, fake: Make) -> None:
    def function(seen: list[int]) -> Tensor:
        return torch.tensor([0.0, 1.0, bad]) if len(seen) > 3 else torch.zeros(3)

    with pytest.raises(WorkError, match="not finite after 4 tokens of sample 0"):
        generate(fake(3, 8, function), None, [[1, 1]], GenerationConfig(temperature=temperature))


def test_a_token_of_logit_minus_infinity_is_no_error(fake: Make) -> None:
    model = fake(3, 8, lambda seen: torch.tensor([0.0, -float("inf"), 0.0]))
    assert 1 not in generate(model, None, [[1]], GenerationConfig(max_new_tokens=50))[0].ids


# --- interruption


def test_stopping_in_the_middle(random_model: Make, tokenizer: Tokenizer) -> None:
    model = random_model(vocab_size=tokenizer.vocab_size, context_length=64)
    config = GenerationConfig(max_new_tokens=50, num_samples=2, seed=0)
    asked = iter([False] * 5 + [True] * 9)
    found = generate(model, tokenizer, [[1]], config, stop_ids=[], should_stop=lambda: next(asked))
    whole = generate(model, tokenizer, [[1]], config, stop_ids=[])
    assert [g.finish_reason for g in found] == ["interrupted"] * 2
    assert [g.ids for g in found] == [g.ids[:5] for g in whole]
    assert [g.text for g in found] == [tokenizer.decode(g.ids) for g in found]


def test_stopping_before_the_first_token_and_between_pieces_of_a_prompt(
    random_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minigpt.inference.engine.PREFILL_TOKENS", 4)
    model = random_model()
    config = GenerationConfig(max_new_tokens=5, seed=1)
    stopped = generate(model, None, [list(range(13))], config, should_stop=lambda: True)
    assert stopped == [Generation("", [], "interrupted")] and model.reads == 0
    asked = iter([False, False, True])
    generate(model, None, [list(range(13))], config, should_stop=lambda: next(asked))
    assert model.reads == 8
    whole = generate(model, None, [list(range(13)), [1]], config)
    assert [g.ids for g in whole] == [by_hand(model, list(range(13)), config, 0), by_hand(model, [1], config, 0)]
