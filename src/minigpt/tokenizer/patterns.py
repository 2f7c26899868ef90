"""How byte-level BPE splits text before merging: the four rules that llama.cpp also knows, by (nearly) its names.

Source of the regular expressions: the tokenizer.json files of GPT-2, Llama 3, Qwen2 and GPT-4o (o200k), which llama.cpp
repeats in llama-vocab.cpp as `gpt-2`, `llama-bpe`, `qwen2` and `gpt-4o`. llama.cpp spells the last one's letter classes
approximately, so capital letters outside ASCII may be split differently there.

tiktoken's cl100k is Llama 3's rule but for white space at the end of a text: tiktoken takes it as one piece, even with
line breaks in it. Hence a rule of its own, for tiktoken's encoding only: no tokenizer is trained with it.
"""

import re
from collections.abc import Iterator

from tokenizers import Regex, pre_tokenizers

from minigpt.config import RequestError

REGEXES = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt4o": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""tiktoken's rule for cl100k_base (tiktoken_ext/openai_public.py), spelled for the regular expressions used here."""

CLASSES = (
    *(r"\p{L}", r"\p{N}", r"\s", r"\p{Lu}", r"\p{Lt}", r"\p{Lm}", r"\p{Lo}", r"\p{Ll}", r"\p{M}"),
    *(f"(?i:{letter})" for letter in "sdmtrevl"),
)
"""Every question that the rules ask about a character that is not ASCII."""

_LOOKING_AHEAD = r"|\s+(?!\S)|\s+"
"""How all the rules end. What stands before needs no more than a finite automaton."""

WHOLE_WORDS_FIRST = frozenset({"llama3"})
"""Rules under which llama.cpp makes a piece that is in the vocabulary one token without merging (`ignore_merges`)."""

PIECE_CHARACTERS = 1 << 16
"""Long texts are cut into pieces of about this size: the library takes tens of bytes of memory for a byte of text."""

_SAFE_CUT = re.compile(r"[A-Za-z](?=[ \n])")


def pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of a rule. RequestError: there is no rule of that name."""
    if pattern not in REGEXES:
        raise RequestError(f"tokenizer.pattern={pattern!r} is not known: choose one of {', '.join(REGEXES)}")
    return split_by(REGEXES[pattern])


def split_by(regex: str) -> pre_tokenizers.PreTokenizer:
    """The pre-tokenizer of a rule given by its regular expression."""
    if regex == REGEXES["gpt2"]:  # the library's own form of this rule, as in GPT-2's tokenizer.json
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    split = pre_tokenizers.Split(Regex(regex), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def regex_of(pre_tokenizer_json: object) -> str | None:
    """The rule that this pre-tokenizer (its part of a tokenizer.json) follows, None if it is none of those here."""
    match pre_tokenizer_json:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return REGEXES["gpt2"]
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if regex in (*REGEXES.values(), CL100K):
            return regex
    return None


def grouped(regex: str) -> str:
    """The same rule with all but its end in one group, which tiktoken's regular expressions then run as an automaton
    of its own, without backtracking: half as fast again for GPT-2's rule as tiktoken's own spelling of it."""
    return f"(?:{regex.removesuffix(_LOOKING_AHEAD)}){_LOOKING_AHEAD}"


def safe_pieces(text: str, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Cut a text into pieces of `size` characters or somewhat more that, encoded one by one, give the ids of the whole.

    The cuts are between an ASCII letter and a space or newline. None of the rules has an alternative that matches
    a letter followed by white space, and none looks at what is before a match; so a match ends at each such place,
    whatever surrounds it.
    """
    start = 0
    while start < len(text):
        cut = _SAFE_CUT.search(text, start + size - 1) if len(text) - start > size else None
        end = cut.end() if cut else len(text)
        yield text[start:end]
        start = end
