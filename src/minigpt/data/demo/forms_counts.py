"""The sentences of the stories about counts and pets: for each event, its wordings (see forms.py)."""

OTHER_FORMS: dict[str, tuple[str, ...]] = {
    # Things are counted.
    "stock": (
        "One {weather} {time}, {A} had {n} {food} in a {colour} {box}.",
        "One {weather} {time}, {A} put {n} {food} into a {colour} {box}.",
    ),
    "buy": ("At the {shop}, {he} bought {m} more {food}.",),
    "sum": ("Now {he} had {k} {food}.",),
    "friend": ("Outside the {shop}, {he} met {his} friend {B}.",),
    "give_some": ("{A} gave {B} {j} {food}.",),
    "left": ("Now {A} had {r} {food}, and {B} had {j} {food}.",),
    "ask_left": ("How many {food} did {A} have now?",),
    "answer_left": ("{A} had {r} {food}.",),
    "end_count": (
        "Food tastes best when it is shared.",
        "{A} and {B} sat down and ate together.",
        "{B} thanked {A} for the {food}.",
    ),
    # A pet runs away.
    "keep_pet": (
        "Once there was a {child} named {A} who had a {trait} {animal} named {pet}.",
        "Once upon a time, a {child} named {A} had a {trait} {animal} named {pet}.",
    ),
    "run": ("One {weather} {time}, {pet} ran away to the {place}.",),
    "hear": ('Then {A} went to the {place} and heard a loud "{sound}!"',),
    "spy": ("{A} found {pet} {prep} the {spot}.",),
    "safe": ("Now {pet} the {animal} was safe with {A} again.",),
    "ask_pet": ("Where had {pet} been?",),
    "answer_pet": ("{pet} had been at the {place}, {prep} the {spot}.",),
    "end_pet": (
        "{A} promised to take good care of {pet}.",
        "That night, {pet} slept close to {A}.",
        "{A} hugged {pet} and was happy.",
    ),
    # A walk with a pet from place to place.
    "trip": (
        "One {weather} {time}, {A} went to the {place} with {his} {animal} {pet}.",
        "One {weather} {time}, {A} took {his} {animal} {pet} to the {place}.",
    ),
    "see": ("There they saw {n} {bird}.",),
    "see_more": ("Then they walked to the {place2} and saw {m} more {bird}.",),
    "total": (
        "That made {k} {bird} in all.",
        '"We have seen {k} {bird}," said {A}.',
    ),
    "bark": ('"{Sound}, {sound}!" said {pet} the {animal}.',),
    "now_at": ("Now {A} and {pet} were at the {place2}.",),
    "ask_at": ("Where were {A} and {pet} now?",),
    "answer_at": ("They were at the {place2}.",),
    "end_trip": (
        "They went home from the {place2} with happy hearts.",
        "{A} was glad to have {his} {animal} {pet}.",
        "{A} hugged {pet} and they walked home.",
    ),
}
