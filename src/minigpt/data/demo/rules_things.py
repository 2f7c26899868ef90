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
    need(f["place"] in w.place.values(), f"nobody else is at the {f['place']}")
    if "A" in f:
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
    w.holds(f["B"], w.answer("holder", f.get("thing")))


def end_give(w: World, f: Facts) -> None:
    need(any(f.get("A", a) == a and f.get("B", b) == b for a, b in w.gave), "it names the wrong giver or receiver")
    if "A" in f:
        w.at(f["A"], f.get("place"))


# Two things are swapped.


def meet_up(w: World, f: Facts) -> None:
    w.place[f["A"]] = w.place[f["B"]] = f["place"]


def both_have(w: World, f: Facts) -> None:
    w.new_thing(f, f["A"])
    w.new_thing(f, f["B"], "2")


def like(w: World, f: Facts) -> None:
    need(w.holder[f["thing2"]] != f["A"], f"{f['A']} has the {f['thing2']}")
    w.liked[f["A"]] = f["thing2"]


def like_too(w: World, f: Facts) -> None:
    need(w.holder[f["thing"]] != f["B"], f"{f['B']} has the {f['thing']}")
    need(f["B"] not in w.liked, f"{f['B']} has said so before")
    w.liked[f["B"]] = f["thing"]


def swap(w: World, f: Facts) -> None:
    need(len(w.liked) == 2, "it takes two to swap")
    for person, thing in w.liked.items():
        w.holder[thing] = person


def after_swap(w: World, f: Facts) -> None:
    w.holds(f["A"], f["thing2"])
    w.holds(f["B"], f["thing"])


def end_swap(w: World, f: Facts) -> None:
    for person in w.liked:
        w.at(person, f.get("place"))


# A thing is lost and found.


def lose(w: World, f: Facts) -> None:
    w.holds(f["A"], f["thing"])
    w.lost, w.place[f["A"]] = f["thing"], f["place"]


def search(w: World, f: Facts) -> None:
    need(w.lost is not None and f.get("thing", w.lost) == w.lost, "it is not the thing that was lost")
    need(w.lost is not None and w.holder[w.lost] == f["A"], f"{f['A']} has lost nothing")
    w.searched.append(spot_of(f))


def helper(w: World, f: Facts) -> None:
    w.at(f["A"], f.get("place"))
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
    thing = w.answer("spot", f.get("thing"))
    w.hidden(thing, f, "2")
    w.at(w.holder[thing], f.get("place"))


def end_find(w: World, f: Facts) -> None:
    need(any(f.get("B", b) == b and f.get("A", a) == a for b, a in w.gave), "it names the wrong friend")
    if "A" in f:
        w.at(f["A"], f.get("place"))


# A thing is moved while its owner is away.


def put(w: World, f: Facts) -> None:
    own(w, f)
    w.spot[f["thing"]] = spot_of(f)
    w.said.update(owner=f["A"], moved=f["thing"])


def leave(w: World, f: Facts) -> None:
    w.part("owner", f["A"])
    w.place[f["A"]] = f["place"]


def move(w: World, f: Facts) -> None:
    w.part("owner", f["A"])
    w.at(f["A"], f.get("place"))
    need(w.place[f["A"]] != "home", f"{f['A']} is at home")
    need(w.spot[f["thing"]] != spot_of(f, "2"), f"the {f['thing']} was there before")
    w.searched.append(w.spot[f["thing"]])
    w.place[f["B"]], w.spot[f["thing"]], w.said["mover"] = "home", spot_of(f, "2"), f["B"]


def back(w: World, f: Facts) -> None:
    w.part("owner", f["A"])
    w.at(f["A"], f["place"])
    need(spot_of(f) in w.searched, f"the {f['thing']} was not {' the '.join(spot_of(f))} before")
    w.place[f["A"]] = "home"


def wonder(w: World, f: Facts) -> None:
    w.holds(f["A"], f["thing"])


def reveal(w: World, f: Facts) -> None:
    w.part("mover", f["B"])
    w.hidden(w.said["moved"], f, "2")


def find(w: World, f: Facts) -> None:
    w.part("owner", f["A"])
    w.at(f["A"], "home")
    w.hidden(f["thing"], f, "2")


def end_hide(w: World, f: Facts) -> None:
    w.part("owner", f.get("A"))
    w.part("mover", f.get("B"))


# A birthday with two presents.


def birthday(w: World, f: Facts) -> None:
    w.place[f["A"]], w.said["owner"] = f["place"], f["A"]


def gift(w: World, f: Facts) -> None:
    w.part("owner", f["A"])
    w.place[f["B"]] = w.place[f["A"]]
    w.giver[w.new_thing(f, f["A"])] = f["B"]


def gift2(w: World, f: Facts) -> None:
    w.part("owner", f["A"])
    w.place[f["C"]] = w.place[f["A"]]
    w.giver[w.new_thing(f, f["A"], "2")] = f["C"]


def thank_both(w: World, f: Facts) -> None:
    """Also for the ending that names the guests: both must be, in any order."""
    w.part("owner", f.get("A"))
    need({f["B"], f["C"]} == set(w.giver.values()), "these are not the two who brought something")


def gifts(w: World, f: Facts) -> None:
    w.part("owner", f.get("A"))
    for thing, person in (("thing", "B"), ("thing2", "C")):
        need(w.giver[f[thing]] == f[person], f"the {f[thing]} was from {w.giver[f[thing]]}, not {f[person]}")


def ask_giver(w: World, f: Facts) -> None:
    w.holds(f["A"], f["thing"])
    w.ask("giver", f["thing"])


def answer_giver(w: World, f: Facts) -> None:
    thing = w.answer("giver", f.get("thing"))
    need(w.giver[thing] == f["B"], f"the {thing} was from {w.giver[thing]}, not {f['B']}")


def end_party(w: World, f: Facts) -> None:
    if "B" in f:
        thank_both(w, f)
    w.at(w.said["owner"], f.get("place"))


THING_RULES: dict[str, Rule] = {
    **{rule.__name__: rule for rule in (
        own, walk, meet, wish, give, thank, now_holds, ask_holder, answer_holder, end_give,
        meet_up, both_have, like, like_too, swap, after_swap, end_swap,
        lose, search, helper, found, again, ask_spot, answer_spot, end_find,
        put, leave, move, back, wonder, reveal, find, end_hide,
        birthday, gift, gift2, thank_both, gifts, ask_giver, answer_giver, end_party,
    )},
}  # fmt: skip
