"""What each event of a story about counts, pets or animals requires and changes, as rules_things.py does for things."""

from minigpt.data.demo.lexicon import AID_FOR
from minigpt.data.demo.rules_things import Rule
from minigpt.data.demo.world import Facts, World, amount, need, same, sounds, spot_of

# Things are counted.


def stock(w: World, f: Facts) -> None:
    w.place[f["A"]], w.count[f["A"]] = "home", amount(f, "n")
    w.said["owner"] = f["A"]


def buy(w: World, f: Facts) -> None:
    w.place[f["A"]] = f["shop"]
    w.count[f["A"]] += amount(f, "m")


def sum_(w: World, f: Facts) -> None:
    w.part("owner", f.get("A"))
    same(amount(f, "k"), w.count[w.said["owner"]])


def friend(w: World, f: Facts) -> None:
    w.part("owner", f["A"])
    w.place[f["B"]], w.count[f["B"]] = w.place[f["A"]], 0


def give_some(w: World, f: Facts) -> None:
    w.part("owner", f["A"])
    given = amount(f, "j")
    need(given <= w.count[f["A"]], f"{f['A']} does not have so many")
    w.count[f["A"]] -= given
    w.count[f["B"]] += given
    w.gave.add((f["A"], f["B"]))


def left(w: World, f: Facts) -> None:
    same(amount(f, "r"), w.count[f.get("A", w.said["owner"])])
    if "B" in f:
        same(amount(f, "j"), w.count[f["B"]])


def ask_left(w: World, f: Facts) -> None:
    w.ask("count", f["A"])


def answer_left(w: World, f: Facts) -> None:
    same(amount(f, "r"), w.count[w.answer("count", f["A"])])


def end_count(w: World, f: Facts) -> None:
    need(all((f.get("A", a), f.get("B", b)) == (a, b) for a, b in w.gave), "it names the wrong giver or receiver")


# Something baked is eaten in secret.


def bake(w: World, f: Facts) -> None:
    w.place[f["A"]], w.count[f["A"]] = "home", amount(f, "n")
    w.said["baker"] = f["A"]


def eat(w: World, f: Facts) -> None:
    w.part("baker", f["A"])
    w.place[f["B"]], w.said["eater"] = "home", f["B"]
    w.total = amount(f, "m")
    need(w.total <= w.count[f["A"]], f"there are not so many {f['bun']}")
    w.count[f["A"]] -= w.total


def remain(w: World, f: Facts) -> None:
    w.part("baker", f.get("A"))
    same(amount(f, "k"), w.count[w.said["baker"]])


def ask_remain(w: World, f: Facts) -> None:
    w.ask("remain")


def answer_remain(w: World, f: Facts) -> None:
    w.answer("remain")
    remain(w, f)


def sorry(w: World, f: Facts) -> None:
    w.part("eater", f["B"])
    same(amount(f, "m"), w.total)
    w.part("baker", f.get("A"))


def end_bake(w: World, f: Facts) -> None:
    """Also for the sentence that forgives."""
    w.part("baker", f.get("A"))
    w.part("eater", f.get("B"))
    if "k" in f:
        remain(w, f)


# A pet runs away, or comes along on a walk.


def keep_pet(w: World, f: Facts) -> None:
    w.place[f["A"]] = w.place[f["pet"]] = "home"
    w.said.update(owner=f["A"], animal=f["animal"])


def run(w: World, f: Facts) -> None:
    w.place[f["pet"]] = f["place"]


def seek(w: World, f: Facts) -> None:
    need(f["place2"] != w.place[w.said["pet"]], f"{w.said['pet']} was at the {f['place2']}")
    w.place[f["A"]] = f["place2"]


def hear(w: World, f: Facts) -> None:
    w.at(w.said["pet"], f["place"])
    sounds(f, w.said["animal"], "sound", "Sound")
    w.place[f["A"]] = f["place"]


def spy(w: World, f: Facts) -> None:
    w.at(f["pet"], w.place[w.said["owner"]])
    w.spot[f["pet"]] = spot_of(f)


def ask_pet(w: World, f: Facts) -> None:
    w.ask("pet", w.said["pet"])


def answer_pet(w: World, f: Facts) -> None:
    """The pet is home again by now, but `place` still holds where it was found: being safe at home moves nobody."""
    pet = w.answer("pet", f.get("pet"))
    w.at(pet, f["place"])
    w.hidden(pet, f)


def with_pet(w: World, f: Facts) -> None:
    """Sentences that repeat whose pet it is, where the two are and what it says."""
    w.part("owner", f.get("A"))
    w.at(w.said["pet"], f.get("place2"))
    sounds(f, w.said["animal"], "sound", "Sound")


def trip(w: World, f: Facts) -> None:
    keep_pet(w, f)
    w.place[f["A"]] = w.place[f["pet"]] = f["place"]


def see(w: World, f: Facts) -> None:
    w.at(w.said["pet"], f.get("place"))
    w.total = amount(f, "n")


def see_more(w: World, f: Facts) -> None:
    w.part("owner", f.get("A"))
    need(f["place2"] not in w.place.values(), f"they were at the {f['place2']} before")
    w.place = dict.fromkeys(w.place, f["place2"])
    w.total += amount(f, "m")


def total(w: World, f: Facts) -> None:
    w.part("owner", f.get("A"))
    same(amount(f, "k"), w.total)


def ask_at(w: World, f: Facts) -> None:
    w.part("owner", f.get("A"))
    w.ask("at")


def answer_at(w: World, f: Facts) -> None:
    w.answer("at")
    with_pet(w, f)


# One animal helps another.


def live(w: World, f: Facts) -> None:
    need(f["animal"] != f["animal2"], f"there are two of the {f['animal']}")
    w.said["helper"] = f["animal2"]
    w.said["one in need"] = f["animal"]


def animals(w: World, f: Facts) -> None:
    """Sentences about the two animals: each plays its part, makes its sound; the aid is the one for the feeling."""
    w.part("one in need", f.get("animal"))
    w.part("helper", f.get("animal2"))
    sounds(f, w.said["one in need"], "Sound")
    sounds(f, w.said["helper"], "Sound2")
    feel, aid = w.said["feel"], f.get("aid")
    need(aid in (None, AID_FOR[feel]), f"a {aid} does not help when one is {feel}")


def need_help(w: World, f: Facts) -> None:
    """Either of the two may be in need: this sentence says which."""
    if f["animal"] == w.said["helper"]:
        w.said["helper"], w.said["one in need"] = w.said["one in need"], w.said["helper"]
    w.part("one in need", f["animal"])


def ask_helper(w: World, f: Facts) -> None:
    animals(w, f)
    w.ask("helper")


def answer_helper(w: World, f: Facts) -> None:
    w.answer("helper")
    animals(w, f)


OTHER_RULES: dict[str, Rule] = {
    "stock": stock, "buy": buy, "sum": sum_, "friend": friend, "give_some": give_some, "left": left,
    "ask_left": ask_left, "answer_left": answer_left, "end_count": end_count,
    "bake": bake, "eat": eat, "remain": remain, "ask_remain": ask_remain, "answer_remain": answer_remain,
    "sorry": sorry, "forgive": end_bake, "end_bake": end_bake,
    "keep_pet": keep_pet, "run": run, "seek": seek, "hear": hear, "spy": spy, "safe": with_pet,
    "ask_pet": ask_pet, "answer_pet": answer_pet, "end_pet": with_pet,
    "trip": trip, "see": see, "see_more": see_more, "total": total, "bark": with_pet, "now_at": with_pet,
    "ask_at": ask_at, "answer_at": answer_at, "end_trip": with_pet,
    "live": live, "need": need_help, "cry": animals, "offer": animals, "aid": animals, "better": animals,
    "ask_helper": ask_helper, "answer_helper": answer_helper, "end_help": animals,
}  # fmt: skip
