"""Text that a model wrote, or other code printed, made harmless before a terminal sees it.

A terminal obeys control characters: they move its cursor, clear it, rename its window, even answer as if the user had
typed. A model that has learned little (or was trained on terminal logs) writes all of them sooner or later.
"""

import re
import unicodedata

FORBIDDEN = {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Control characters, halves of surrogate pairs, code points without a meaning, and other line ends (Unicode's names
of the categories)."""
REPLACEMENT = "\ufffd"
MOST_MARKS = 2  # accents on one letter, as in Vietnamese; heaps of them are drawn over the lines above and below


def printable(text: str) -> str:
    """`text` in which only line ends and tabs move the cursor; other control characters show as U+FFFD."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    kept: list[str] = []
    marks = 0
    for char in text.replace("\r\n", "\n"):
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        if category == "Cf" or marks > MOST_MARKS or "\ufe00" <= char <= "\ufe0f":
            continue  # invisible: it turns the direction of writing, or the width that a terminal gives its neighbour
        kept.append(REPLACEMENT if category in FORBIDDEN and char not in "\n\t" else char)
    return "".join(kept)


def tidy(text: str) -> str:
    """A sample in as few lines as it needs: printable, and without rows of empty lines."""
    return re.sub(r"[ \t]*\n\s*\n", "\n\n", printable(text)).strip("\n")
