"""Reading the corpus: text to sentences, a sentence to the event it tells and the words in its slots.

A sentence is read word by word: each word of a class in the lexicon is replaced by that class, and what remains (the
skeleton) is looked up among the skeletons of the forms. Nothing here knows plots, worlds or how texts are generated.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from minigpt.data.demo.forms import SLOT, slot_class
from minigpt.data.demo.lexicon import CLASS_OF

_ALPHABET = re.compile(r'[A-Za-z ,.!?"]*')
_WORD = re.compile(r"[A-Za-z]+")
_BREAK = re.compile(r'(?:(?<=[.!?])|(?<=[.!?]")) (?=["A-Z])')
_QUOTE = re.compile(r'"[^"]*"')
_PRONOUN_FORMS = {  # class of a pronoun slot -> the words that can stand there, for a girl and for a boy
    "he": ("she", "he"), "He": ("She", "He"), "him": ("her", "him"), "his": ("her", "his"),
    "child": ("girl", "boy"),
}  # fmt: skip


class Inconsistent(Exception):
    """A sentence that is not of the grammar, or that contradicts what the text has said; the message says why."""


@dataclass(frozen=True)
class Reading:
    """One form that a sentence may be read as: its event, and its slots in the order of the words."""

    event: str
    slots: tuple[str, ...]
    subject: str | None  # the role of the first person outside quotation marks


def split_sentences(text: str) -> list[str]:
    """The sentences of one story, quotation marks kept whole; text around them is stripped."""
    return _BREAK.split(text.strip())


def person_role(slot: str) -> str | None:
    """The person whom a slot stands for, or whose gender it shows: `he_B` is B, `his` is A, `thing` is nobody."""
    if slot in ("A", "B"):
        return slot
    base, _, suffix = slot.partition("_")
    return (suffix or "A") if base in _PRONOUN_FORMS else None


def gender_of(slot: str, word: str) -> int | None:
    """0 (she) or 1 (he) for the word in a gendered slot, None for others; raises `Inconsistent` for a wrong case."""
    forms = _PRONOUN_FORMS.get(slot.partition("_")[0])
    if forms is None:
        return None
    if word not in forms:
        raise Inconsistent(f"{word!r} is the wrong form here, it should be {forms[0]!r} or {forms[1]!r}")
    return forms.index(word)


def compile_forms(forms: Mapping[str, tuple[str, ...]]) -> dict[str, list[Reading]]:
    """Index every wording by its skeleton. A skeleton may have several readings if they belong to different events."""
    index: dict[str, list[Reading]] = {}
    for event, templates in forms.items():
        for template in templates:
            slots = tuple(match[1] for match in SLOT.finditer(template))
            outside = [person_role(match[1]) for match in SLOT.finditer(_QUOTE.sub("", template))]
            subject = next((role for role in outside if role), None)
            skeleton = SLOT.sub(lambda match: "{" + _shown(match[1]) + "}", template)
            index.setdefault(skeleton, []).append(Reading(event, slots, subject))
    return index


def _shown(slot: str) -> str:
    word_class = slot_class(slot)
    return "him" if word_class == "his" else word_class


def read_sentence(sentence: str, index: Mapping[str, list[Reading]]) -> tuple[list[Reading], list[str]]:
    """The readings of a sentence and the words in its slots, in order; raises `Inconsistent` when there is none."""
    if not _ALPHABET.fullmatch(sentence):
        raise Inconsistent("it has a character that no sentence has")
    words: list[str] = []

    def classify(match: re.Match[str]) -> str:
        word = match[0]
        word_class = CLASS_OF.get(word)
        if word_class is None:
            return word
        words.append(word)
        return "{" + word_class + "}"

    readings = index.get(_WORD.sub(classify, sentence))
    if readings is None:
        raise Inconsistent("it is not a sentence of the grammar")
    return readings, words
