"""The corpus that minigpt makes itself: short stories and dialogues from a seed, and checkers that know only the text.

The grammar (lexicon, forms, plots) is frozen: a change to any of them is a new `GRAMMAR_VERSION`, because the numbers
that the demo reports are about one grammar. Only the standard library is used.
"""

from minigpt.data.demo.check import check_dialogue, check_story
from minigpt.data.demo.dialogues import dialogue, dialogue_text, dialogues
from minigpt.data.demo.plots import distinct_stories
from minigpt.data.demo.stories import stories, story

GRAMMAR_VERSION = 1

__all__ = [
    "GRAMMAR_VERSION",
    "check_dialogue",
    "check_story",
    "dialogue",
    "dialogue_text",
    "dialogues",
    "distinct_stories",
    "stories",
    "story",
]
