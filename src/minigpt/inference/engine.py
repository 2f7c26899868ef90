"""Generate from a model: many rows at once on the key/value cache, streamed as they come.

A row is one sample of one prompt. Rows have lengths of their own, and a row that ends leaves the batch. What a row
says does not depend on its neighbours (up to the rounding of batched matrix products): its random numbers are its
own, and so is its window.

**When the context is full**, the row starts over with its newest `context_length // 2` tokens, re-read at positions
0, 1, ..., and goes on. The alternative, sliding by one, would mean reading the whole window again for every token. A
prompt longer than the context keeps its newest `context_length` tokens, which is logged and reported in
`Generation.prompt_tokens_dropped`.

**An empty prompt** begins with the token that separates documents in training (`tokenizer.eot_id`); without one, with
the newline, as nanoGPT does for characters; without that, with token 0. It is not part of the generated text.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from minigpt.config import GenerationConfig, RequestError, WorkError
from minigpt.inference.sampling import fresh_seed, next_tokens, sample_generator
from minigpt.inference.text_stream import TextStream

if TYPE_CHECKING:
    from minigpt.model import GPT
    from minigpt.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "interrupted"]
"""`stop`: an end token or a stop string; `length`: `max_new_tokens` reached; `interrupted`: `should_stop` said so."""

PREFILL_TOKENS = 512
"""Columns of a prompt read in one forward pass: bounds the wait until `should_stop` is heard."""

log = logging.getLogger(__name__)


class Event(NamedTuple):
    """One token of one row. Of each row exactly the last event has a `finish_reason`."""

    row: int
    """`prompt index * num_samples + sample index`."""
    text: str
    """Text that became certain, perhaps empty; all of a row concatenate to its `Generation.text`."""
    token: int | None
    """The token drawn (an end token too); None in an event that only says that the row was interrupted."""
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Generation:
    """A finished sample, without its prompt."""

    text: str
    """`tokenizer.decode(ids)`, cut where a stop string begins; empty without a tokenizer."""
    ids: list[int]
    """The tokens drawn, without the end token."""
    finish_reason: FinishReason
    prompt_tokens_dropped: int = 0
    """How many of the prompt's oldest tokens did not fit in the context."""


@dataclass
class _Row:
    index: int
    tokens: list[int]  # prompt and generated
    generator: torch.Generator
    text: TextStream | None
    start: int  # the model sees tokens[start:]
    fed: int  # the cache holds tokens[start:start + fed]
    left: int  # tokens still to generate
    reason: FinishReason | None = None

    def take(self, token: int, stop_ids: Collection[int]) -> Event:
        """Append a token that was drawn and say what came of it."""
        self.left -= 1
        delta = ""
        if token in stop_ids:
            self.reason = "stop"
        else:
            self.tokens.append(token)
            delta = self.text.push(token) if self.text else ""
            if self.text and self.text.stopped:
                self.reason = "stop"
            elif not self.left:
                self.reason = "length"
        return Event(self.index, delta + self._rest(), token, self.reason)

    def interrupt(self) -> Event:
        """End the row where it is."""
        self.reason = "interrupted"
        return Event(self.index, self._rest(), None, self.reason)

    def _rest(self) -> str:
        """Text held back so far, if the row has ended; it may turn out to complete a stop string."""
        if not self.reason or not self.text:
            return ""
        rest = self.text.finish()
        if self.text.stopped and self.reason == "length":
            self.reason = "stop"
        return rest


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients, and no dropout: every module in evaluation mode, then back in the mode that it had."""
    with _evaluating(list(model.modules())):
        yield


@contextmanager
def _evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        with (
            torch.no_grad()
        ):  # inference_mode would poison tensors that a model keeps for training, such as rotary tables
            yield
    finally:
        for module in training:
            module.training = True


def start_token(tokenizer: "Tokenizer | None") -> int:
    """The token that stands for an empty prompt; see the module's docstring."""
    if tokenizer is None:
        return 0
    if tokenizer.eot_id is not None:
        return tokenizer.eot_id
    try:
        newline = tokenizer.encode("\n")
    except RequestError:  # no such character in the vocabulary
        return 0
    return newline[0] if len(newline) == 1 else 0


def generate_stream(
    model: "GPT",
    tokenizer: "Tokenizer | None",
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    stop_ids: Collection[int] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[list[Event]]:
    """Generate `config.num_samples` rows for each prompt (ids); each step gives the events of the rows still going.

    Sample `i` of a prompt under `config.seed` is the same whatever `num_samples` and the other prompts are.
    Ids beyond the tokenizer's are never drawn. `stop_ids` end a row; default the tokenizer's `eot_id`. `should_stop` is
    asked before every token. Without a tokenizer the texts are empty. Leaves the model's mode and the global random
    state alone.

    Raises RequestError at once for prompts and options that cannot work, WorkError later if the logits are not finite.
    """
    vocabulary = check_vocabulary(model, tokenizer)
    if any(not stop for stop in config.stop):
        raise RequestError("stop: an empty stop string would end every text before it begins; leave it out")
    if config.stop and tokenizer is None:
        raise RequestError("stop: stop strings need a tokenizer, and this model has none")
    rows = _make_rows(model, tokenizer, prompts, config)
    return _run(model, rows, config, vocabulary, _end_ids(tokenizer, stop_ids), should_stop)


def generate(
    model: "GPT",
    tokenizer: "Tokenizer | None",
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    *,
    stop_ids: Collection[int] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[Generation]:
    """`generate_stream` collected: the samples of the first prompt, then those of the second, and so on."""
    events = generate_stream(model, tokenizer, prompts, config, stop_ids=stop_ids, should_stop=should_stop)
    count = len(prompts) * config.num_samples
    texts: list[list[str]] = [[] for _ in range(count)]
    ids: list[list[int]] = [[] for _ in range(count)]
    reasons: list[FinishReason] = ["interrupted"] * count
    ends = _end_ids(tokenizer, stop_ids)
    for step in events:
        for event in step:
            texts[event.row].append(event.text)
            if event.token is not None and event.token not in ends:
                ids[event.row].append(event.token)
            if event.finish_reason:
                reasons[event.row] = event.finish_reason
    context = model.config.context_length
    dropped = [max(0, len(prompt) - context) for prompt in prompts for _ in range(config.num_samples)]
    return [Generation("".join(texts[i]), ids[i], reasons[i], dropped[i]) for i in range(count)]


def _end_ids(tokenizer: "Tokenizer | None", stop_ids: Collection[int] | None) -> frozenset[int]:
    if stop_ids is not None:
        return frozenset(stop_ids)
    return frozenset() if tokenizer is None or tokenizer.eot_id is None else frozenset([tokenizer.eot_id])


def check_vocabulary(model: "GPT", tokenizer: "Tokenizer | None") -> int:
    """How many ids may be drawn: the tokenizer's. The model may have more; RequestError if it has fewer."""
    rows = model.config.vocab_size
    assert rows is not None  # a network is built from a config that says its vocabulary
    if tokenizer is None:
        return rows
    if tokenizer.vocab_size > rows:
        raise RequestError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids but the model only {rows:,}: they do not belong together; "
            f"use the tokenizer that the model was trained with"
        )
    return tokenizer.vocab_size


def _make_rows(
    model: "GPT", tokenizer: "Tokenizer | None", prompts: Sequence[Sequence[int]], config: GenerationConfig
) -> list[_Row]:
    seed = fresh_seed() if config.seed is None else config.seed
    context, vocabulary = model.config.context_length, model.config.vocab_size
    rows: list[_Row] = []
    for prompt in prompts:
        tokens = list(prompt) or [start_token(tokenizer)]
        if wrong := [token for token in tokens if not 0 <= token < (vocabulary or 0)]:
            raise RequestError(f"prompt: {wrong[0]} is no token id of this model (0 to {(vocabulary or 0) - 1})")
        start = max(0, len(tokens) - context)
        if start:
            log.warning(
                "the prompt has %d tokens, more than model.context_length=%d: only the newest %d are used",
                *(len(tokens), context, context),
            )
        for sample in range(config.num_samples):
            text = TextStream(tokenizer, config.stop, prompt) if tokenizer else None
            generator = sample_generator(seed, sample)
            rows.append(_Row(len(rows), list(tokens), generator, text, start, 0, config.max_new_tokens))
    return rows


def _run(
    model: "GPT",
    rows: list[_Row],
    config: GenerationConfig,
    vocabulary: int,
    stop_ids: frozenset[int],
    should_stop: Callable[[], bool],
) -> Iterator[list[Event]]:
    """The loop: draw a token for every row, drop the rows that ended, feed the tokens to the model."""
    if not rows:
        return
    context, samples = model.config.context_length, config.num_samples
    longest = max(len(row.tokens) for row in rows) + config.max_new_tokens
    reader = _Reader(model, len(rows) // samples, min(context, longest), should_stop)
    cache = reader.cache
    logits = reader.feed(rows[::samples])  # a prompt is read once for all its samples
    if logits is not None and samples > 1:
        repeat = [i // samples for i in range(len(rows))]
        cache.select(repeat)
        logits = logits[repeat]
        for row in rows:
            row.fed = len(row.tokens) - row.start
    seen = torch.zeros(len(rows), vocabulary, dtype=torch.bool, device=reader.device)
    if config.repetition_penalty != 1:
        for mask, row in zip(seen, rows, strict=True):
            mask[[token for token in row.tokens if token < vocabulary]] = True
    while logits is not None:
        logits = logits[:, :vocabulary].float()
        _check_finite(logits, rows)
        tokens = next_tokens(logits, seen, config, [row.generator for row in rows])
        yield [row.take(token, stop_ids) for row, token in zip(rows, tokens.tolist(), strict=True)]
        going = [i for i, row in enumerate(rows) if row.reason is None]
        if not going:
            return
        if len(going) < len(rows):
            rows = [rows[i] for i in going]
            cache.select(going)
            seen, tokens = seen[going], tokens[going]
        if config.repetition_penalty != 1:
            seen.scatter_(1, tokens.to(seen.device).unsqueeze(1), True)
        for i, row in enumerate(rows):
            if len(row.tokens) - row.start > context:
                row.start, row.fed = len(row.tokens) - max(1, context // 2), 0
                cache.reset([i])
        logits = reader.feed(rows)
    yield [row.interrupt() for row in rows]


class _Reader:
    """The network and its cache, for `batch` rows of up to `length` tokens."""

    def __init__(self, model: "GPT", batch: int, length: int, should_stop: Callable[[], bool]) -> None:
        self.model, self.should_stop = model, should_stop
        self.cache = model.make_cache(batch, length)
        self.device = next(model.parameters()).device
        self.modules = list(model.modules())  # listing them for every token costs a small model 10 %

    def feed(self, rows: list[_Row]) -> Tensor | None:
        """Read what the cache lacks of every row; gives the logits (B, V) after the newest tokens, None if stopped.

        That is one token of each row, except at the beginning and for a row that starts over.
        """
        new = [row.tokens[row.start + row.fed :] for row in rows]
        width = max(map(len, new))
        # Padded on the left, so that the last column is the newest token of every row.
        ids = torch.tensor([[0] * (width - len(n)) + n for n in new])  # (B, T)
        positions = None  # each row goes on where it is
        if width > 1:
            places = [range(row.fed, row.fed + len(n)) for row, n in zip(rows, new, strict=True)]
            positions = torch.tensor([[-1] * (width - len(place)) + list(place) for place in places])
        logits = None
        for begin in range(0, width, PREFILL_TOKENS):
            if self.should_stop():
                return None
            piece = slice(begin, begin + PREFILL_TOKENS)
            with _evaluating(self.modules):
                hidden = self.model.hidden_states(
                    ids[:, piece].to(self.device),
                    cache=self.cache,
                    positions=None if positions is None else positions[:, piece],
                )
                logits = self.model.logits(hidden[:, -1])
        for row, n in zip(rows, new, strict=True):
            row.fed += len(n)
        return logits


def _check_finite(logits: Tensor, rows: list[_Row]) -> None:
    """A NaN or an infinity in the logits means that nothing sensible can be drawn."""
    bad = (~torch.isfinite(logits.amax(-1))).nonzero()
    if len(bad):
        row = rows[int(bad[0])]
        raise WorkError(
            f"the model's logits are not finite after {len(row.tokens):,} tokens of sample {row.index}: its weights "
            f"are damaged or the number format is too narrow; try dtype fp32, or an earlier checkpoint"
        )
