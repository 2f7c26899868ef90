"""The story generator and its checker, held against an oracle that works in another way.

The checker replays a story in a world. The oracle below never does: it is told which wordings a story used, matches the
changed text against them with one word for each role (regular expressions with back references), and checks the few
facts that follow from others (gender, sums, sounds).
"""

import hashlib
import random
import re
import time
from itertools import islice

import pytest

from minigpt.data.demo import GRAMMAR_VERSION, check_story, distinct_stories, stories, story
from minigpt.data.demo.check import RULES
from minigpt.data.demo.forms import ALIASES, FORMS, SLOT, slot_class, wordings
from minigpt.data.demo.lexicon import BOYS, CLASS_OF, CLASSES, GIRLS, NUMBERS, SOUND_OF
from minigpt.data.demo.parser import compile_forms, split_sentences
from minigpt.data.demo.plots import PLOTS, TALKS, Plot, one
from minigpt.data.demo.stories import below, tell

Told = list[tuple[str, str]]


def told(index: int) -> tuple[Plot, Told]:
    """The plot and the (event, sentence) pairs of story `index` of seed 11."""
    draw = below(11, "story", index)
    plot = PLOTS[draw(len(PLOTS))]
    return plot, tell(plot, draw)


def wording(event: str, sentence: str) -> str:
    """The template that made the sentence: the one with its fixed words and with words of its classes in the slots."""
    for form in wordings(event):
        pieces = SLOT.split(form)
        regex = "".join(f"(?:{'|'.join(pool(p))})" if i % 2 else re.escape(p) for i, p in enumerate(pieces))
        if re.fullmatch(regex, sentence):
            return form
    raise AssertionError(f"no wording of {event} makes {sentence!r}")


def pool(slot: str) -> tuple[str, ...]:
    word_class = slot_class(slot)
    return CLASSES["him" if word_class == "his" else word_class]


def oracle(templates: list[str], text: str) -> bool:
    """Whether one choice of words for the roles makes this text out of these templates."""
    seen: set[str] = set()

    regex = ""
    for i, piece in enumerate(SLOT.split(" ".join(templates))):
        if i % 2 == 0:
            regex += re.escape(piece)
        elif piece in seen:
            regex += f"(?P={piece})"
        else:
            seen.add(piece)
            regex += f"(?P<{piece}>{'|'.join(pool(piece))})"
    match = re.fullmatch(regex, text)
    if match is None:
        return False
    return follows(match.groupdict())


def follows(words: dict[str, str]) -> bool:
    """The facts that follow from others."""
    for role, suffix in (("A", ""), ("B", "_B")):
        female = {"he": "she", "He": "She", "him": "her", "his": "her", "child": "girl"}
        male = {"he": "he", "He": "He", "him": "him", "his": "his", "child": "boy"}
        right = female if words.get(role) in GIRLS else male
        if any(words.get(slot + suffix, right[slot]) != right[slot] for slot in right):
            return False
    for slots in (("A", "B"), ("place", "place2")):
        used = [words[slot] for slot in slots if slot in words]
        if len(set(used)) < len(used):
            return False
    if "spot2" in words and (words["prep2"], words["spot2"]) == (words["prep"], words["spot"]):
        return False
    if any(slot in words and words[slot].lower() != SOUND_OF[words["animal"]] for slot in ("sound", "Sound")):
        return False
    number = {slot: NUMBERS.index(word) for slot, word in words.items() if slot in "nmkjr"}
    if any(value < 2 for value in number.values()):
        return False
    if "j" in number:  # counting: n bought m more, makes k; j given away, r left
        total = number["n"] + number["m"]
        return total == number.get("k", total) and number["j"] + number.get("r", total - number["j"]) == total
    return "k" not in number or number["n"] + number["m"] == number["k"]


def test_version_and_vocabulary() -> None:
    assert GRAMMAR_VERSION == 1
    assert len(CLASS_OF) == sum(len(words) for words in CLASSES.values()), "a word is in two classes"
    literals = {
        word for forms in FORMS.values() for form in forms for word in re.findall("[A-Za-z]+", SLOT.sub("", form))
    }
    assert not literals & set(CLASS_OF), "a fixed word of a form is also a word of a class"
    shown = {slot_class(slot) for forms in FORMS.values() for form in forms for slot in SLOT.findall(form)}
    assert shown - {"his"} == set(CLASSES), "a class that no sentence shows"  # "his" is in the class of "him"
    names = (*GIRLS, *BOYS, *CLASSES["pet"])
    assert not [(a, b) for a in names for b in names if a != b and a.lower() in b.lower()]
    assert not set(GIRLS) & set(BOYS)
    after_a = [word for name in ("trait", "weather", "colour", "animal", "thing", "aid") for word in CLASSES[name]]
    assert not [word for word in after_a if word[0] in "aeiou"], "would need 'an'"
    used = {word for text in stories(0, 5000) for word in re.findall("[A-Za-z]+", text)}
    assert 200 <= len({word.lower() for word in used}) <= 260


def test_every_event_has_a_rule_and_is_used() -> None:
    used = {event for plot in (*PLOTS, *TALKS) for step in plot.steps for events in step for event in events}
    assert {ALIASES.get(event, (event, {}))[0] for event in used} == set(FORMS) == set(RULES)
    assert set(ALIASES) <= used


def test_no_sentence_can_be_read_in_two_ways_at_one_place() -> None:
    """Each skeleton belongs to one wording of an event, so different choices of wording give different texts."""
    for readings in compile_forms(FORMS).values():
        events = [reading.event for reading in readings]
        assert len(set(events)) == len(events)
    for plot in (*PLOTS, *TALKS):
        steps = [{event for events in step for event in events} for step in plot.steps]
        assert sum(map(len, steps)) == len(set().union(*steps)), "an event comes in two steps"


def test_random_access_and_purity() -> None:
    assert list(stories(5, 4)) == [story(5, index) for index in range(4)] == list(islice(stories(5), 4))
    assert story(5, 0) != story(6, 0)
    random.seed(1)
    first = story(5, 3)
    random.seed(2)
    assert story(5, 3) == first


def test_the_stream_is_the_stable_one() -> None:
    """Seeding `random.Random` with a string, and `random()`, are the two things that Python keeps the same."""
    draw, uniform = below(7, "story", 3), random.Random("minigpt:story:7:3").random
    assert [draw(1000) for _ in range(5)] == [int(uniform() * 1000) for _ in range(5)]
    assert random.Random("minigpt").random() == 0.3064733529262753  # what CPython 3.11 gives


def test_form_of_stories() -> None:
    texts = list(stories(2, 3000))
    assert not any("\n" in text or "  " in text or "{" in text for text in texts)
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) >= 45 and max(lengths) <= 80 and 55 <= sum(lengths) / len(lengths) <= 75
    assert {len(split_sentences(text)) for text in texts} == {6, 7, 8}


def test_the_grammar_is_frozen() -> None:
    """A published contract, not a property: what the demo reports is about these very stories of grammar version 1.

    Whoever changes one byte of them makes a new `GRAMMAR_VERSION`, and a new hash here.
    """
    first = "\n".join(stories(0, 100)).encode()
    assert (GRAMMAR_VERSION, hashlib.sha256(first).hexdigest()) == (
        1,
        "6fba1cc62f64b377d970091e207e48002096bf1ebebd67fa46932a04e8f982d2",
    )


def test_more_than_a_thousand_million_stories() -> None:
    """So many that hardly any story that a model tells was in the text it was trained on."""
    bounds = {plot.name: plot.count() for plot in PLOTS}
    assert bounds == {
        "give": 4_290_048_000,
        "lose": 257_402_880_000,
        "count": 6_128_640_000,
        "pet": 774_144_000,
        "trip": 17_418_240_000,
    }
    assert distinct_stories() == sum(bounds.values()) == 286_013_952_000 > 10**9
    assert len(set(stories(3, 20_000))) >= 19_999


@pytest.mark.parametrize(
    "plot",
    [
        Plot("tiny", ("pet", "place", "weather", "time"), (one("run"),)),
        Plot("found", ("pet", "place", "prep", "spot"), (one("ask_pet"), ((), ("answer_pet",)))),
        Plot("ends", ("A", "animal", "pet"), (one("end_pet"), ((), ("safe",)))),
        Plot("optional", ("animal", "pet"), (((), ("bark",)), (("ask_sound",), ("ask_sound", "answer_sound")))),
        Plot(
            "sums", ("place", "bird", "animal"), (one("see"), ((), ("ask_legs",))), tuple({"n": n} for n in (2, 3, 5))
        ),
        *[plot for plot in TALKS if plot.name in ("plus", "legs", "aid", "hello")],
    ],
    ids=lambda plot: plot.name,
)
def test_count_is_a_lower_bound(plot: Plot) -> None:
    """Every outcome of every draw, taken one after the other: the count is never above the number of distinct texts."""
    texts: set[str] = set()
    path: list[list[int]] = []  # [outcome, number of outcomes] of each draw so far
    while True:
        position = 0

        def draw(n: int) -> int:
            nonlocal position
            if position == len(path):
                path.append([0, n])
            position += 1
            return path[position - 1][0]

        texts.add(" ".join(sentence for _, sentence in tell(plot, draw)))
        while path and path[-1][0] + 1 == path[-1][1]:
            path.pop()
        if not path:
            break
        path[-1][0] += 1
    assert 1 < plot.count() <= len(texts)


def test_generated_stories_are_accepted_and_quick() -> None:
    start = time.perf_counter()
    texts = list(stories(4, 6000))
    seconds = time.perf_counter() - start
    assert seconds < 5.0  # 60,000 take about 2 s on one quiet core; this allows for a tenfold slower, busy one
    assert [text for text in texts if check_story(text) is not None] == []


@pytest.mark.slow
def test_changed_words_agree_with_the_oracle() -> None:
    """Every word of a class in turn is replaced by another of its class, in 400 stories."""
    generator = random.Random(0)
    rejected = accepted = 0
    for index in range(400):
        _, pairs = told(index)
        templates = [wording(event, sentence) for event, sentence in pairs]
        text = " ".join(sentence for _, sentence in pairs)
        assert oracle(templates, text) and check_story(text) is None
        for match in re.finditer("[A-Za-z]+", text):
            pool = CLASSES.get(CLASS_OF.get(match[0], ""), ())
            others = [word for word in pool if word != match[0]]
            if not others:
                continue
            changed = text[: match.start()] + generator.choice(others) + text[match.end() :]
            verdict, expected = check_story(changed), oracle(templates, changed)
            assert (verdict is None) == expected, (text, changed, verdict)
            rejected += not expected
            accepted += expected
    assert rejected > 5000 and accepted > 500  # accepted: words that the story tells only once


def test_consistent_renaming_is_accepted() -> None:
    """Exchanging a word for another everywhere keeps a story consistent, if its kind stays the same."""
    for index in range(300):
        text = story(12, index)
        for pool in (GIRLS, BOYS, CLASSES["colour"], CLASSES["place"], CLASSES["thing"], CLASSES["food"]):
            used = [word for word in pool if re.search(rf"\b{word}\b", text)]
            free = [word for word in pool if word not in used]
            if used:
                assert check_story(re.sub(rf"\b{used[0]}\b", free[index % len(free)], text)) is None


def test_sentences_removed_moved_or_repeated() -> None:
    optional = {"thank", "bark"}
    for index in range(400):
        _, pairs = told(index)
        sentences = [sentence for _, sentence in pairs]
        for position, (event, _) in enumerate(pairs):
            verdict = check_story(" ".join(sentences[:position] + sentences[position + 1 :]))
            assert (verdict is None) == (event in optional), (event, verdict, sentences)
            assert check_story(" ".join(sentences[:position])) is not None, "the end is missing"
            assert check_story(" ".join(sentences[: position + 1] + sentences[position:])) is not None, "told twice"
            if position:
                moved = sentences[:]
                moved[position - 1 : position + 1] = reversed(moved[position - 1 : position + 1])
                assert check_story(" ".join(moved)) is not None
        assert check_story(" ".join(sentences) + " " + story(13, index)) is not None, "two stories"


def test_sentences_of_other_stories_are_rejected() -> None:
    generator = random.Random(3)
    survived = 0
    for index in range(1500):
        text, other = split_sentences(story(14, index)), split_sentences(story(15, index))
        text[generator.randrange(1, len(text))] = generator.choice(other)
        survived += check_story(" ".join(text)) is None
    assert survived <= 30  # "Food tastes best when it is shared." and a thank you say little of their own story


def test_garbage_never_passes_and_never_raises() -> None:
    generator = random.Random(4)
    words = [*CLASS_OF, "the", "a", "was", "had", "Now", "Once", '"', ".", "?", "said", "{name}", "1", "é", "\n", ""]
    for index in range(2000):
        assert check_story(" ".join(generator.choices(words, k=generator.randrange(60)))) is not None
        text = story(16, index)
        cut = generator.randrange(1, len(text) - 1)
        assert check_story(text[:cut]) is not None or cut == len(text)
        assert check_story(text[:cut] + text[cut + 1 :]) is not None, (text, cut)
    for text in ("", " ", ".", "Once.", "{A} had it.", "\x00", "He had it. She had it."):
        assert check_story(text) is not None


def test_white_space_around_a_story_does_not_matter() -> None:
    text = story(0, 0)
    assert check_story(f" {text}\n") is None
    assert check_story(text.replace(". ", ".  ", 1)) is not None
    assert check_story(text.replace(". ", ".\n", 1)) is not None
