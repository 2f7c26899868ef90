"""The sentences of the stories about things: for each event, its wordings (see forms.py)."""

THING_FORMS: dict[str, tuple[str, ...]] = {
    # A thing is given away.
    "own": (
        "Once there was a {trait} {child} named {A} who had a {colour} {thing}.",
        "There once lived a {trait} {child} named {A}, and {he} had a {colour} {thing}.",
        "Once upon a time, a {trait} {child} named {A} had a {colour} {thing}.",
    ),
    "walk": (
        "One {weather} {time}, {he} took the {thing} to the {place}.",
        "One {weather} {time}, {he} went to the {place} with the {thing}.",
        "One {weather} {time}, {A} carried the {thing} to the {place}.",
    ),
    "meet": (
        "At the {place}, {he} met {his} friend {B}.",
        "At the {place}, {he} met a {child_B} named {B}.",
        "{B} was at the {place} too.",
    ),
    "wish": (
        "{B} was sad because {he_B} had no {thing}.",
        "{B} felt sad, for {he_B} did not have a {thing}.",
        '{B} looked at the {thing} and said, "I wish I had a {thing} too."',
    ),
    "give": (
        "{A} gave the {colour} {thing} to {B}.",
        "{A} smiled and gave {B} the {colour} {thing}.",
        "So {A} let {B} keep the {colour} {thing}.",
    ),
    "thank": ('"Thank you, {A}!" said {B}.', '{B} said, "Thank you, {A}!"', "{B} gave {A} a big hug."),
    "now_holds": (
        "Now {B} had the {colour} {thing}.",
        "From then on, the {colour} {thing} belonged to {B}.",
        "Now the {colour} {thing} belonged to {B}.",
    ),
    "ask_holder": ("Who had the {colour} {thing} now?", "And who had the {colour} {thing} now?"),
    "answer_holder": ("{B} had it.", "{B} had the {thing}.", "It was {B}."),
    "end_give": (
        "{A} was glad, for it is good to share.",
        "{A} went home from the {place} with a happy heart.",
        "{A} and {B} were both happy, and it was a good {time}.",
        "{B} thanked {A} with a big smile.",
    ),
    # Two things are swapped.
    "meet_up": (
        "One {weather} {time}, {A} and {B} met at the {place}.",
        "One {weather} {time}, {A} met {his} friend {B} at the {place}.",
        "It was a {weather} {time}, and {A} met {B} at the {place}.",
    ),
    "both_have": (
        "{A} had a {colour} {thing}, and {B} had a {colour2} {thing2}.",
        "{A} came with a {colour} {thing}, and {B} came with a {colour2} {thing2}.",
    ),
    "like": (
        '{A} said, "I like your {thing2}."',
        '"What a nice {thing2} you have!" said {A}.',
        "{A} liked the {colour2} {thing2} very much.",
    ),
    "like_too": (
        '{B} said, "And I like your {thing}."',
        '"I like your {thing} too," said {B}.',
        "{B} liked the {colour} {thing} just as much.",
    ),
    "swap": ("So the friends swapped.", "So they made a swap.", "Then they swapped with a smile."),
    "after_swap": (
        "Now {A} had the {colour2} {thing2}, and {B} had the {colour} {thing}.",
        "Now the {colour2} {thing2} belonged to {A}, and the {colour} {thing} belonged to {B}.",
    ),
    "end_swap": (
        "They played at the {place} until it was dark.",
        "It was a good {time} for both of them.",
        "A fair swap makes both friends happy.",
        "{A} and {B} went home with happy hearts.",
    ),
    # A thing is lost and found (it begins as a gift story does).
    "lose": (
        "One {weather} {time}, {he} lost the {thing} at the {place}.",
        "One {weather} {time}, {he} went to the {place} and lost the {thing} there.",
        "But on a {weather} {time}, {A} lost the {thing} at the {place}.",
    ),
    "search": (
        "{He} looked {prep} the {spot}, but the {thing} was not there.",
        "{A} looked {prep} the {spot}, but it was not there.",
        "First {he} looked {prep} the {spot}, but {he} found nothing.",
    ),
    "helper": (
        "Then {his} friend {B} came to the {place} to help.",
        "{A} asked {his} friend {B} for help.",
        "{B} saw that {A} was sad and came to help.",
    ),
    "found": (
        "{B} found the {thing} {prep2} the {spot2} and gave it back to {A}.",
        "{B} looked {prep2} the {spot2}, found the {thing} and gave it to {A}.",
    ),
    "again": (
        "Now {A} had the {colour} {thing} again.",
        "So {A} had the {colour} {thing} back.",
        "The {colour} {thing} was back with {A} again.",
    ),
    "ask_spot": ("Where had the {colour} {thing} been?", "And where had the {colour} {thing} been?"),
    "answer_spot": (
        "It had been {prep2} the {spot2}.",
        "The {thing} had been {prep2} the {spot2} at the {place}.",
    ),
    "end_find": (
        "{A} thanked {B} with a big smile.",
        "{A} was happy to have a friend like {B}.",
        "A good friend is worth more than a {colour} {thing}.",
        "{A} and {B} walked home from the {place} together.",
    ),
    # A thing is moved while its owner is away.
    "put": (
        "One {weather} {time}, {A} put a {colour} {thing} {prep} the {room}.",
        "One {weather} {time}, {A} left a {colour} {thing} {prep} the {room}.",
        "It was a {weather} {time}, and {A} put a {colour} {thing} {prep} the {room}.",
    ),
    "leave": (
        "Then {he} went to the {place}.",
        "After that, {he} walked to the {place}.",
        "Then {he} went out to play at the {place}.",
    ),
    "move": (
        "While {he} was at the {place}, {his} {sibling_B} {B} put the {thing} {prep2} the {room2}.",
        "While {he} was away, {his} {sibling_B} {B} put the {thing} {prep2} the {room2}.",
        "At home, {his} {sibling_B} {B} took the {thing} and put it {prep2} the {room2}.",
    ),
    "back": (
        "{A} came back from the {place} and looked {prep} the {room}, but the {thing} was gone.",
        "When {A} came home from the {place}, the {thing} was not {prep} the {room}.",
    ),
    "wonder": ('"Where is my {colour} {thing}?" asked {A}.', '{A} asked, "Where is my {colour} {thing}?"'),
    "reveal": (
        '"It is {prep2} the {room2} now," said {B}.',
        '{B} said, "I put it {prep2} the {room2}."',
    ),
    "find": (
        "{A} looked {prep2} the {room2} and found the {colour} {thing}.",
        "So {A} found the {colour} {thing} {prep2} the {room2}.",
    ),
    "end_hide": (
        "{A} laughed and thanked {B}.",
        "{B} promised to ask first from then on.",
        "They laughed and had a good {time} together.",
        "It is good to ask before you take a {thing}.",
    ),
    # A birthday with two gifts.
    "birthday": (
        "One {weather} {time}, {A} had a birthday party at the {place}.",
        "It was a {weather} {time}, and {A} had a birthday party at the {place}.",
    ),
    "gift": ("{B} gave {him} a {colour} {thing}.", "{B} came with a {colour} {thing} for {him}."),
    "gift2": ("{C} gave {A} a {colour2} {thing2}.", "{C} came with a {colour2} {thing2} for {A}."),
    "thank_both": (
        '{A} said, "Thank you, {B} and {C}!"',
        '"Thank you, {B} and {C}!" said {A}.',
        "{A} thanked {B} and {C} with a big smile.",
    ),
    "gifts": (
        "Now {A} had a {colour} {thing} from {B} and a {colour2} {thing2} from {C}.",
        "The {colour} {thing} was from {B}, and the {colour2} {thing2} was from {C}.",
    ),
    "ask_giver": ("Who had given {A} the {colour} {thing}?", "And who had given {A} the {thing}?"),
    "answer_giver": ("It was {B}.", "The {thing} was from {B}."),
    "end_party": (
        "They all played at the {place} until it was dark.",
        "It was the best {time} of the year.",
        "{A} was happy to have friends like {B} and {C}.",
        "The best gift of all is a good friend.",
    ),
}
