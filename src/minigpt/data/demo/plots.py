"""The plots: which events a kind of story consists of, in which order, and which roles are to be filled.

A plot is a list of steps; a step is a list of alternatives; an alternative is a list of events (the empty one leaves
the step out). The generator walks a plot with roles filled once; the checker uses only the order of events, and finds
out for itself who has what and where. `distinct_stories` counts what the tables allow.
"""

import math
from dataclasses import dataclass

from minigpt.data.demo.forms import SLOT, slot_class, wordings
from minigpt.data.demo.lexicon import CLASSES, NUMBERS

Alternatives = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """One kind of story. `roles` are filled independently (two of one class differ), `sums` are the number tuples."""

    name: str
    roles: tuple[str, ...]
    steps: tuple[Alternatives, ...]
    sums: tuple[dict[str, int], ...] = ({},)

    def count(self) -> int:
        """A lower bound on this plot's distinct stories.

        Only what the text is sure to show counts: a role if some step that cannot be left out names it in each of its
        wordings, and each step's wordings. Different choices then give different texts, because a sentence belongs to
        one wording of an event only, and no event comes twice in a plot's steps.
        """
        pinned: set[str] = set()
        total = 1
        for step in self.steps:
            shown = [{slot for event in events for slot in _always(event)} for events in step]
            pinned |= set.intersection(*shown)
            total *= sum(math.prod(len(wordings(event)) for event in events) for events in step)
        taken: dict[str, int] = {}
        for role in self.roles:
            if role in pinned:
                word_class = slot_class(role)
                total *= len(CLASSES[word_class]) - taken.get(word_class, 0)
                taken[word_class] = taken.get(word_class, 0) + 1
        return total * len({tuple(numbers.get(role) for role in sorted(pinned)) for numbers in self.sums})


def _always(event: str) -> set[str]:
    """The slots that every wording of `event` shows."""
    return set.intersection(*({match[1] for match in SLOT.finditer(form)} for form in wordings(event)))


def one(event: str) -> Alternatives:
    """A step that is told, always."""
    return ((event,),)


DAY = ("weather", "time")
TEN = len(NUMBERS) - 1  # no count in a story is above ten; none is below two, so that every noun is plural
FEW = (2, 3, 4)  # what is added or given away: small steps, so that a small model can learn the sums

PLOTS: tuple[Plot, ...] = (
    Plot(
        "give",
        ("A", "B", "trait", "colour", "thing", "place", *DAY),
        (
            one("own"), one("walk"), one("meet"), one("wish"), one("give"),
            (("now_holds",), ("thank", "now_holds"), ("ask_holder", "answer_holder")),
            one("end_give"),
        ),
    ),
    Plot(
        "lose",
        ("A", "B", "trait", "colour", "thing", "place", "prep", "spot", "prep2", "spot2", *DAY),
        (
            one("own"), one("lose"), one("search"), one("helper"), one("found"),
            (("again",), ("ask_spot", "answer_spot")),
            one("end_find"),
        ),
    ),
    Plot(
        "count",
        ("A", "B", "food", "colour", "box", "shop", *DAY),
        (
            one("stock"), one("buy"), one("sum"), one("friend"), one("give_some"),
            (("left",), ("ask_left", "answer_left")),
            one("end_count"),
        ),
        tuple(
            {"n": n, "m": m, "k": n + m, "j": j, "r": n + m - j}
            for n in range(2, TEN - 1)
            for m in FEW
            for j in FEW
            if n + m <= TEN and n + m - j >= 2
        ),
    ),
    Plot(
        "pet",
        ("A", "trait", "animal", "pet", "place", "prep", "spot", *DAY),
        (
            one("keep_pet"), one("run"), one("hear"), one("spy"),
            (("safe",), ("safe", "ask_pet", "answer_pet")),
            one("end_pet"),
        ),
    ),
    Plot(
        "trip",
        ("A", "animal", "pet", "place", "place2", "bird", *DAY),
        (
            one("trip"), one("see"), one("see_more"), one("total"), ((), ("bark",)),
            (("now_at",), ("ask_at", "answer_at")),
            one("end_trip"),
        ),
        tuple({"n": n, "m": m, "k": n + m} for n in range(2, TEN - 1) for m in FEW if n + m <= TEN),
    ),
)  # fmt: skip


def distinct_stories() -> int:
    """A lower bound on the number of distinct stories, computed from the tables (see `Plot.count`)."""
    return sum(plot.count() for plot in PLOTS)


def _asked(event: str, *more: str) -> tuple[str, ...]:
    """A question, its answer, and the same for further ones: `ask_x` is answered by `answer_x`."""
    return tuple(part for ask in (event, *more) for part in (ask, ask.replace("ask_", "answer_")))


def _either(first: str, second: str) -> Alternatives:
    """One question or the other, or both in either order."""
    return (_asked(first), _asked(second), _asked(first, second), _asked(second, first))


_SUMS = tuple({"n": n, "m": k - n, "k": k} for k in range(TEN + 1) for n in range(k + 1))
_MORE = tuple(numbers for numbers in _SUMS if numbers["n"] >= 2 and numbers["m"] >= 2)

# The dialogues that are not about a whole story.
TALKS: tuple[Plot, ...] = (
    Plot(
        "own",
        ("A", "B", "colour", "thing", "colour2", "thing2"),
        (one("has"), one("has2"), _either("ask_has", "ask_has2")),
    ),
    Plot("hand", ("A", "B", "colour", "thing"), (one("has"), one("hands"), _either("ask_hands", "ask_gave"))),
    Plot(
        "where",
        ("animal", "animal2", "place", "place2"),
        (
            one("stands"), one("stands2"),
            (*_either("ask_animal", "ask_animal2"), _asked("ask_who"), _asked("ask_who", "ask_animal2")),
        ),
    ),
    Plot("go", ("A", "place", "place2"), (one("stays"), one("goes"), _either("ask_goes", "ask_was"))),
    Plot(
        "spots",
        ("A", "B", "colour", "thing", "prep", "room", "colour2", "thing2", "prep2", "room2"),
        (one("puts"), one("puts2"), _either("ask_put", "ask_put2")),
    ),
    Plot("add", ("A", "B", "food"), (one("has_some"), one("adds"), (_asked("ask_many"),)), _MORE),
    Plot(
        "take",
        ("A", "food"),
        (one("has_some"), one("eats"), (_asked("ask_many"),)),
        tuple({"n": numbers["k"], "m": numbers["n"], "k": numbers["m"]} for numbers in _MORE),
    ),
    Plot("plus", (), ((("ask_plus", "answer_sum"),),), _SUMS),
    Plot(
        "minus",
        (),
        ((("ask_minus", "answer_sum"),),),
        tuple({"n": numbers["k"], "m": numbers["n"], "k": numbers["m"]} for numbers in _SUMS),
    ),
    Plot(
        "sound",
        ("animal", "animal2"),
        (
            (
                ("ask_sound", "answer_sound"),
                ("ask_which", "answer_sound"),
                ("ask_does", "answer_yes"),
                ("ask_does2", "answer_no"),
            ),
        ),
    ),
    Plot("legs", ("animal",), ((_asked("ask_legs"),),)),
    Plot("use", ("thing",), ((_asked("ask_use"),),)),
    Plot("aid", ("animal", "feel"), (one("feels"), (_asked("ask_aid"),))),
    Plot("hello", ("A",), ((_asked("ask_hello"), _asked("ask_hello", "ask_name")),)),
)  # fmt: skip


def _questions() -> tuple[Plot, ...]:
    """The stories up to a question that they ask themselves: there, the user asks it and the assistant answers."""
    found = []
    for plot in PLOTS:
        for number, step in enumerate(plot.steps):
            asking = tuple(events for events in step if events and events[-1].startswith("answer_"))
            if asking:
                found.append(Plot(plot.name, plot.roles, (*plot.steps[:number], asking), plot.sums))
    return tuple(found)


STORY_QUESTIONS = _questions()
