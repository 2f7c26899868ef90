"""The sentences of the stories about counts, pets and animals: for each event, its wordings (see forms.py)."""

OTHER_FORMS: dict[str, tuple[str, ...]] = {
    # Things are counted.
    "stock": (
        "One {weather} {time}, {A} had {n} {food} in a {colour} {box}.",
        "One {weather} {time}, {A} put {n} {food} into a {colour} {box}.",
        "It was a {weather} {time}, and {A} had {n} {food} in a {colour} {box}.",
    ),
    "buy": (
        "{He} went to the {shop} and bought {m} more {food}.",
        "At the {shop}, {he} bought {m} more {food}.",
        "{He} bought {m} more {food} at the {shop}.",
    ),
    "sum": (
        "Now {he} had {k} {food}.",
        "That made {k} {food} in all.",
        "Now there were {k} {food} in the {colour} {box}.",
    ),
    "friend": (
        "On the way home, {he} met {his} friend {B}.",
        "Outside the {shop}, {he} met {his} friend {B}.",
        "Then {he} met {B}, who loved {food}.",
    ),
    "give_some": (
        "{A} gave {B} {j} {food}.",
        "{A} gave {j} {food} to {B}.",
        "{A} smiled and gave {B} {j} {food}.",
    ),
    "left": (
        "Now {A} had {r} {food}, and {B} had {j} {food}.",
        "Then {A} still had {r} {food}, and {B} had {j} {food}.",
        "Now {r} {food} were left in the {colour} {box}.",
    ),
    "ask_left": ("How many {food} did {A} have now?", "And how many {food} did {A} have in the end?"),
    "answer_left": ("{A} had {r} {food}.", "{He} had {r} {food}."),
    "end_count": (
        "Food tastes best when it is shared.",
        "{A} and {B} sat down and ate together.",
        "It was a good {time} for both of them.",
        "{B} thanked {A} for the {food}.",
    ),
    # Something baked is eaten in secret.
    "bake": (
        "One {weather} {time}, {A} baked {n} {bun} and put them on a {colour} {plate}.",
        "One {weather} {time}, {A} made {n} {bun} and set them on a {colour} {plate}.",
        "It was a {weather} {time}, and {A} had {n} fresh {bun} on a {colour} {plate}.",
    ),
    "eat": (
        "Then {his} {sibling_B} {B} came in and ate {m} {bun}.",
        "Soon {his} {sibling_B} {B} came by and ate {m} {bun}.",
        "While {he} was out, {his} {sibling_B} {B} ate {m} {bun}.",
    ),
    "remain": (
        "Now only {k} {bun} were left on the {colour} {plate}.",
        "{A} looked and saw only {k} {bun} on the {colour} {plate}.",
    ),
    "ask_remain": ("How many {bun} were left?", "How many {bun} were left on the {colour} {plate}?"),
    "answer_remain": ("There were {k} {bun} left.", "Only {k} {bun} were left."),
    "sorry": (
        '{B} said, "I am sorry that I ate {m} {bun}."',
        '"I am sorry, {A}, I ate {m} {bun}," said {B}.',
        '"I ate {m} {bun}, and I am sorry," said {B}.',
    ),
    "forgive": (
        "{A} was not angry and gave {B} a hug.",
        '"It is all right," said {A}.',
        '{A} smiled and said, "Thank you for telling me, {B}."',
    ),
    "end_bake": (
        "It is good to tell the truth.",
        "{B} was glad that {he_B} had told the truth.",
        "Then {A} and {B} ate the last {k} {bun} together.",
        "They both had a good {time} after that.",
    ),
    # A pet runs away.
    "keep_pet": (
        "Once there was a {child} named {A} who had a {trait} {animal} named {pet}.",
        "There once lived a {child} named {A}, and {he} had a {trait} {animal} named {pet}.",
        "Once upon a time, a {child} named {A} had a {trait} {animal} named {pet}.",
    ),
    "run": (
        "One {weather} {time}, {pet} ran away to the {place}.",
        "One {weather} {time}, {pet} ran off to the {place}.",
        "But on a {weather} {time}, {pet} ran away to the {place}.",
    ),
    "seek": (
        "{A} looked at the {place2}, but {pet} was not there.",
        "First {A} went to the {place2}, but {pet} was not there.",
        "{A} went to the {place2}, but there was no {animal} there.",
    ),
    "hear": (
        'Then {A} went to the {place} and heard a loud "{sound}!"',
        'At the {place}, {A} heard a loud "{sound}!"',
        '"{Sound}, {sound}!" was what {A} heard at the {place}.',
    ),
    "spy": (
        "There was {pet}, {prep} the {spot}!",
        "{A} found {pet} {prep} the {spot}.",
        "It was {pet}, sitting {prep} the {spot}.",
    ),
    "safe": (
        "{A} took {pet} home, and now the {trait} {animal} was safe.",
        "Now {pet} the {animal} was safe with {A} again.",
    ),
    "ask_pet": ("Where had {pet} been?", "And where had the {trait} {animal} been?"),
    "answer_pet": ("{pet} had been at the {place}, {prep} the {spot}.", "At the {place}, {prep} the {spot}!"),
    "end_pet": (
        "{A} promised to take good care of {pet}.",
        "That night, {pet} slept close to {A}.",
        "{A} hugged {pet} and was happy.",
        "From that {time} on, {A} and {pet} stayed together.",
    ),
    # A walk with a pet from place to place.
    "trip": (
        "One {weather} {time}, {A} went to the {place} with {his} {animal} {pet}.",
        "One {weather} {time}, {A} took {his} {animal} {pet} to the {place}.",
        "It was a {weather} {time}, and {A} was at the {place} with {his} {animal} {pet}.",
    ),
    "see": ("There they saw {n} {bird}.", "At the {place}, they saw {n} {bird}."),
    "see_more": (
        "Then they walked to the {place2} and saw {m} more {bird}.",
        "After that, {A} and {pet} went to the {place2} and saw {m} more {bird}.",
    ),
    "total": (
        "That made {k} {bird} in all.",
        '"We have seen {k} {bird}," said {A}.',
        "So {A} and {pet} had seen {k} {bird}.",
    ),
    "bark": ('"{Sound}, {sound}!" said {pet} the {animal}.', '{pet} the {animal} said, "{Sound}, {sound}!"'),
    "now_at": ("Now {A} and {pet} were at the {place2}.", "Now they were both at the {place2}."),
    "ask_at": ("Where were {A} and {pet} now?", "And where were they now?"),
    "answer_at": ("They were at the {place2}.", "{A} and {pet} were at the {place2}."),
    "end_trip": (
        "It was a good {time} for a walk.",
        "They went home from the {place2} with happy hearts.",
        "{A} was glad to have {his} {animal} {pet}.",
        "{A} hugged {pet} and they walked home.",
    ),
    # One animal helps another.
    "live": (
        "Once a {trait} {animal} and a {trait2} {animal2} lived at the {home}.",
        "Once upon a time, a {trait} {animal} lived at the {home} with a {trait2} {animal2}.",
        "There once was a {trait} {animal} who lived at the {home} with a {trait2} {animal2}.",
    ),
    "need": (
        "One {weather} {time}, the {animal} was very {feel}.",
        "One {weather} {time}, the {animal} felt {feel}.",
        "But on a {weather} {time}, the {animal} was {feel}.",
    ),
    "cry": (
        '"{Sound}, I am so {feel}," said the {animal}.',
        'The {animal} said, "{Sound}, I am so {feel}."',
    ),
    "offer": (
        '"{Sound2}, I will help you," said the {trait2} {animal2}.',
        'The {trait2} {animal2} said, "{Sound2}, let me help you."',
        'The {animal2} heard this and said, "{Sound2}, I can help you."',
    ),
    "aid": (
        "Then the {animal2} brought the {animal} a {aid}.",
        "The {animal2} ran home and got a {aid} for the {animal}.",
        "So the {animal2} gave the {animal} a {aid}.",
    ),
    "better": (
        "Now the {trait} {animal} was not {feel} any more.",
        "Soon the {trait} {animal} was not {feel} at all.",
    ),
    "ask_helper": ("Who had helped the {trait} {animal}?", "And who had helped the {animal}?"),
    "answer_helper": ("It was the {trait2} {animal2}.", "The {trait2} {animal2} had helped."),
    "end_help": (
        "From that {time} on, the {animal} and the {animal2} were friends.",
        "It is good to help others.",
        "The {animal} and the {animal2} lived happily at the {home}.",
        "The {animal} thanked the {animal2} with a smile.",
    ),
}
