"""Short English stories made from a seed: story `index` of a seed is a pure function of the two."""

from collections.abc import Callable, Iterator
from itertools import count as count_up
from random import Random

from minigpt.data.demo.forms import slot_class, wordings
from minigpt.data.demo.lexicon import AID_FOR, CLASSES, NUMBERS, SOUND_OF, pronouns
from minigpt.data.demo.plots import PLOTS, Plot

_WORDINGS = {event: wordings(event) for plot in PLOTS for step in plot.steps for events in step for event in events}
_POOLS = {plot.name: tuple((role, CLASSES[slot_class(role)]) for role in plot.roles) for plot in PLOTS}


def below(seed: int, kind: str, index: int) -> Callable[[int], int]:
    """`draw(n)`, a stream of integers in [0, n) that belongs to this seed, kind and index alone.

    `random.Random` keeps its string seeding and `random()` the same across Python versions, unlike `choice` or `sample`.
    """
    uniform = Random(f"minigpt:{kind}:{seed}:{index}").random
    return lambda n: int(uniform() * n)


def fill(roles: tuple[tuple[str, tuple[str, ...]], ...], draw: Callable[[int], int]) -> dict[str, str]:
    """Pick a word for each `(role, pool)`, no word twice."""
    values: dict[str, str] = {}
    for role, pool in roles:
        word = pool[draw(len(pool))]
        while word in values.values():
            word = pool[draw(len(pool))]
        values[role] = word
    return values


def story(seed: int, index: int) -> str:
    """Story number `index` of `seed`: one paragraph of 6 to 9 short sentences, without a line break."""
    draw = below(seed, "story", index)
    plot = PLOTS[draw(len(PLOTS))]
    values = _cast(plot, draw)
    sentences = []
    for step in plot.steps:
        for event in step[draw(len(step))]:
            forms = _WORDINGS[event]
            sentences.append(forms[draw(len(forms))].format_map(values))
    return " ".join(sentences)


def _cast(plot: Plot, draw: Callable[[int], int]) -> dict[str, str]:
    """Fill a plot's roles, and the slots that follow from them."""
    values = fill(_POOLS[plot.name], draw)
    numbers = plot.sums[draw(len(plot.sums))]
    values.update({role: NUMBERS[number] for role, number in numbers.items()})
    if "A" in values:
        values.update(pronouns(values["A"]))
    if "B" in values:
        values.update(pronouns(values["B"], "_B"))
    if "animal" in values:
        values.update(sound=SOUND_OF[values["animal"]], Sound=SOUND_OF[values["animal"]].capitalize())
    if "animal2" in values:
        values["Sound2"] = SOUND_OF[values["animal2"]].capitalize()
    if "feel" in values:
        values["aid"] = AID_FOR[values["feel"]]
    return values


def stories(seed: int, count: int | None = None) -> Iterator[str]:
    """The first `count` stories of `seed`, in order; without end when `count` is None."""
    for index in count_up() if count is None else range(count):
        yield story(seed, index)
