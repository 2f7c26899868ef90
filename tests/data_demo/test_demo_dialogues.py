"""Dialogues: every generated one is accepted; answers that are not true are rejected."""

import re
from collections import Counter
from itertools import islice

import pytest

from minigpt.data.demo import check_dialogue, dialogue, dialogue_text, dialogues
from minigpt.data.demo.lexicon import CLASS_OF, CLASSES


def talk(*contents: str) -> list[dict[str, str]]:
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(contents)]


def test_random_access_and_form() -> None:
    assert list(dialogues(1, 3)) == [dialogue(1, index) for index in range(3)] == list(islice(dialogues(1), 3))
    for index in range(500):
        messages = dialogue(1, index)
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        lines = dialogue_text(1, index).splitlines()
        assert [line.split(": ", 1)[0] for line in lines] == ["Question", "Answer"] * (len(messages) // 2)
        assert [line.split(": ", 1)[1] for line in lines] == [message["content"] for message in messages]


def test_generated_dialogues_are_accepted() -> None:
    assert [messages for messages in dialogues(2, 5000) if check_dialogue(messages) is not None] == []
    assert len({dialogue_text(2, index) for index in range(5000)}) > 3500  # sums and general knowledge do come again


def test_wrong_words_in_answers_are_rejected() -> None:
    """An answer with one word exchanged is false, unless it answers by that word of its own accord (none does)."""
    seen = Counter[str]()
    for messages in dialogues(3, 1500):
        for position in range(1, len(messages), 2):
            content = messages[position]["content"]
            for match in re.finditer("[A-Za-z]+", content):
                word_class = CLASS_OF.get(match[0], "")
                others = [word for word in CLASSES.get(word_class, ()) if word != match[0]]
                if not others:
                    continue
                other = others[position % len(others)]
                changed = [dict(message) for message in messages]
                changed[position]["content"] = content[: match.start()] + other + content[match.end() :]
                assert check_dialogue(changed) is not None, changed
                seen[word_class] += 1
    assert set(seen) >= {"name", "thing", "place", "number", "animal", "sound", "aid", "prep", "room", "colour", "He"}


@pytest.mark.parametrize(
    "messages",
    [
        talk("Anna has a red ball. Tom has a blue kite. Who has the kite?", "Tom has the blue kite."),
        talk("Anna has a red ball. She gives the ball to Tom. Who has the ball now?", "Tom has the ball now."),
        talk("The cow is at the lake. The duck is at the park. Where is the duck?", "It is at the park."),
        talk("Ben has four nuts. He eats two nuts. How many nuts does Ben have now?", "He has two nuts now."),
        talk("What is two plus three?", "The answer is five."),
        talk("What is three minus two?", "It is one."),
        talk("What does a cow say?", "A cow says moo."),
        talk("Does a cow say woof?", "No, a cow says moo."),
        talk("What can you do with a kite?", "You can fly a kite."),
        talk("Hello, my name is Mia.", "Hello, Mia, how can I help you?", "What is my name?", "Your name is Mia."),
    ],
)
def test_right_answers(messages: list[dict[str, str]]) -> None:
    assert check_dialogue(messages) is None


@pytest.mark.parametrize(
    "messages",
    [
        [],
        talk("What is two plus three?"),
        talk("What is two plus three?", "The answer is six."),
        talk("What is two plus three?", "A cow says moo."),
        talk("What is two minus three?", "It is one."),
        talk("What is two plus three? It is five.", "It is five."),
        talk("What is two plus three? It is five.", "What is two plus three?"),
        talk("Anna has a red ball. Tom has a blue kite. Who has the kite?", "Anna has the kite."),
        talk("Anna has a red ball. Tom has a blue kite. Who has the drum?", "Anna has the drum."),
        talk("Anna has a red ball. She gives the ball to Tom. Who has the ball now?", "Anna has the ball now."),
        talk("Anna has a red ball. He gives the ball to Tom. Who has the ball now?", "Tom has the ball now."),
        talk("Does a cow say woof?", "Yes, a cow says woof."),
        talk("Does a cow say moo?", "No, a cow says moo."),
        talk("How many legs does a duck have?", "A duck has four legs."),
        talk("Hello, my name is Mia.", "Hello, Mia, how can I help you?", "What is my name?", "Your name is Lily."),
        [{"role": "assistant", "content": "A cow says moo."}, {"role": "user", "content": "What does a cow say?"}],
        [{"role": "user", "content": "What does a cow say?"}, {"role": "user", "content": "A cow says moo."}],
    ],
)
def test_wrong_dialogues(messages: list[dict[str, str]]) -> None:
    assert check_dialogue(messages) is not None


def test_questions_about_whole_stories_occur() -> None:
    long = [text for index in range(300) if len((text := dialogue_text(4, index)).split()) > 40]
    assert len(long) > 50
