"""Tokens in, text out as soon as it is certain: whole characters only, and nothing that may belong to a stop string.

The deltas of a `TextStream` concatenate to `tokenizer.decode(ids)`, cut where a stop string begins. What is still
undecided when the tokens end (an unfinished UTF-8 sequence: U+FFFD; the beginning of a stop string) comes out of
`finish`. A token costs O(1) amortised, whatever came before it.

For tokenizers that map each id to bytes, the text is those bytes decoded as UTF-8 with errors replaced. For any other
(WordPiece, SentencePiece-like decoders that look at neighbours) a short window of tokens is decoded with and without
the new one and the difference is the delta, as vLLM's detokenizer does.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

from minigpt.tokenizer import Tokenizer

WINDOW_TOKENS = 6
"""Prompt tokens that give the window decoder its left context, enough for a character of four byte tokens."""


class Decoder(Protocol):
    """Turns ids into text incrementally."""

    def push(self, token: int) -> str:
        """Text that is certain after this token."""

    def finish(self) -> str:
        """Text that was still held back."""


class ByteDecoder:
    """For tokenizers whose text is the concatenation of their tokens' bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        piece = self.tokenizer.token_bytes(token)
        if piece is None:  # a special token, which stands for its own name
            piece = self.tokenizer.decode([token]).encode()
        return self.utf8.decode(piece)

    def finish(self) -> str:
        return self.utf8.decode(b"", final=True)


class WindowDecoder:
    """For any tokenizer: the text that a token adds to the decoded window of its predecessors."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.window = list(prompt[-WINDOW_TOKENS:])
        self.known = len(self.window)  # how many tokens of the window are in the text already

    def push(self, token: int) -> str:
        self.window.append(token)
        delta = self._new_text()
        if not delta or delta.endswith("\ufffd"):  # perhaps the first bytes of a character
            return ""
        self.window = self.window[self.known :]
        self.known = len(self.window)
        return delta

    def finish(self) -> str:
        return self._new_text() if len(self.window) > self.known else ""

    def _new_text(self) -> str:
        before = self.tokenizer.decode(self.window[: self.known])
        return self.tokenizer.decode(self.window)[len(before) :]


class TextStream:
    """The text of one row of generated tokens.

    `stopped` becomes true when a stop string is complete; the text ends before it. Of several stop strings the one
    that is
    completed first counts, of those completed by the same character the longest, however the characters are split
    into tokens.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), prompt: Sequence[int] = ()) -> None:
        self.stop = tuple(stop)
        self.stopped = False
        self.held = ""
        self.decoder: Decoder = ByteDecoder(tokenizer) if tokenizer.exact_bytes else WindowDecoder(tokenizer, prompt)

    def push(self, token: int) -> str:
        """Text that this token makes certain, often the token's own."""
        return self._release(self.decoder.push(token), final=False)

    def finish(self) -> str:
        """Everything still held back; call once after the last token."""
        return self._release(self.decoder.finish(), final=True)

    def _release(self, new: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        self.held += new
        matches = [(at + len(stop), at) for stop in self.stop if (at := self.held.find(stop)) >= 0]
        if matches:
            self.stopped = True
            keep = min(matches)[1]
        else:
            keep = len(self.held) - (0 if final else self._undecided())
        text, self.held = self.held[:keep], self.held[keep:]
        return text

    def _undecided(self) -> int:
        """Length of the longest end of the held text that is a proper beginning of a stop string."""
        longest = min(len(self.held), max((len(stop) - 1 for stop in self.stop), default=0))
        return next((n for n in range(longest, 0, -1) if self._begins_stop(self.held[-n:])), 0)

    def _begins_stop(self, text: str) -> bool:
        return any(len(stop) > len(text) and stop.startswith(text) for stop in self.stop)
