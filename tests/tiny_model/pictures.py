"""What pictures show, what is asked about them, and the answers: simple shapes of one colour.

The language model never sees a pixel in training. To it, a picture is sixteen tokens: the words
for what it shows, with full stops between them. The eye (`eye.py`) learns to put into these sixteen
places what the model would have read there, so that both can be trained apart.
"""

from collections.abc import Callable, Sequence

from tests.tiny_model.conversation import NUMBERS, PICTURE, Case, Picture, Turn, exchange
from tests.tiny_model.words import Source

PLACES = (4, 5, 7)  # tokens of a picture: for the number, the colour, and the shape
COLOURS = ("red", "blue", "green", "yellow", "orange", "purple", "black", "white")
SHAPES = ("circle", "square", "triangle")

Question = Callable[[Source, Picture], tuple[str, str]]
QuestionOfTwo = Callable[[Source, Picture, Picture], tuple[str, str]]


def drawn(source: Source) -> Picture:
    """Any picture: whether the eye has seen one like it is decided by its pixels."""
    colour = source.phrase(COLOURS)
    if source.chance(0.15):
        return Picture(colour)
    return Picture(colour, source.phrase(SHAPES), source.rng.randint(1, len(NUMBERS)))


COLOUR_QUESTIONS = (
    "What colour is this?", "What color is this?", "What colour is it?", "What color is it?",
    "Which colour do you see?", "Which color do you see?", "What colour is the picture?",
    "What color is the picture?", "What colour is this picture?", "What color is this image?",
    "What colour is the image?", "What color is the image?", "Name the colour.",
    "Name the color.", "Which colour is it?", "Which color is this?",
    "What is the colour of this image?", "What is the color of the picture?",
)  # fmt: skip
SHAPE_QUESTIONS = (
    "What shape is this?", "Which shape is it?", "What shape is it?", "Which shape do you see?",
    "What shape do you see?", "What shape is in the picture?", "Which shape is in the image?",
    "Name the shape.", "What is the shape?", "What kind of shape is it?",
)  # fmt: skip
COUNT_QUESTIONS = (
    "How many {}s are there?", "How many {}s do you see?", "How many shapes are there?",
    "How many shapes do you see?", "How many are there?", "How many {}s are in the picture?",
    "How many shapes are in the image?", "Count the {}s.", "Count the shapes.",
    "How many {}s does the picture show?",
)  # fmt: skip
CONTENT_QUESTIONS = (
    "What is in this image?", "What's in this image?", "What is in the picture?",
    "What's in this picture?", "What is in the image?", "Describe this image.",
    "Describe the picture.", "Describe this picture.", "What do you see?", "What is this?",
    "What does the picture show?", "What do you see in this image?", "What is shown here?",
    "Tell me what you see.",
)  # fmt: skip
WHICH_COLOUR = (
    "Which picture is {}?", "Which image is {}?", "Which of the pictures is {}?",
    "Which one is {}?", "Which of the two is {}?",
)  # fmt: skip
WHICH_SHAPE = (
    "Which picture shows a {}?", "Which picture has {}s?", "Which image shows {}s?",
    "Which picture shows {}s?", "Which of the pictures has a {}?",
)  # fmt: skip
THE_FIRST, THE_SECOND = "The first.", "The second."


def colour(source: Source) -> Case:
    """The colour of a picture."""
    return _about(source, [_colour])


def shape(source: Source) -> Case:
    """Circle, square or triangle."""
    return _about(source, [_shape])


def count(source: Source) -> Case:
    """One to four."""
    return _about(source, [_count])


def content(source: Source) -> Case:
    """All of it."""
    return _about(source, [_content])


def compared(source: Source) -> Case:
    """Which of two pictures."""
    return _about_two(source, [_which])


def pair(source: Source) -> Case:
    """Two pictures and some questions: which of them, or what the first or the second is."""
    kinds = (_which, _which, _which, _one_of_two, _one_of_two)
    return _about_two(source, source.rng.choices(kinds, k=source.rng.randint(1, 4)))


def album(source: Source) -> Case:
    """Several pictures, one after the other, each with one to three questions."""
    turns: list[Turn] = []
    n = source.rng.randint(5, 10) if source.chance(0.15) else source.rng.randint(1, 3)
    for _ in range(n):
        kinds = source.rng.sample((_colour, _shape, _count, _content), source.rng.randint(1, 3))
        turns += _about(source, kinds).turns
    return Case(turns)


def looking(source: Source) -> Case:
    """Any of the above."""
    return source.rng.choice((colour, shape, count, content, pair, album))(source)


def _about(source: Source, kinds: Sequence[Question]) -> Case:
    """One picture, with its first question, and further questions about it."""
    picture = drawn(source)
    while not picture.shape and (_shape in kinds or _count in kinds):
        picture = drawn(source)
    turns: list[Turn] = []
    for i, kind in enumerate(kinds):
        question, answer = kind(source, picture)
        asked, *others = exchange(question, answer)
        if i == 0:
            asked = Turn("user", _placed(source, question, PICTURE), pictures=[picture])
        turns += [asked, *others]
    return Case(turns)


def _about_two(source: Source, kinds: Sequence[QuestionOfTwo]) -> Case:
    """Two pictures that differ, with questions about them."""
    first, second = drawn(source), drawn(source)
    while first.colour == second.colour:
        first, second = drawn(source), drawn(source)
    turns = [turn for kind in kinds for turn in exchange(*kind(source, first, second))]
    asked = _placed(source, turns[0].content, PICTURE * 2)
    turns[0] = Turn("user", asked, pictures=[first, second])
    return Case(turns)


def _placed(source: Source, question: str, pictures: str) -> str:
    """The question before or behind what it is about."""
    between = source.phrase(("", "", "\n", " "))
    return source.phrase((f"{question}{between}{pictures}", f"{pictures}{between}{question}"))


def _which(source: Source, first: Picture, second: Picture) -> tuple[str, str]:
    wanted, answer = (first, THE_FIRST) if source.chance(0.5) else (second, THE_SECOND)
    if wanted.shape and first.shape != second.shape and source.chance(0.4):
        return source.phrase(WHICH_SHAPE).format(wanted.shape), answer
    return source.phrase(WHICH_COLOUR).format(wanted.colour), answer


def _one_of_two(source: Source, first: Picture, second: Picture) -> tuple[str, str]:
    place, picture = source.rng.choice((("first", first), ("second", second)))
    asked = source.phrase(("colour", "color", "shape") if picture.shape else ("colour", "color"))
    verb = source.phrase(("is", "do you see in"))
    answer = _shape(source, picture)[1] if asked == "shape" else f"{picture.colour.capitalize()}."
    return f"What {asked} {verb} the {place} {source.phrase(('picture', 'image'))}?", answer


def _colour(source: Source, picture: Picture) -> tuple[str, str]:
    question = source.phrase(COLOUR_QUESTIONS)
    if picture.shape and source.chance(0.3):
        question = f"What colour is the {picture.shape}?"
        if picture.n > 1:
            question = f"What colour are the {picture.shape}s?"
        question = question if source.chance(0.5) else question.replace("colour", "color")
    return question, f"{picture.colour.capitalize()}."


def _shape(source: Source, picture: Picture) -> tuple[str, str]:
    several = f"{picture.shape.capitalize()}s."
    return source.phrase(SHAPE_QUESTIONS), f"A {picture.shape}." if picture.n == 1 else several


def _count(source: Source, picture: Picture) -> tuple[str, str]:
    number = NUMBERS[picture.n - 1]
    return source.phrase(COUNT_QUESTIONS).format(picture.shape), f"{number.capitalize()}."


def _content(source: Source, picture: Picture) -> tuple[str, str]:
    return source.phrase(CONTENT_QUESTIONS), f"{picture.words.capitalize()}."
