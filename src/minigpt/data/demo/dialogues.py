"""Question and answer dialogues made from a seed, about the same small world as the stories."""

from collections.abc import Iterator
from itertools import count as count_up

from minigpt.data.demo.plots import STORY_QUESTIONS, TALKS
from minigpt.data.demo.stories import below, tell

_KINDS = (*TALKS, *STORY_QUESTIONS)
_SPEAKER = {"user": "Question", "assistant": "Answer"}


def dialogue(seed: int, index: int) -> list[dict[str, str]]:
    """Dialogue number `index` of `seed`: messages with `role` ("user", then "assistant", ...) and `content`."""
    draw = below(seed, "dialogue", index)
    messages: list[dict[str, str]] = []
    said: list[str] = []
    for event, sentence in tell(_KINDS[draw(len(_KINDS))], draw):
        said.append(sentence)
        if event.startswith(("ask_", "answer_")):
            role = "user" if event.startswith("ask_") else "assistant"
            messages.append({"role": role, "content": " ".join(said)})
            said = []
    return messages


def dialogue_text(seed: int, index: int) -> str:
    """The same dialogue as plain text: lines "Question: ..." and "Answer: ...", each ended by a newline."""
    return "".join(f"{_SPEAKER[message['role']]}: {message['content']}\n" for message in dialogue(seed, index))


def dialogues(seed: int, count: int | None = None) -> Iterator[list[dict[str, str]]]:
    """The first `count` dialogues of `seed`, in order; without end when `count` is None."""
    for index in count_up() if count is None else range(count):
        yield dialogue(seed, index)
