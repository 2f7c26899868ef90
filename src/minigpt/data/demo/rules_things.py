"""What each event of a story about things requires and changes: one small function for each, named after its event.

A rule reads only the words of its sentence (`f`) and the world that the sentences before it have told (`w`).
"""

from collections.abc import Callable

from minigpt.data.demo.world import Facts, World, need, spot_of

Rule = Callable[[World, Facts], None]


# A thing is owned, carried, given away.


def own(w: World, f: Facts) -> None:
    w.place[f["A"]] = "home"
    w.new_thing(f, f["A"])


def walk(w: World, f: Facts) -> None:
    w.holds(f["A"], f["thing"])
    w.place[f["A"]] = f["place"]


def meet(w: World, f: Facts) -> None:
    w.at(f["A"], f["place"])
    w.place[f["B"]] = f["place"]


def wish(w: World, f: Facts) -> None:
    holder = w.holder[f["thing"]]
    need(holder != f["B"], f"{f['B']} has the {f['thing']}")
    w.at(f["B"], w.place[holder])


def give(w: World, f: Facts) -> None:
    w.holds(f["A"], f["thing"])
    w.at(f["B"], w.place[f["A"]])
    w.holder[f["thing"]] = f["B"]
    w.gave.add((f["A"], f["B"]))


def thank(w: World, f: Facts) -> None:
    need((f["A"], f["B"]) in w.gave, f"{f['A']} gave {f['B']} nothing")


def now_holds(w: World, f: Facts) -> None:
    w.holds(f["B"], f["thing"])


def ask_holder(w: World, f: Facts) -> None:
    w.ask("holder", f["thing"])


def answer_holder(w: World, f: Facts) -> None:
    w.holds(f["B"], w.answer("holder"))


def end_give(w: World, f: Facts) -> None:
    need(any((f["A"], f.get("B", b)) == (a, b) for a, b in w.gave), "it names the wrong giver or receiver")
    w.at(f["A"], f.get("place"))


# A thing is lost and found.


def lose(w: World, f: Facts) -> None:
    w.holds(f["A"], f["thing"])
    w.lost, w.place[f["A"]] = f["thing"], f["place"]


def search(w: World, f: Facts) -> None:
    need(w.lost == f["thing"], "it is not the thing that was lost")
    w.searched.append(spot_of(f))


def helper(w: World, f: Facts) -> None:
    w.place[f["B"]] = w.place[f["A"]]


def found(w: World, f: Facts) -> None:
    need(w.lost == f["thing"], f"the {f['thing']} was not lost")
    need(w.holder[f["thing"]] == f["A"], f"it was not {f['A']} who lost the {f['thing']}")
    w.at(f["B"], w.place[f["A"]])
    spot = spot_of(f, "2")
    need(spot not in w.searched, f"{' the '.join(spot)} there was nothing")
    w.spot[f["thing"]], w.lost = spot, None
    w.gave.add((f["B"], f["A"]))


def again(w: World, f: Facts) -> None:
    w.holds(f["A"], f["thing"])


def ask_spot(w: World, f: Facts) -> None:
    w.ask("spot", f["thing"])


def answer_spot(w: World, f: Facts) -> None:
    w.hidden(w.answer("spot"), f, "2")


def end_find(w: World, f: Facts) -> None:
    need((f["B"], f["A"]) in w.gave, "it names the wrong friend")
    w.at(f["A"], f.get("place"))


THING_RULES: dict[str, Rule] = {
    **{rule.__name__: rule for rule in (
        own, walk, meet, wish, give, thank, now_holds, ask_holder, answer_holder, end_give,
        lose, search, helper, found, again, ask_spot, answer_spot, end_find,
    )},
}  # fmt: skip
