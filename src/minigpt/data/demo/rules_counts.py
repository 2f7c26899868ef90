"""What each event of a story about counts or pets requires and changes, as rules_things.py does for things."""

from minigpt.data.demo.rules_things import Rule
from minigpt.data.demo.world import Facts, World, amount, need, same, sounds, spot_of

# Things are counted.


def stock(w: World, f: Facts) -> None:
    w.place[f["A"]], w.count[f["A"]] = "home", amount(f, "n")


def buy(w: World, f: Facts) -> None:
    w.place[f["A"]] = f["shop"]
    w.count[f["A"]] += amount(f, "m")


def sum_(w: World, f: Facts) -> None:
    same(amount(f, "k"), w.count[f["A"]])


def friend(w: World, f: Facts) -> None:
    w.place[f["B"]], w.count[f["B"]] = w.place[f["A"]], 0


def give_some(w: World, f: Facts) -> None:
    given = amount(f, "j")
    need(given <= w.count[f["A"]], f"{f['A']} does not have so many")
    w.count[f["A"]] -= given
    w.count[f["B"]] += given
    w.gave.add((f["A"], f["B"]))


def left(w: World, f: Facts) -> None:
    same(amount(f, "r"), w.count[f["A"]])
    same(amount(f, "j"), w.count[f["B"]])


def ask_left(w: World, f: Facts) -> None:
    w.ask("count", f["A"])


def answer_left(w: World, f: Facts) -> None:
    same(amount(f, "r"), w.count[w.answer("count", f["A"])])


def end_count(w: World, f: Facts) -> None:
    need(all((f.get("A", a), f.get("B", b)) == (a, b) for a, b in w.gave), "it names the wrong giver or receiver")


# A pet runs away, or comes along on a walk.


def keep_pet(w: World, f: Facts) -> None:
    w.place[f["A"]] = w.place[f["pet"]] = "home"


def run(w: World, f: Facts) -> None:
    w.place[f["pet"]] = f["place"]


def hear(w: World, f: Facts) -> None:
    w.at(w.said["pet"], f["place"])
    sounds(f, w.said["animal"], "sound")
    w.place[f["A"]] = f["place"]


def spy(w: World, f: Facts) -> None:
    w.at(f["pet"], w.place[f["A"]])
    w.spot[f["pet"]] = spot_of(f)


def ask_pet(w: World, f: Facts) -> None:
    w.ask("pet", f["pet"])


def answer_pet(w: World, f: Facts) -> None:
    """The pet may be home again by now, but `place` still holds where it was found: being safe moves nobody."""
    pet = w.answer("pet", f["pet"])
    w.at(pet, f["place"])
    w.hidden(pet, f)


def with_pet(w: World, f: Facts) -> None:
    """Sentences that repeat where the two are and what the pet says."""
    w.at(w.said["pet"], f.get("place2"))
    sounds(f, w.said["animal"], "sound", "Sound")


def trip(w: World, f: Facts) -> None:
    w.place[f["A"]] = w.place[f["pet"]] = f["place"]


def see(w: World, f: Facts) -> None:
    w.total = amount(f, "n")


def see_more(w: World, f: Facts) -> None:
    need(f["place2"] not in w.place.values(), f"they were at the {f['place2']} before")
    w.place = dict.fromkeys(w.place, f["place2"])
    w.total += amount(f, "m")


def total(w: World, f: Facts) -> None:
    same(amount(f, "k"), w.total)


def ask_at(w: World, f: Facts) -> None:
    w.ask("at")


def answer_at(w: World, f: Facts) -> None:
    w.answer("at")
    with_pet(w, f)


OTHER_RULES: dict[str, Rule] = {
    "stock": stock, "buy": buy, "sum": sum_, "friend": friend, "give_some": give_some, "left": left,
    "ask_left": ask_left, "answer_left": answer_left, "end_count": end_count,
    "keep_pet": keep_pet, "run": run, "hear": hear, "spy": spy, "safe": with_pet,
    "ask_pet": ask_pet, "answer_pet": answer_pet, "end_pet": with_pet,
    "trip": trip, "see": see, "see_more": see_more, "total": total, "bark": with_pet, "now_at": with_pet,
    "ask_at": ask_at, "answer_at": answer_at, "end_trip": with_pet,
}  # fmt: skip
