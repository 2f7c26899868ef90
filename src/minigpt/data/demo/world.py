"""What a story has said so far: the state against which each next sentence is checked.

Everything here is keyed by the words of the text. `World.agree` holds the checks that do not depend on the event
(people introduced, colours of things, facts that a story tells once); what each event means is in rules_*.py.
"""

from collections.abc import Mapping

from minigpt.data.demo.lexicon import NUMBERS, SOUND_OF
from minigpt.data.demo.parser import Inconsistent

Facts = Mapping[str, str]

# Whom an event introduces. Everyone else whom a sentence names must have been introduced before.
_ENTERS = {
    "own": "A", "meet": "B", "helper": "B", "stock": "A", "friend": "B", "keep_pet": "A", "trip": "A",
    "has": "A", "hands": "B", "stays": "A", "puts": "A", "has_some": "A", "adds": "B", "ask_hello": "A",
}  # fmt: skip
_NEW_THINGS = frozenset({"own", "has", "puts"})
_GENERAL = frozenset({"ask_use", "answer_use"})  # about things at large, not about one in a story
_SAID_ONCE = ("food", "bird", "shop", "feel", "pet")


class World:
    """The state of one story."""

    def __init__(self) -> None:
        self.place: dict[str, str] = {}  # person, pet or animal -> where they are ("home" before they go out)
        self.holder: dict[str, str] = {}  # thing -> the person who has it
        self.colour: dict[str, str] = {}  # thing -> its colour
        self.spot: dict[str, tuple[str, str]] = {}  # thing or pet -> (preposition, spot)
        self.giver: dict[str, str] = {}  # thing -> who gave it away
        self.gave: set[tuple[str, str]] = set()  # (who gave something, to whom)
        self.searched: list[tuple[str, str]] = []  # spots that turned out to be empty
        self.count: dict[str, int] = {}  # person -> how many of what is counted
        self.total = 0  # creatures seen, or the result of a sum that was asked for
        self.lost: str | None = None
        self.asked: tuple[str, str] | None = None  # the question that waits for its answer: (about what, about whom)
        self.said: dict[str, str] = {}  # what is told once and then only repeated, and who plays which part

    def agree(self, event: str, facts: Facts) -> None:
        """Checks that hold for every sentence; raises `Inconsistent`."""
        people = [facts[role] for role in "AB" if role in facts]
        need(len(set(people)) == len(people), "one person is named as two")
        for role in "AB":
            if role in facts:
                new = role in _ENTERS.get(event, "")
                need((facts[role] in self.place) != new, f"{facts[role]} was {'' if new else 'not '}introduced before")
        for key in _SAID_ONCE:
            if key in facts:
                self.once(key, facts[key])
        if "pet" in self.said and "animal" in facts:
            self.once("animal", facts["animal"])
        thing = facts.get("thing")
        if thing and event in _NEW_THINGS:
            need(thing not in self.holder, f"there was a {thing} already")
        elif thing and event not in _GENERAL:
            need(thing in self.holder, f"there is no {thing} in the story")
            colour = facts.get("colour", self.colour[thing])
            need(colour == self.colour[thing], f"the {thing} is {self.colour[thing]}, not {colour}")

    def once(self, key: str, word: str | None) -> None:
        """The first telling of a fact sets it, each later one must repeat it; None is a sentence silent about it."""
        known = self.said.setdefault(key, word) if word else word
        need(known == word, f"it says {word!r}, but it was {known!r}")

    def part(self, key: str, word: str | None) -> None:
        """`word`, where the sentence has one, must be who plays this part."""
        need(word in (None, self.said.get(key)), f"{self.said.get(key, 'nobody')} is the {key}, not {word}")

    def new_thing(self, facts: Facts, holder: str) -> None:
        self.holder[facts["thing"]], self.colour[facts["thing"]] = holder, facts["colour"]

    def holds(self, person: str, thing: str) -> None:
        need(self.lost != thing, f"the {thing} is still lost")
        need(self.holder[thing] == person, f"{self.holder[thing]} has the {thing}, not {person}")

    def at(self, who: str, place: str | None) -> None:
        """`who` is at `place`, if the sentence names one."""
        need(place in (None, self.place[who]), f"{who} is at the {self.place[who]}, not at the {place}")

    def hidden(self, what: str, facts: Facts, number: str = "") -> None:
        """`what` is at the spot that the sentence names in the slots with this number."""
        told = spot_of(facts, number)
        need(self.spot.get(what) == told, f"the {what} is not {' the '.join(told)}")

    def ask(self, about: str, whom: str = "") -> None:
        self.asked = (about, whom)

    def answer(self, about: str, whom: str | None = None) -> str:
        """Take the open question, which must be about this, and give back about whom or what it was."""
        need(self.asked is not None and self.asked[0] == about, "it answers a question that was not asked")
        asked = self.asked[1] if self.asked else ""
        need(whom in (None, asked), f"the question was about {asked}, not {whom}")
        self.asked = None
        return asked


def need(true: bool, reason: str) -> None:
    """Raise `Inconsistent(reason)` unless `true`."""
    if not true:
        raise Inconsistent(reason)


def spot_of(facts: Facts, number: str = "") -> tuple[str, str]:
    """The (preposition, spot or room) in the slots with this number."""
    return facts["prep" + number], facts.get("spot" + number) or facts["room" + number]


def amount(facts: Facts, slot: str) -> int:
    """The value of a number word: at least two, since every noun that is counted is plural."""
    value = NUMBERS.index(facts[slot])
    need(value >= 2, f"{facts[slot]!r} does not go with a plural")
    return value


def same(told: int, true: int) -> None:
    """Two counts that must be equal, for sentences that tell a number."""
    need(told == true, f"it says {told}, but {true} is right")


def sounds(facts: Facts, animal: str, *slots: str) -> None:
    """In those of the slots that the sentence has, the animal makes its own sound."""
    for slot in slots:
        word = facts.get(slot, SOUND_OF[animal]).lower()
        need(word == SOUND_OF[animal], f"a {animal} does not say {word!r}")
