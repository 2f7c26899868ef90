"""The closed vocabulary of the demo corpus: who and what its stories and dialogues are about.

Every word that fills a slot of a sentence belongs to exactly one class here, and none of them is also a fixed word of a
sentence form (a test checks both). That is what lets the parser read a text word by word without guessing, and it keeps
the task small enough for a tiny model: some 300 words in all, each of which becomes one BPE token.
No word that may follow "a" starts with a vowel, so "an" is never needed.
"""

GIRLS = ("Anna", "Mia", "Lily", "Emma", "Ella", "Rose", "Ruby", "Zoe", "Nora", "Ivy")
BOYS = ("Tom", "Ben", "Sam", "Max", "Leo", "Jack", "Noah", "Finn", "Theo", "Felix")

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")

SOUND_OF = {
    "dog": "woof", "cat": "meow", "duck": "quack", "cow": "moo", "sheep": "baa", "pig": "oink",
    "horse": "neigh", "hen": "cluck", "frog": "croak", "mouse": "squeak",
}  # fmt: skip
LEGS_OF = {animal: ("two" if animal in ("duck", "hen") else "four") for animal in SOUND_OF}
AID_FOR = {  # what helps an animal that feels so
    "cold": "blanket", "hungry": "sandwich", "thirsty": "drink", "tired": "pillow", "wet": "towel", "bored": "game",
}  # fmt: skip
USE_OF = {  # what people do with a thing
    "ball": "throw", "kite": "fly", "book": "read", "drum": "beat", "doll": "dress", "hat": "wear", "scarf": "wear",
    "crown": "wear", "ring": "wear", "cup": "fill", "boat": "sail", "bell": "shake", "puzzle": "solve",
    "robot": "build",
}  # fmt: skip

# The words of each class. "him" holds the object and the possessive pronouns together because "her" is both.
CLASSES: dict[str, tuple[str, ...]] = {
    "name": GIRLS + BOYS,
    "child": ("girl", "boy"),
    "he": ("she", "he"),
    "He": ("She", "He"),
    "him": ("her", "him", "his"),
    "trait": (
        "kind", "brave", "clever", "cheerful", "little", "quiet", "funny", "young",
    ),
    "weather": ("sunny", "rainy", "windy", "warm", "bright", "cloudy", "snowy"),
    "time": ("day", "morning", "afternoon", "evening"),
    "colour": (
        "red", "blue", "green", "yellow", "pink", "white", "black", "golden", "silver", "shiny",
    ),
    "thing": tuple(USE_OF),
    "place": (
        "park", "river", "lake", "school", "beach", "zoo", "castle", "pond", "harbour", "bridge",
    ),
    "shop": ("market", "shop", "store", "stall"),
    "prep": ("under", "behind", "beside"),
    "spot": ("bench", "tree", "bush", "cart", "stairs", "hedge"),
    "room": ("bed", "chair", "table", "sofa", "desk", "shelf"),
    "number": NUMBERS,
    "food": ("apples", "pears", "plums", "nuts", "eggs", "carrots"),
    "box": ("basket", "box", "bowl", "bucket"),
    "bird": ("birds", "rabbits", "squirrels", "pigeons", "sparrows"),
    "pet": ("Pip", "Rex", "Coco", "Daisy", "Bruno", "Rusty", "Muffin", "Toby"),
    "animal": tuple(SOUND_OF),
    "sound": tuple(SOUND_OF.values()),
    "Sound": tuple(word.capitalize() for word in SOUND_OF.values()),
    "feel": tuple(AID_FOR),
    "aid": tuple(AID_FOR.values()),
    "use": tuple(dict.fromkeys(USE_OF.values())),
}  # fmt: skip

CLASS_OF = {word: name for name, words in CLASSES.items() for word in words}


def pronouns(name: str, suffix: str = "") -> dict[str, str]:
    """The words that agree with a person's gender, keyed by slot (`he`, `him`, `his`, ... plus `suffix`)."""
    girl, boy = ("girl", "she", "She", "her", "her"), ("boy", "he", "He", "him", "his")
    words = girl if name in GIRLS else boy
    slots = ("child", "he", "He", "him", "his")
    return {slot + suffix: word for slot, word in zip(slots, words, strict=True)}
