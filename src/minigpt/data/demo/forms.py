"""The sentences of stories and dialogues: for each event, the wordings that tell it.

A slot in braces stands for one word. Its class (lexicon.py) is its name without a trailing digit or `_B`; `A` and
`B` are people, single small letters and `legs` are numbers. `{he}` and its like stand for A, `{he_B}` for B; they agree
with that person's gender. A pronoun whose person is not named earlier in its sentence refers to the subject of the
sentence before.
"""

import re

from minigpt.data.demo.forms_counts import OTHER_FORMS
from minigpt.data.demo.forms_dialogues import DIALOGUE_FORMS
from minigpt.data.demo.forms_things import THING_FORMS

SLOT = re.compile(r"\{(\w+)\}")


def slot_class(slot: str) -> str:
    """The word class of a slot: `thing2` is a thing, `A` a name, `he_B` a he, `k` a number."""
    if slot in ("A", "B"):
        return "name"
    return "number" if len(slot) == 1 or slot == "legs" else re.sub(r"\d$|_B$", "", slot)


FORMS: dict[str, tuple[str, ...]] = {**THING_FORMS, **OTHER_FORMS, **DIALOGUE_FORMS}

# The same sentence told of someone else: an event's name in a plot, the event, and the slots put in place of its own.
ALIASES: dict[str, tuple[str, dict[str, str]]] = {
    "has2": ("has", {"A": "B", "colour": "colour2", "thing": "thing2"}),
    "ask_has2": ("ask_has", {"A": "B", "colour": "colour2", "thing": "thing2"}),
    "answer_has2": ("answer_has", {"A": "B", "colour": "colour2", "thing": "thing2"}),
    "stands2": ("stands", {"animal": "animal2", "place": "place2"}),
    "ask_animal2": ("ask_animal", {"animal": "animal2", "place": "place2"}),
    "answer_animal2": ("answer_animal", {"animal": "animal2", "place": "place2"}),
    "puts2": ("puts", {"A": "B", "colour": "colour2", "thing": "thing2", "prep": "prep2", "room": "room2"}),
    "ask_put2": ("ask_put", {"thing": "thing2"}),
    "answer_put2": ("answer_put", {"thing": "thing2", "prep": "prep2", "room": "room2"}),
    "ask_does2": ("ask_does", {"sound": "sound2"}),
}


def wordings(event: str) -> tuple[str, ...]:
    """The templates of an event or of an alias; raises KeyError for any other name."""
    base, renamed = ALIASES.get(event, (event, {}))
    return tuple(SLOT.sub(lambda slot: "{" + renamed.get(slot[1], slot[1]) + "}", form) for form in FORMS[base])
