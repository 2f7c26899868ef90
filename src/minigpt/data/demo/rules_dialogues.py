"""What each sentence of a dialogue requires and changes, as rules_things.py does for stories.

A question leaves open what it asks (`World.ask`); the answer must be about that, and true.
"""

from minigpt.data.demo.lexicon import AID_FOR, LEGS_OF, NUMBERS, USE_OF
from minigpt.data.demo.rules_things import Rule
from minigpt.data.demo.world import Facts, World, amount, need, same, sounds, spot_of


def has(w: World, f: Facts) -> None:
    w.place[f["A"]] = "home"
    w.new_thing(f, f["A"])


def hands(w: World, f: Facts) -> None:
    w.holds(f["A"], f["thing"])
    w.place[f["B"]] = "home"
    w.holder[f["thing"]], w.giver[f["thing"]], w.said["receiver"] = f["B"], f["A"], f["B"]


def ask_holder(w: World, f: Facts) -> None:
    w.ask("holder", f["thing"])


def answer_holder(w: World, f: Facts) -> None:
    w.holds(f.get("B") or f["A"], w.answer("holder", f["thing"]))


def ask_gave(w: World, f: Facts) -> None:
    w.part("receiver", f["B"])
    w.ask("giver", f["thing"])


def answer_gave(w: World, f: Facts) -> None:
    w.part("receiver", f.get("B"))
    thing = w.answer("giver", f.get("thing"))
    need(w.giver[thing] == f["A"], f"{w.giver[thing]} gave the {thing}, not {f['A']}")


def stands(w: World, f: Facts) -> None:
    need(f["animal"] not in w.place, f"there are two of the {f['animal']}")
    need(f["place"] not in w.place.values(), f"the {f['place']} is taken")
    w.place[f["animal"]] = f["place"]


def ask_animal(w: World, f: Facts) -> None:
    need(f["animal"] in w.place, f"there is no {f['animal']} in the story")
    w.ask("animal", f["animal"])


def answer_animal(w: World, f: Facts) -> None:
    w.at(w.answer("animal", f.get("animal")), f["place"])


def ask_who(w: World, f: Facts) -> None:
    need(f["place"] in w.place.values(), f"nobody is at the {f['place']}")
    w.ask("who", f["place"])


def answer_who(w: World, f: Facts) -> None:
    need(f["animal"] in w.place, f"there is no {f['animal']} in the story")
    w.at(f["animal"], w.answer("who", f.get("place")))


def stays(w: World, f: Facts) -> None:
    w.place[f["A"]] = w.said["before"] = f["place"]


def goes(w: World, f: Facts) -> None:
    need(w.place[f["A"]] != f["place2"], f"{f['A']} is at the {f['place2']} already")
    w.place[f["A"]] = f["place2"]


def ask_person(w: World, f: Facts) -> None:
    w.ask("person", f["A"])


def answer_goes(w: World, f: Facts) -> None:
    w.at(w.answer("person", f["A"]), f["place2"])


def answer_was(w: World, f: Facts) -> None:
    w.answer("person", f["A"])
    w.once("before", f["place"])


def puts(w: World, f: Facts) -> None:
    has(w, f)
    w.spot[f["thing"]] = spot_of(f)


def ask_put(w: World, f: Facts) -> None:
    w.ask("put", f["thing"])


def answer_put(w: World, f: Facts) -> None:
    w.hidden(w.answer("put", f.get("thing")), f)


def has_some(w: World, f: Facts) -> None:
    w.place[f["A"]], w.count[f["A"]] = "home", amount(f, "n")


def adds(w: World, f: Facts) -> None:
    w.count[f["A"]] += amount(f, "m")


def eats(w: World, f: Facts) -> None:
    w.count[f["A"]] -= amount(f, "m")


def answer_many(w: World, f: Facts) -> None:
    same(amount(f, "k"), w.count[w.answer("person", f["A"])])


def ask_plus(w: World, f: Facts) -> None:
    w.total = NUMBERS.index(f["n"]) + NUMBERS.index(f["m"])
    w.ask("sum")


def ask_minus(w: World, f: Facts) -> None:
    w.total = NUMBERS.index(f["n"]) - NUMBERS.index(f["m"])
    need(w.total >= 0, f"{f['n']} is less than {f['m']}")
    w.ask("sum")


def answer_sum(w: World, f: Facts) -> None:
    w.answer("sum")
    same(NUMBERS.index(f["k"]), w.total)


def ask_sound(w: World, f: Facts) -> None:
    w.ask("sound", f.get("animal") or f["sound"])


def answer_sound(w: World, f: Facts) -> None:
    need(w.answer("sound") in (f["animal"], f["sound"]), "the question was about another one")
    sounds(f, f["animal"], "sound")


def ask_does(w: World, f: Facts) -> None:
    w.said["guess"] = f["sound"]
    w.ask("does", f["animal"])


def answer_yes(w: World, f: Facts) -> None:
    sounds(f, w.answer("does", f["animal"]), "sound")
    need(f["sound"] == w.said["guess"], "the answer should be no")


def answer_no(w: World, f: Facts) -> None:
    sounds(f, w.answer("does", f["animal"]), "sound")
    need(f["sound"] != w.said["guess"], "the answer should be yes")


def ask_legs(w: World, f: Facts) -> None:
    w.ask("legs", f["animal"])


def answer_legs(w: World, f: Facts) -> None:
    animal = w.answer("legs", f["animal"])
    need(f["legs"] == LEGS_OF[animal], f"a {animal} has {LEGS_OF[animal]} legs")


def ask_use(w: World, f: Facts) -> None:
    w.ask("use", f["thing"])


def answer_use(w: World, f: Facts) -> None:
    thing = w.answer("use", f.get("thing"))
    need(f["use"] == USE_OF[thing], f"one does not {f['use']} a {thing}")


def feels(w: World, f: Facts) -> None:
    w.said["animal"] = f["animal"]


def ask_aid(w: World, f: Facts) -> None:
    w.once("animal", f.get("animal"))
    w.ask("aid")


def answer_aid(w: World, f: Facts) -> None:
    w.answer("aid")
    w.once("animal", f.get("animal"))
    need(f["aid"] == AID_FOR[w.said["feel"]], f"a {f['aid']} does not help when one is {w.said['feel']}")


def ask_hello(w: World, f: Facts) -> None:
    w.place[f["A"]] = "home"
    w.said["friend"] = f["A"]
    w.ask("hello", f["A"])


def answer_hello(w: World, f: Facts) -> None:
    w.answer("hello", f["A"])


def ask_name(w: World, f: Facts) -> None:
    w.ask("name", w.said["friend"])


def answer_name(w: World, f: Facts) -> None:
    w.answer("name", f["A"])


DIALOGUE_RULES: dict[str, Rule] = {
    "has": has, "ask_has": ask_holder, "answer_has": answer_holder,
    "hands": hands, "ask_hands": ask_holder, "answer_hands": answer_holder,
    "ask_gave": ask_gave, "answer_gave": answer_gave,
    "stands": stands, "ask_animal": ask_animal, "answer_animal": answer_animal,
    "ask_who": ask_who, "answer_who": answer_who,
    "stays": stays, "goes": goes, "ask_goes": ask_person, "answer_goes": answer_goes,
    "ask_was": ask_person, "answer_was": answer_was,
    "puts": puts, "ask_put": ask_put, "answer_put": answer_put,
    "has_some": has_some, "adds": adds, "eats": eats, "ask_many": ask_person, "answer_many": answer_many,
    "ask_plus": ask_plus, "ask_minus": ask_minus, "answer_sum": answer_sum,
    "ask_sound": ask_sound, "ask_which": ask_sound, "answer_sound": answer_sound,
    "ask_does": ask_does, "answer_yes": answer_yes, "answer_no": answer_no,
    "ask_legs": ask_legs, "answer_legs": answer_legs, "ask_use": ask_use, "answer_use": answer_use,
    "feels": feels, "ask_aid": ask_aid, "answer_aid": answer_aid,
    "ask_hello": ask_hello, "answer_hello": answer_hello, "ask_name": ask_name, "answer_name": answer_name,
}  # fmt: skip
