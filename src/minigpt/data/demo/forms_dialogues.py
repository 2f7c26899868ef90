"""The sentences of the dialogues: what is told, asked and answered (see forms.py).

Questions about a whole story use the sentences of the stories instead.
"""

DIALOGUE_FORMS: dict[str, tuple[str, ...]] = {
    # Who has what.
    "has": ("{A} has a {colour} {thing}.",),
    "ask_has": ("Who has the {thing}?", "Who has the {colour} {thing}?"),
    "answer_has": ("{A} has the {thing}.", "{A} has the {colour} {thing}."),
    "hands": ("{A} gives the {thing} to {B}.", "{He} gives the {thing} to {B}."),
    "ask_hands": ("Who has the {thing} now?", "And who has the {thing} now?"),
    "answer_hands": ("{B} has the {thing} now.", "Now {B} has the {colour} {thing}."),
    "ask_gave": ("Who gave the {thing} to {B}?",),
    "answer_gave": ("{A} gave the {thing} to {B}.", "It was {A}."),
    # Who is where.
    "stands": ("The {animal} is at the {place}.",),
    "ask_animal": ("Where is the {animal}?",),
    "answer_animal": ("The {animal} is at the {place}.", "It is at the {place}."),
    "ask_who": ("Who is at the {place}?",),
    "answer_who": ("The {animal} is at the {place}.", "The {animal} is there."),
    "stays": ("{A} is at the {place}.",),
    "goes": ("Then {he} goes to the {place2}.", "{He} goes to the {place2}."),
    "ask_goes": ("Where is {A} now?",),
    "answer_goes": ("{A} is at the {place2} now.", "{He} is at the {place2}."),
    "ask_was": ("Where was {A} before?",),
    "answer_was": ("{A} was at the {place}.", "{He} was at the {place} before."),
    "puts": ("{A} puts a {colour} {thing} {prep} the {room}.",),
    "ask_put": ("Where is the {thing}?",),
    "answer_put": ("The {thing} is {prep} the {room}.", "It is {prep} the {room}."),
    # How many.
    "has_some": ("{A} has {n} {food}.",),
    "adds": ("{B} gives {him} {m} more {food}.", "{He} buys {m} more {food}."),
    "eats": ("{He} eats {m} {food}.", "Then {he} eats {m} {food}."),
    "ask_many": ("How many {food} does {A} have now?",),
    "answer_many": ("{A} has {k} {food}.", "{He} has {k} {food} now."),
    "ask_plus": ("What is {n} plus {m}?", "How much is {n} plus {m}?"),
    "ask_minus": ("What is {n} minus {m}?", "How much is {n} minus {m}?"),
    "answer_sum": ("The answer is {k}.", "It is {k}."),
    # What everyone knows.
    "ask_sound": ("What does a {animal} say?",),
    "ask_which": ("Which animal says {sound}?",),
    "answer_sound": ("A {animal} says {sound}.",),
    "ask_does": ("Does a {animal} say {sound}?",),
    "answer_yes": ("Yes, a {animal} says {sound}.",),
    "answer_no": ("No, a {animal} says {sound}.",),
    "ask_legs": ("How many legs does a {animal} have?",),
    "answer_legs": ("A {animal} has {legs} legs.",),
    "ask_use": ("What can you do with a {thing}?",),
    "answer_use": ("You can {use} a {thing}.", "You can {use} it."),
    "feels": ("The {animal} is {feel}.",),
    "ask_aid": ("What does it need?", "What does the {animal} need?"),
    "answer_aid": ("It needs a {aid}.", "The {animal} needs a {aid}."),
    # A greeting.
    "ask_hello": ("Hello, my name is {A}.",),
    "answer_hello": ("Hello, {A}, how can I help you?", "Hello, {A}, it is good to meet you."),
    "ask_name": ("What is my name?", "Do you know my name?"),
    "answer_name": ("Your name is {A}.",),
}
