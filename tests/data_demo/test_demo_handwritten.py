"""Stories written by hand, with the fact that breaks each of the wrong ones."""

import pytest

from minigpt.data.demo import check_story

GIVE = (
    "Once there was a kind girl named Anna who had a red ball. One sunny day, she took the ball to the park. "
    "At the park, she met a boy named Tom. Tom was sad because he had no ball. Anna gave the red ball to Tom. "
    '"Thank you, Anna!" said Tom. Now Tom had the red ball. Anna was glad, for it is good to share.'
)
LOSE = (
    "Once upon a time, a little boy named Ben had a silver ring. "
    "But on a windy morning, Ben lost the ring at the lake. He looked under the bench, but the ring was not there. "
    "Then his friend Mia came to the lake to help. "
    "Mia looked behind the tree, found the ring and gave it to Ben. Where had the silver ring been? "
    "The ring had been behind the tree at the lake. Ben and Mia walked home from the lake together."
)
COUNT = (
    "One warm day, Lily had three apples in a blue basket. She went to the market and bought two more apples. "
    "That made five apples in all. On the way home, she met her friend Sam. Lily gave Sam two apples. "
    "Now Lily had three apples, and Sam had two apples. Food tastes best when it is shared."
)
PET = (
    "Once there was a boy named Max who had a funny duck named Pip. One rainy day, Pip ran away to the river. "
    'Max looked at the school, but Pip was not there. At the river, Max heard a loud "quack!" '
    "Max found Pip under the bush. Now Pip the duck was safe with Max again. Max hugged Pip and was happy."
)
HIDE = (
    "One snowy evening, Ella put a green book under the bed. Then she went to the castle. "
    "While she was away, her brother Leo put the book behind the sofa. "
    "When Ella came home from the castle, the book was not under the bed. "
    '"It is behind the sofa now," said Leo. So Ella found the green book behind the sofa. Ella laughed and thanked Leo.'
)
HELP = (
    "Once a brave cow and a quiet mouse lived at the barn. One cloudy day, the cow felt cold. "
    '"Moo, I am so cold," said the cow. The quiet mouse said, "Squeak, let me help you." '
    "So the mouse gave the cow a blanket. Soon the brave cow was not cold at all. It is good to help others."
)
PARTY = (
    "It was a bright day, and Rose had a birthday party at the zoo. Finn gave her a black drum. "
    "Nora came with a pink kite for Rose. Rose thanked Finn and Nora with a big smile. "
    "Who had given Rose the pink kite? It was Nora. The best gift of all is a good friend."
)
SWAP = (
    "One sunny day, Zoe and Jack met at the pond. Zoe had a red cup, and Jack had a blue hat. "
    'Zoe said, "I like your hat." Jack liked the red cup just as much. So they made a swap. '
    "Now Zoe had the blue hat, and Jack had the red cup. It was a good day for both of them."
)
BAKE = (
    "One cloudy day, Ivy baked nine buns and put them on a white plate. "
    "Soon her brother Noah came by and ate four buns. "
    'Now only five buns were left on the white plate. "I ate four buns, and I am sorry," said Noah. '
    '"It is all right," said Ivy. Then Ivy and Noah ate the last five buns together.'
)
TRIP = (
    "One warm morning, Theo took his horse Coco to the beach. There they saw two birds. "
    "Then they walked to the bridge and saw four more birds. That made six birds in all. "
    "Where were Theo and Coco now? They were at the bridge. It was a good morning for a walk."
)


@pytest.mark.parametrize("text", [GIVE, LOSE, COUNT, PET, HIDE, HELP, PARTY, SWAP, BAKE, TRIP])
def test_consistent(text: str) -> None:
    assert check_story(text) is None


@pytest.mark.parametrize(
    ("text", "old", "new", "sentence"),
    [
        (GIVE, "Now Tom had", "Now Anna had", 7),  # she gave it away
        (GIVE, "Now Tom had the red ball", "Now Tom had the blue ball", 7),
        (GIVE, "Now Tom had the red ball", "Now Tom had the red kite", 7),
        (GIVE, "At the park", "At the lake", 3),  # she is not there
        (GIVE, "because he had", "because she had", 4),
        (GIVE, "a boy named Tom", "a girl named Tom", 3),
        (GIVE, "a kind girl", "a kind boy", 1),
        (GIVE, ", she took", ", he took", 2),
        (GIVE, "Anna gave the red ball to Tom", "Tom gave the red ball to Anna", 5),
        (GIVE, "Anna gave the red ball to Tom", "Anna gave the red ball to Sam", 5),  # nobody has met Sam
        (GIVE, "Anna gave the red ball to Tom", "Anna gave the red ball to Anna", 5),
        (GIVE, "Thank you, Anna", "Thank you, Mia", 6),
        (GIVE, "Anna was glad", "Tom was glad", 8),  # he did not share
        (GIVE, "Anna was glad, for it is good to share", "Anna went home from the zoo with a happy heart", 8),
        (GIVE, '"Thank you, Anna!" said Tom. Now Tom had the red ball.', "Who had the red ball now? Anna had it.", 7),
        (LOSE, "found the ring", "found the drum", 5),
        (LOSE, "behind the tree, found", "under the bench, found", 5),  # it was not there
        (LOSE, "The ring had been behind", "The ring had been under", 7),
        (LOSE, "tree at the lake", "tree at the park", 7),
        (LOSE, "gave it to Ben", "gave it to Mia", 5),
        (LOSE, "Then his friend", "Then her friend", 4),
        (COUNT, "That made five", "That made six", 3),
        (COUNT, "Lily gave Sam two", "Lily gave Sam seven", 5),  # she has five
        (COUNT, "Lily gave Sam two", "Lily gave Sam three", 6),
        (COUNT, "Now Lily had three", "Now Lily had two", 6),
        (COUNT, "Sam had two apples", "Sam had three apples", 6),
        (COUNT, "five apples in all", "five pears in all", 3),
        (COUNT, "she met her friend", "she met his friend", 4),
        (PET, '"quack!"', '"moo!"', 4),
        (PET, "At the river, Max", "At the school, Max", 4),
        (PET, "looked at the school", "looked at the river", 3),  # Pip was there
        (PET, "Pip the duck", "Pip the dog", 6),
        (PET, "Max found Pip", "Max found Rex", 5),
        (HIDE, "not under the bed", "not under the table", 4),
        (HIDE, "It is behind the sofa", "It is under the bed", 5),
        (HIDE, 'now," said Leo', 'now," said Ella', 5),
        (HIDE, "behind the sofa. Ella", "behind the desk. Ella", 6),
        (HIDE, "her brother", "her sister", 3),
        (HIDE, "home from the castle", "home from the zoo", 4),
        (HELP, "a blanket", "a sandwich", 5),
        (HELP, "Squeak", "Moo", 4),
        (HELP, "not cold at all", "not wet at all", 6),
        (HELP, "The quiet mouse said", "The brave mouse said", 4),
        (HELP, "Soon the brave cow", "Soon the quiet mouse", 6),
        (PARTY, "It was Nora", "It was Finn", 6),
        (PARTY, "the pink kite?", "the black kite?", 5),
        (PARTY, "thanked Finn and Nora", "thanked Finn and Ruby", 4),
        (PARTY, "gave her", "gave him", 2),
        (SWAP, "Now Zoe had the blue hat", "Now Zoe had the red hat", 6),
        (SWAP, "Zoe had the blue hat, and Jack had the red cup", "Zoe had the red cup, and Jack had the blue hat", 6),
        (SWAP, "like your hat", "like your cup", 3),  # her own
        (SWAP, "good day", "good evening", 7),
        (BAKE, "only five", "only four", 3),
        (BAKE, "I ate four", "I ate five", 4),
        (BAKE, 'sorry," said Noah', 'sorry," said Ivy', 4),
        (BAKE, 'white plate. "I', 'white dish. "I', 3),
        (BAKE, "last five", "last six", 6),
        (TRIP, "They were at the bridge", "They were at the beach", 6),
        (TRIP, "made six", "made eight", 4),
        (TRIP, "to the bridge and", "to the beach and", 3),  # they were there before
        (TRIP, "Theo and Coco now", "Theo and Pip now", 5),
        (TRIP, "his horse Coco", "her horse Coco", 1),
    ],
)
def test_inconsistent(text: str, old: str, new: str, sentence: int) -> None:
    assert text.count(old) == 1
    reason = check_story(text.replace(old, new))
    assert reason is not None
    assert reason.startswith(f"sentence {sentence} "), reason
    assert "\n" not in reason


def test_reasons_name_the_fact() -> None:
    assert "Tom has the ball, not Anna" in str(check_story(GIVE.replace("Now Tom had", "Now Anna had")))
    assert "5 is right" in str(check_story(COUNT.replace("That made five", "That made six")))
    assert "before its end" in str(check_story(GIVE.rsplit(". ", 1)[0] + "."))
    assert "not a sentence" in str(check_story(GIVE.replace("gave", "gived")))


def test_numbers_below_two_do_not_go_with_a_plural() -> None:
    assert check_story(COUNT.replace("three apples in", "one apples in")) is not None


def test_the_order_in_which_equals_are_named_is_free() -> None:
    """The same facts with the two friends or gifts named the other way round: just as true."""
    assert check_story(PARTY.replace("thanked Finn and Nora", "thanked Nora and Finn")) is None
    swapped = "Now Jack had the red cup, and Zoe had the blue hat."
    assert check_story(SWAP.replace("Now Zoe had the blue hat, and Jack had the red cup.", swapped)) is None
