"""The checkers: they accept exactly the texts whose sentences are of the grammar, in an order that some plot allows,
and agree with each other.

They are given a text and nothing else. Each sentence is parsed, pronouns are resolved, and the facts are replayed in a
world of their own (world.py); what the generator knew when it wrote the text plays no part.
"""

from collections.abc import Iterable, Mapping, Sequence

from minigpt.data.demo.forms import ALIASES, FORMS
from minigpt.data.demo.lexicon import BOYS
from minigpt.data.demo.parser import (
    Inconsistent,
    Reading,
    compile_forms,
    gender_of,
    person_role,
    read_sentence,
    split_sentences,
)
from minigpt.data.demo.plots import PLOTS, STORY_QUESTIONS, TALKS, Plot
from minigpt.data.demo.rules_counts import OTHER_RULES
from minigpt.data.demo.rules_dialogues import DIALOGUE_RULES
from minigpt.data.demo.rules_things import THING_RULES
from minigpt.data.demo.world import World

Order = dict[str, "Order"]
RULES = {**THING_RULES, **OTHER_RULES, **DIALOGUE_RULES}
_END = ""  # the key that marks, in an `Order`, that a text may end here


def orders(plots: Iterable[Plot]) -> Order:
    """Every order of events that the plots allow, as nested dictionaries: event -> what may follow it."""
    root: Order = {}
    for plot in plots:
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
_STORIES = orders(PLOTS)
_DIALOGUES = orders((*TALKS, *STORY_QUESTIONS))


def check_story(text: str) -> str | None:
    """None when `text` is one whole consistent story; otherwise one line that names the first wrong sentence and why.

    White space around the story is ignored; within it there is exactly one space between words.
    """
    try:
        replay(split_sentences(text), _STORIES)
    except Inconsistent as error:
        return str(error)
    return None


def check_dialogue(messages: Sequence[Mapping[str, str]]) -> str | None:
    """None when the messages are one whole dialogue with right answers; otherwise one line that says what is wrong.

    User and assistant take turns, each user message ends with its only question, each answer is one true sentence.
    """
    sentences: list[str] = []
    last_of_turn: list[int] = []
    for number, message in enumerate(messages, 1):
        role = "user" if number % 2 else "assistant"
        if set(message) != {"role", "content"} or message["role"] != role:
            return f"message {number} is not one of the {role}"
        sentences += split_sentences(message["content"])
        last_of_turn.append(len(sentences))
    if not messages or len(messages) % 2:
        return "the dialogue does not end with an answer"
    try:
        events = replay(sentences, _DIALOGUES)
    except Inconsistent as error:
        return str(error)
    turns = [n for n, event in enumerate(events, 1) if event.startswith(("ask_", "answer_"))]
    return None if turns == last_of_turn else "a message does not end with its question or answer"


def replay(sentences: Sequence[str], order: Order) -> list[str]:
    """Read the sentences one after the other in a new world; returns their events, raises `Inconsistent`."""
    world, subject, told = World(), None, []
    for number, sentence in enumerate(sentences, 1):
        try:
            readings, words = read_sentence(sentence, _INDEX)
            reading = next((reading for reading in readings if reading.event in order), None)
            if reading is None:
                raise Inconsistent("nothing goes on like this")
            facts = resolve(reading, words, subject)
            world.agree(reading.event, facts)
            RULES[reading.event](world, facts)
        except Inconsistent as error:
            raise Inconsistent(f"sentence {number} ({sentence[:80]!r}): {error}") from None
        order = order[reading.event]
        subject = facts.get(reading.subject or "", subject)
        told.append(reading.event)
    if _END not in order:
        raise Inconsistent(f"the text stops after sentence {len(sentences)}, before its end")
    return told


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
        if role not in facts and slot != "child":  # after that the name follows
            if subject is None:
                raise Inconsistent(f"nobody has been named whom {word!r} could mean")
            facts[role] = subject
        genders.append((role, word, gender))
    for role, word, gender in genders:
        if (facts[role] in BOYS) != bool(gender):
            raise Inconsistent(f"{word!r} does not go with {facts[role]}")
    return facts
