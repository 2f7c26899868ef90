"""The checker of stories: accepts exactly those whose sentences are of the grammar, in an order that some plot allows,
and agree with each other.

It is given a text and nothing else. It parses each sentence, finds out whom pronouns mean, and replays the facts in a
world of its own (world.py); what the generator knew when it wrote the text plays no part.
"""

from collections.abc import Mapping, Sequence

from minigpt.data.demo.forms import ALIASES, FORMS
from minigpt.data.demo.lexicon import BOYS
from minigpt.data.demo.parser import Inconsistent, Reading, compile_forms, gender_of, person_role, read_sentence, split_sentences
from minigpt.data.demo.plots import PLOTS
from minigpt.data.demo.rules_counts import OTHER_RULES
from minigpt.data.demo.rules_things import THING_RULES
from minigpt.data.demo.world import World

Order = dict[str, "Order"]
RULES = {**THING_RULES, **OTHER_RULES}
_END = ""  # the key that marks, in an `Order`, that a story may end here


def _orders() -> Order:
    """Every order of events that a plot allows, as nested dictionaries: event -> what may follow it."""
    root: Order = {}
    for plot in PLOTS:
        ends = [root]
        for step in plot.steps:
            ends = [_extend(end, events) for end in ends for events in step]
        for end in ends:
            end[_END] = {}
    return root


def _extend(node: Order, events: Sequence[str]) -> Order:
    for event in events:
        node = node.setdefault(ALIASES.get(event, (event, {}))[0], {})
    return node


_INDEX = compile_forms(FORMS)
_ORDERS = _orders()


def check_story(text: str) -> str | None:
    """None when `text` is one whole consistent story; otherwise one line that names the first wrong sentence and why.

    White space around the story is ignored; within it there is exactly one space between words.
    """
    world, order, subject = World(), _ORDERS, None
    sentences = split_sentences(text)
    for number, sentence in enumerate(sentences, 1):
        try:
            readings, words = read_sentence(sentence, _INDEX)
            fitting = [reading for reading in readings if reading.event in order]
            if not fitting:
                raise Inconsistent("no story goes on like this")
            facts = resolve(fitting[0], words, subject)
            world.agree(fitting[0].event, facts)
            RULES[fitting[0].event](world, facts)
        except Inconsistent as error:
            return f"sentence {number} ({sentence[:80]!r}): {error}"
        order = order[fitting[0].event]
        subject = facts.get(fitting[0].subject or "", subject)
    if _END not in order:
        return f"the story stops after sentence {len(sentences)}, before its end"
    return None


def resolve(reading: Reading, words: Sequence[str], subject: str | None) -> Mapping[str, str]:
    """The words by slot, with the persons that pronouns mean; raises `Inconsistent` for a pronoun that does not agree.

    A pronoun means the person of its role if the sentence has named that one, else `subject`, the subject of the
    sentence before.
    """
    facts: dict[str, str] = {}
    genders: list[tuple[str, str, int]] = []
    for slot, word in zip(reading.slots, words, strict=True):
        role, gender = person_role(slot), gender_of(slot, word)
        if facts.setdefault(slot, word) != word:
            raise Inconsistent(f"it says both {facts[slot]!r} and {word!r}")
        if gender is None or role is None:
            continue
        if role not in facts and not slot.startswith(("child", "sibling")):  # after those the name follows
            if subject is None:
                raise Inconsistent(f"nobody has been named whom {word!r} could mean")
            facts[role] = subject
        genders.append((role, word, gender))
    for role, word, gender in genders:
        if (facts[role] in BOYS) != bool(gender):
            raise Inconsistent(f"{word!r} does not go with {facts[role]}")
    return facts
