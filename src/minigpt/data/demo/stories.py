"""Short English stories made from a seed: story `index` of a seed is a pure function of the two."""

from collections.abc import Callable, Iterator
from itertools import count as count_up
from random import Random

from minigpt.data.demo.forms import ALIASES, FORMS, slot_class, wordings
from minigpt.data.demo.lexicon import AID_FOR, CLASSES, LEGS_OF, NUMBERS, SOUND_OF, USE_OF, pronouns
from minigpt.data.demo.plots import PLOTS, Plot

_WORDINGS = {event: wordings(event) for event in (*FORMS, *ALIASES)}


def below(seed: int, kind: str, index: int) -> Callable[[int], int]:
    """`draw(n)`, a stream of integers in [0, n) that belongs to this seed, kind and index alone.

    `random.Random` keeps string seeds and `random()` the same across Python versions, unlike `choice` or `sample`.
    """
    uniform = Random(f"minigpt:{kind}:{seed}:{index}").random
    return lambda n: int(uniform() * n)


def fill(roles: tuple[str, ...], draw: Callable[[int], int]) -> dict[str, str]:
    """Pick a word for each role, no word twice."""
    values: dict[str, str] = {}
    for role in roles:
        pool = CLASSES[slot_class(role)]
        word = pool[draw(len(pool))]
        while word in values.values():
            word = pool[draw(len(pool))]
        values[role] = word
    return values


def story(seed: int, index: int) -> str:
    """Story number `index` of `seed`: one paragraph of 6 to 8 short sentences, without a line break."""
    draw = below(seed, "story", index)
    return " ".join(sentence for _, sentence in tell(PLOTS[draw(len(PLOTS))], draw))


def tell(plot: Plot, draw: Callable[[int], int]) -> list[tuple[str, str]]:
    """Fill the roles of a plot and choose among its alternatives: the (event, sentence) pairs of one text."""
    values = _cast(plot, draw)
    told = []
    for step in plot.steps:
        for event in step[draw(len(step))]:
            forms = _WORDINGS[event]
            told.append((event, forms[draw(len(forms))].format_map(values)))
    return told


def _cast(plot: Plot, draw: Callable[[int], int]) -> dict[str, str]:
    """Fill a plot's roles, and the slots that follow from them."""
    values = fill(plot.roles, draw)
    numbers = plot.sums[draw(len(plot.sums))]
    values.update({role: NUMBERS[number] for role, number in numbers.items()})
    if "A" in values:
        values.update(pronouns(values["A"]))
    if "B" in values:
        values.update(pronouns(values["B"], "_B"))
    if "animal" in values:
        kind = values["animal"]
        values.update(sound=SOUND_OF[kind], Sound=SOUND_OF[kind].capitalize(), legs=LEGS_OF[kind])
    if "animal2" in values:
        values["sound2"] = SOUND_OF[values["animal2"]]
    if "thing" in values:
        values["use"] = USE_OF[values["thing"]]
    if "feel" in values:
        values["aid"] = AID_FOR[values["feel"]]
    return values


def stories(seed: int, count: int | None = None) -> Iterator[str]:
    """The first `count` stories of `seed`, in order; without end when `count` is None."""
    for index in count_up() if count is None else range(count):
        yield story(seed, index)
