"""Texts on which two tokenizers that should be the same are compared before one is written in place of the other.

The same texts every time: hard cases by hand, random Unicode, and random sequences of the vocabulary's own tokens,
which is where two ways of merging would part.
"""

import random
from collections.abc import Callable, Sequence

HARD = (
    *("", " ", "  ", "   a   b  ", "\t", "\n", "\r\n", " \n \n", "a\tb", "\x00", "\x00\x01\x7f", "\x85\xa0"),
    *("\u2028", "\u3000", "\ufeff", "\ufffd", "\uffff", "\U0010ffff", "\u200b", "\u200d", "\u00ad", "\u2581", "\u2585"),
    *("e\u0301", "\u0301", " \u0308", "A\u030a", "\uac00\u11a8", "\u1112\u1161\u11ab"),
    *("ﬁ", "①", "㍿", "½", "Ⅷ", "ſ", "İ"),
    *("naïve façade Ångström", "中文，没有空格。", "日本語テキスト", "한국어", "नमस्ते", "ภาษาไทย", "١٢٣", "שָׁלוֹם"),
    *("\U0001f469\u200d\U0001f467", "🙂🙂", "🇩🇪", "👍🏽"),
    *("don't I'LL we've", "x=1;y[2]--", "123456789 1 23 456", "3.14"),
    *("<0x41>", "<0x0A><0x0a>", "a<0x41>b <", "<|end", "##ing", "Ġthe Ċ", "..." * 20, "-" * 70, "=" * 7),
    *("a" * 1000, "ab" * 300, "aab" * 99, " a" * 200, "the " * 200, " " * 100, "\n" * 50, "Mississippi banana "),
    "The quick brown fox jumps over the lazy dog. “Quotes”, dashes – and … dots!\n\tIndented\n\n\nlines\n",
)
TEXTS = 3000
_RANGES = (
    *((0x20, 0x7F), (0x20, 0x7F), (0, 0x250), (0x300, 0x370), (0x370, 0x600), (0x900, 0xE80), (0x1E00, 0x2100)),
    *((0x2100, 0x2800), (0x3000, 0x3400), (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0xF900, 0xFFFF), (0x1F300, 0x1FAFF)),
)
"""Code points from each of which a random text is drawn; ASCII twice as often."""


def fuzz_texts(vocabulary: Sequence[str]) -> list[str]:
    """About TEXTS texts, `vocabulary` being the texts of tokens; the same for the same vocabulary."""
    draw = random.Random(len(vocabulary))
    texts = list(HARD)
    while len(texts) < TEXTS:
        low, high = draw.choice(_RANGES)
        letters = [chr(draw.randrange(low, high)) for _ in range(draw.randrange(1, 12))]
        tokens = draw.choices(vocabulary, k=draw.randrange(1, 12)) if vocabulary else []
        parts = draw.choice((letters, tokens, letters + tokens, tokens + letters, draw.choices(letters, k=20)))
        texts.append(draw.choice(("", "", " ")).join(parts))
    return texts


def differing_text(
    one: Callable[[str], Sequence[int]], other: Callable[[str], Sequence[int]], texts: Sequence[str]
) -> str | None:
    """The first text to which the two give other ids, None if there is none."""
    return next((text for text in texts if list(one(text)) != list(other(text))), None)
