"""Stories written by hand, with the fact that breaks each of the wrong ones."""

import pytest

from minigpt.data.demo import check_story

GIVE = (
    "Once there was a kind girl named Anna who had a red ball. One sunny day, she took the ball to the park. "
    "At the park, she met her friend Tom. Tom was sad because he had no ball. Anna gave the red ball to Tom. "
    '"Thank you, Anna!" said Tom. Now Tom had the red ball. Anna was glad, for it is good to share.'
)
GIVE_ASKED = (
    "Once upon a time, a brave boy named Leo had a golden kite. One windy day, he took the kite to the castle. "
    'At the castle, he met his friend Zoe. Zoe looked at the kite and said, "I wish I had a kite too." '
    "Leo gave the golden kite to Zoe. Who had the golden kite now? Zoe had it. "
    "Leo went home from the castle with a happy heart."
)
LOSE = (
    "Once upon a time, a little boy named Ben had a silver ring. One windy morning, he lost the ring at the lake. "
    "He looked under the bench, but the ring was not there. Ben asked his friend Mia for help. "
    "Mia found the ring behind the tree and gave it back to Ben. Where had the silver ring been? "
    "It had been behind the tree. Ben and Mia walked home from the lake together."
)
LOSE_AGAIN = (
    "Once there was a quiet girl named Nora who had a pink doll. One snowy evening, she lost the doll at the school. "
    "She looked beside the cart, but the doll was not there. Nora asked her friend Ivy for help. "
    "Ivy found the doll under the cart and gave it back to Nora. Now Nora had the pink doll again. "
    "Nora thanked Ivy with a big smile."
)
COUNT = (
    "One warm day, Lily had three apples in a blue basket. At the market, she bought two more apples. "
    "Now she had five apples. Outside the market, she met her friend Sam. Lily gave Sam two apples. "
    "Now Lily had three apples, and Sam had two apples. Food tastes best when it is shared."
)
COUNT_ASKED = (
    "One rainy morning, Jack put six eggs into a white bowl. At the stall, he bought four more eggs. "
    "Now he had ten eggs. Outside the stall, he met his friend Rose. Jack gave Rose three eggs. "
    "How many eggs did Jack have now? Jack had seven eggs. Rose thanked Jack for the eggs."
)
PET = (
    "Once there was a boy named Max who had a funny duck named Pip. One rainy day, Pip ran away to the river. "
    'Then Max went to the river and heard a loud "quack!" Max found Pip under the bush. '
    "Now Pip the duck was safe with Max again. Max hugged Pip and was happy."
)
PET_ASKED = (
    "Once upon a time, a girl named Emma had a clever sheep named Daisy. One bright day, Daisy ran away to the bridge. "
    'Then Emma went to the bridge and heard a loud "baa!" Emma found Daisy beside the hedge. '
    "Now Daisy the sheep was safe with Emma again. Where had Daisy been? "
    "Daisy had been at the bridge, beside the hedge. That night, Daisy slept close to Emma."
)
TRIP = (
    "One warm morning, Theo took his horse Coco to the beach. There they saw two birds. "
    "Then they walked to the bridge and saw four more birds. That made six birds in all. "
    "Where were Theo and Coco now? They were at the bridge. Theo hugged Coco and they walked home."
)
TRIP_BARK = (
    "One cloudy afternoon, Ruby went to the pond with her dog Rusty. There they saw five rabbits. "
    "Then they walked to the zoo and saw two more rabbits. "
    '"We have seen seven rabbits," said Ruby. "Woof, woof!" said Rusty the dog. '
    "Now Ruby and Rusty were at the zoo. They went home from the zoo with happy hearts."
)


@pytest.mark.parametrize(
    "text", [GIVE, GIVE_ASKED, LOSE, LOSE_AGAIN, COUNT, COUNT_ASKED, PET, PET_ASKED, TRIP, TRIP_BARK]
)
def test_consistent(text: str) -> None:
    assert check_story(text) is None


@pytest.mark.parametrize(
    ("text", "old", "new", "sentence"),
    [
        (GIVE, "Now Tom had", "Now Anna had", 7),  # she gave it away
        (GIVE, "Now Tom had the red ball", "Now Tom had the blue ball", 7),
        (GIVE, "Now Tom had the red ball", "Now Tom had the red kite", 7),
        (GIVE, "took the ball", "took the kite", 2),
        (GIVE, "At the park", "At the lake", 3),  # she is not there
        (GIVE, "At the park, she", "At the park, he", 3),
        (GIVE, "met her friend Tom", "met his friend Tom", 3),
        (GIVE, "met her friend Tom", "met her friend Anna", 3),
        (GIVE, "because he had", "because she had", 4),
        (GIVE, "Tom was sad because he", "Anna was sad because she", 4),  # she has one
        (GIVE, "had no ball", "had no drum", 4),
        (GIVE, "a kind girl", "a kind boy", 1),
        (GIVE, ", she took", ", he took", 2),
        (GIVE, "Anna gave the red ball to Tom", "Tom gave the red ball to Anna", 5),
        (GIVE, "Anna gave the red ball to Tom", "Anna gave the red ball to Sam", 5),  # nobody has met Sam
        (GIVE, "Anna gave the red ball to Tom", "Anna gave the red ball to Anna", 5),
        (GIVE, "Anna gave the red", "Anna gave the green", 5),
        (GIVE, "Thank you, Anna", "Thank you, Mia", 6),
        (GIVE, '"Thank you, Anna!" said Tom', '"Thank you, Tom!" said Anna', 6),
        (GIVE, "Anna was glad", "Tom was glad", 8),  # he did not share
        (GIVE, "Anna was glad, for it is good to share", "Anna went home from the zoo with a happy heart", 8),
        (GIVE, "Anna was glad, for it is good to share", "Anna thanked Tom with a big smile", 8),
        (GIVE, '"Thank you, Anna!" said Tom. Now Tom had the red ball.', "Who had the red ball now? Anna had it.", 7),
        (GIVE_ASKED, "I wish I had a kite", "I wish I had a boat", 4),
        (GIVE_ASKED, "Zoe looked at the kite", "Leo looked at the kite", 4),
        (GIVE_ASKED, "Who had the golden", "Who had the black", 6),
        (GIVE_ASKED, "Zoe had it", "Leo had it", 7),
        (GIVE_ASKED, "home from the castle", "home from the river", 8),
        (GIVE_ASKED, "Leo went home", "Zoe went home", 8),
        (LOSE, "lost the ring", "lost the drum", 2),
        (LOSE, "He looked", "She looked", 3),
        (LOSE, "but the ring", "but the cup", 3),
        (LOSE, "asked his friend Mia", "asked her friend Mia", 4),
        (LOSE, "Ben asked his friend Mia", "Mia asked her friend Ben", 4),  # she is not there yet
        (LOSE, "found the ring", "found the drum", 5),
        (LOSE, "behind the tree and", "under the bench and", 5),  # it was not there
        (LOSE, "gave it back to Ben", "gave it back to Mia", 5),
        (
            LOSE,
            "Mia found the ring behind the tree and gave it back to Ben",
            "Ben found the ring behind the tree and gave it back to Mia",
            5,
        ),  # it is his
        (LOSE, "Where had the silver", "Where had the shiny", 6),
        (LOSE, "It had been behind", "It had been under", 7),
        (LOSE, "been behind the tree", "been behind the bench", 7),
        (LOSE, "Ben and Mia walked home from the lake", "Ben and Mia walked home from the park", 8),
        (LOSE, "Ben and Mia walked home", "Ben and Tom walked home", 8),
        (LOSE_AGAIN, "Now Nora had", "Now Ivy had", 6),
        (LOSE_AGAIN, "had the pink doll again", "had the red doll again", 6),
        (LOSE_AGAIN, "had the pink doll again", "had the pink book again", 6),
        (LOSE_AGAIN, "Nora thanked Ivy", "Ivy thanked Nora", 7),
        (LOSE_AGAIN, "Nora thanked Ivy with a big smile", "Ivy was happy to have a friend like Nora", 7),
        (COUNT, "she had five", "she had six", 3),
        (COUNT, "had five apples", "had five pears", 3),
        (COUNT, "she bought", "he bought", 2),
        (COUNT, "two more apples", "three more apples", 3),
        (COUNT, "Outside the market", "Outside the store", 4),
        (COUNT, "she met her friend", "she met his friend", 4),
        (COUNT, "Lily gave Sam two", "Lily gave Sam seven", 5),  # she has five
        (COUNT, "Lily gave Sam two", "Sam gave Lily two", 5),  # he has none
        (COUNT, "Lily gave Sam two", "Lily gave Sam three", 6),
        (COUNT, "Now Lily had three", "Now Lily had two", 6),
        (COUNT, "Sam had two apples", "Sam had three apples", 6),
        (COUNT, "Food tastes best when it is shared", "Lily thanked Sam for the apples", 7),
        (COUNT, "Food tastes best when it is shared", "Sam thanked Lily for the eggs", 7),
        (COUNT, "Food tastes best when it is shared", "Lily and Ben sat down and ate together", 7),
        (
            COUNT_ASKED,
            "How many eggs did Jack have now? Jack had seven",
            "How many eggs did Jack have now? Jack had three",
            7,
        ),
        (COUNT_ASKED, "did Jack have", "did Rose have", 7),  # the answer is about another one
        (COUNT_ASKED, "How many eggs", "How many nuts", 6),
        (COUNT_ASKED, "four more eggs", "one more eggs", 2),
        (PET, '"quack!"', '"moo!"', 3),
        (PET, "Max went to the river", "Max went to the school", 3),  # Pip is not there
        (PET, "Pip ran away", "Rex ran away", 2),
        (PET, "Max found Pip", "Max found Rex", 4),
        (PET, "Max found Pip", "Tom found Pip", 4),
        (PET, "Pip the duck", "Pip the dog", 5),
        (PET, "safe with Max", "safe with Anna", 5),
        (PET, "Max hugged Pip", "Max hugged Toby", 6),
        (PET, "a boy", "a girl", 1),
        (PET_ASKED, "Where had Daisy", "Where had Bruno", 6),
        (PET_ASKED, "had been at the bridge", "had been at the harbour", 7),
        (PET_ASKED, "bridge, beside the hedge", "bridge, beside the stairs", 7),
        (PET_ASKED, "bridge, beside the hedge", "bridge, behind the hedge", 7),
        (PET_ASKED, "slept close to Emma", "slept close to Ella", 8),
        (TRIP, "to the bridge and", "to the beach and", 3),  # they were there before
        (TRIP, "four more birds", "four more rabbits", 3),
        (TRIP, "made six", "made eight", 4),
        (TRIP, "made six birds", "made six sparrows", 4),
        (TRIP, "Theo and Coco now", "Theo and Pip now", 5),
        (TRIP, "They were at the bridge", "They were at the beach", 6),
        (TRIP, "his horse Coco", "her horse Coco", 1),
        (TRIP, "Theo hugged Coco and they walked home", "Theo was glad to have his hen Coco", 7),
        (TRIP, "Theo hugged Coco and they walked home", "Theo was glad to have her horse Coco", 7),
        (TRIP_BARK, "seen seven", "seen six", 4),
        (TRIP_BARK, 'rabbits," said Ruby', 'rabbits," said Leo', 4),
        (TRIP_BARK, '"Woof, woof!"', '"Meow, meow!"', 5),
        (TRIP_BARK, '"Woof, woof!"', '"Woof, oink!"', 5),
        (TRIP_BARK, "said Rusty the dog", "said Muffin the dog", 5),
        (TRIP_BARK, "said Rusty the dog", "said Rusty the cat", 5),
        (TRIP_BARK, "were at the zoo", "were at the pond", 6),
        (TRIP_BARK, "home from the zoo", "home from the lake", 7),
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
    assert "5 is right" in str(check_story(COUNT.replace("Now she had five", "Now she had six")))
    assert "Pip is at the river, not at the zoo" in str(
        check_story(PET.replace("went to the river", "went to the zoo"))
    )
    assert "before its end" in str(check_story(GIVE.rsplit(". ", 1)[0] + "."))
    assert "not a sentence" in str(check_story(GIVE.replace("gave", "gived")))


def test_numbers_below_two_do_not_go_with_a_plural() -> None:
    """Not even where the sum is right."""
    fewer = COUNT.replace("had three apples in", "had one apples in").replace("she had five", "she had three")
    assert str(check_story(fewer)).startswith("sentence 1 ")


def test_true_sentences_that_the_plot_does_not_have_there_are_rejected() -> None:
    assert check_story(COUNT.replace("Food tastes best when it is shared", "Sam thanked Lily with a big smile"))
    assert check_story(
        LOSE_AGAIN.replace("Nora thanked Ivy with a big smile", "Nora was glad, for it is good to share")
    )
    assert check_story(GIVE.replace("Anna was glad, for it is good to share.", "Who had the red ball now? Tom had it."))


def test_the_order_in_which_equals_are_named_is_free() -> None:
    """The same facts with the two friends named the other way round: just as true, and just as wrong."""
    told = "Now Lily had three apples, and Sam had two apples."
    assert check_story(COUNT.replace(told, "Now Sam had two apples, and Lily had three apples.")) is None
    assert check_story(COUNT.replace(told, "Now Sam had three apples, and Lily had two apples.")) is not None
    other = COUNT_ASKED.replace("did Jack have now? Jack had seven", "did Rose have now? Rose had three")
    assert other != COUNT_ASKED and check_story(other) is None
