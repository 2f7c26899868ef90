"""The sentences of the stories about things: for each event, its wordings (see forms.py)."""

THING_FORMS: dict[str, tuple[str, ...]] = {
    # A thing is given away.
    "own": (
        "Once there was a {trait} {child} named {A} who had a {colour} {thing}.",
        "Once upon a time, a {trait} {child} named {A} had a {colour} {thing}.",
    ),
    "walk": ("One {weather} {time}, {he} took the {thing} to the {place}.",),
    "meet": ("At the {place}, {he} met {his} friend {B}.",),
    "wish": (
        "{B} was sad because {he_B} had no {thing}.",
        '{B} looked at the {thing} and said, "I wish I had a {thing} too."',
    ),
    "give": ("{A} gave the {colour} {thing} to {B}.",),
    "thank": ('"Thank you, {A}!" said {B}.',),
    "now_holds": ("Now {B} had the {colour} {thing}.",),
    "ask_holder": ("Who had the {colour} {thing} now?",),
    "answer_holder": ("{B} had it.",),
    "end_give": (
        "{A} was glad, for it is good to share.",
        "{A} went home from the {place} with a happy heart.",
        "{B} thanked {A} with a big smile.",
    ),
    # A thing is lost and found (it begins as a gift story does).
    "lose": ("One {weather} {time}, {he} lost the {thing} at the {place}.",),
    "search": ("{He} looked {prep} the {spot}, but the {thing} was not there.",),
    "helper": ("{A} asked {his} friend {B} for help.",),
    "found": ("{B} found the {thing} {prep2} the {spot2} and gave it back to {A}.",),
    "again": ("Now {A} had the {colour} {thing} again.",),
    "ask_spot": ("Where had the {colour} {thing} been?",),
    "answer_spot": ("It had been {prep2} the {spot2}.",),
    "end_find": (
        "{A} thanked {B} with a big smile.",
        "{A} was happy to have a friend like {B}.",
        "{A} and {B} walked home from the {place} together.",
    ),
}
