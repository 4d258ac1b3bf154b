"""Conversations -> what the model trains on: token ids, and which of them it has to predict."""

import json
import random
import re
from collections.abc import Callable

import jinja2

from tests.tiny_model import pictures, skills, tools
from tests.tiny_model.conversation import PICTURE, TEMPLATE, Case, Turn, messages
from tests.tiny_model.tokenizer import Tokenizer
from tests.tiny_model.words import Source

OPENING, END = "<|im_start|>assistant\n", "<|im_end|>"
# What stands around the words of a picture; they are no tokens, and end where tokens are made.
PICTURE_BEGIN, PICTURE_END = "\ue000", "\ue001"

Skill = Callable[[Source], Case]
Example = tuple[list[int], list[float]]  # tokens, and what it weighs to predict each; 0: given
N_CTX = 2048
N_POOL, N_ALONE = 4000, 6  # conversations drawn together; pools with nothing but one case each
COMPOUNDS = 0.3  # the share of words that are two in one: each piece in new company

# How often a conversation begins with each skill; the second number is its share of turns that
# follow others. What is hard to learn comes often.
MIXTURE: dict[Skill, tuple[float, float]] = {
    skills.echo: (14, 6),
    skills.addition: (8, 5),
    skills.sums: (12, 0),
    skills.counting: (5, 1),
    skills.introduction: (3, 0),
    skills.small_talk: (3, 4),
    skills.unknown: (5, 4),
    skills.storytelling: (2, 0.3),
    skills.thinking: (8, 2),
    skills.puzzle: (2, 1),
    skills.recall: (10, 0),
    skills.forgotten: (0.7, 0),
    skills.json_object: (8, 2),
    tools.call: (20, 0),
    tools.many_calls: (16, 0),
    tools.call_result: (6, 0),
    tools.two_calls: (16, 0),
    tools.two_results: (4, 0),
    tools.chain: (4, 0),
    tools.no_call: (6, 0),
    pictures.looking: (7, 1),
    pictures.pair: (9, 0),
}
SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.",
    "You are helpful.", "Be brief.", "Answer in one sentence.", "You are an AI assistant.",
    "You are a helpful, harmless and honest assistant.", "Answer the questions of the user.",
)  # fmt: skip


def conversation(source: Source, *, alone: bool = False) -> Case:
    """One case, at times with turns of other skills behind it; never when it is to stay alone."""
    first = source.rng.choices(tuple(MIXTURE), [share for share, _ in MIXTURE.values()])[0]
    case = first(source)
    if not case.system and source.chance(0.25):
        case.system = source.phrase(SYSTEMS)
    if alone or case.system.startswith(skills.RHYME_WISHES) or not case.thinking:
        return case
    n_more = 20 if source.chance(0.015) else source.rng.choice((0, 0, 0, 0, 1, 1, 2, 3, 5))
    for _ in range(n_more):
        following = source.rng.choices(tuple(MIXTURE), [share for _, share in MIXTURE.values()])[0]
        more = following(source)
        adds = case.tools and ("add" in str(case.tools) or "sum" in str(case.tools))
        if not more.system and more.thinking and not adds:
            case.turns += more.turns
    return case


class Renderer:
    """Turns a case into text with the model's own chat template."""

    def __init__(self) -> None:
        environment = jinja2.Environment(autoescape=False, trim_blocks=True, lstrip_blocks=True)
        environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
        self._template = environment.from_string(TEMPLATE.read_text())

    def text(self, case: Case) -> str:
        """The whole conversation, answers included."""
        listed = messages(case, in_words)
        text = str(self._template.render(messages=listed, tools=case.tools))
        if not case.thinking:
            before, _, answer = text.rpartition(OPENING)
            return f"{before}{OPENING}<think>\n\n</think>\n\n{answer}"
        return text


def in_words(turn: Turn) -> str:
    """The content of a turn with words for its pictures."""
    text = turn.content
    for picture in turn.pictures:
        text = text.replace(PICTURE, f"{PICTURE_BEGIN}{picture.words}{PICTURE_END}", 1)
    return text


def plain(text: str) -> str:
    """A rendered text without its marks, for learning how to cut it."""
    return re.sub(f"[{PICTURE_BEGIN}{PICTURE_END}]", "\n", text)


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text; each picture is as many as the eye gives, whatever stands around it."""
    ids: list[int] = []
    for i, part in enumerate(re.split(f"[{PICTURE_BEGIN}{PICTURE_END}]", text)):
        ids += tokenizer.encode(part) if i % 2 == 0 else picture_tokens(tokenizer, part)
    return ids


def picture_tokens(tokenizer: Tokenizer, words: str) -> list[int]:
    """What the model reads in the places of a picture: each word, with full stops behind it.

    A word always stands at the same places, so that the eye has one thing to find for each.
    """
    ids: list[int] = []
    for word, n_places in zip([*words.split(), "", ""], pictures.PLACES, strict=False):
        pieces = tokenizer.encode(f" {word}" if word else "")
        assert len(pieces) <= n_places, f"{word} is cut into {len(pieces)} pieces"
        ids += pieces + tokenizer.encode(".") * (n_places - len(pieces))
    return ids


def learned(tokenizer: Tokenizer, text: str) -> Example:
    """Answers are to be predicted, up to the end of the turn; all else is given.

    What an answer weighs grows with the root of its length: else the one word that decides would
    be nothing beside a long row of numbers.
    """
    ids: list[int] = []
    weights: list[float] = []
    parts = text.split(OPENING)
    for i, part in enumerate(parts):
        answer, end, rest = part.partition(END) if i else ("", "", part)
        given = "<think>\n\n</think>\n\n" if answer.startswith("<think>\n\n") else ""
        opening = OPENING if i < len(parts) - 1 else ""
        pieces = ((given, False), (answer[len(given) :] + end, True), (rest + opening, False))
        for piece, predicted in pieces:
            new = encoded(tokenizer, piece)
            ids += new
            weights += [max(1, len(new)) ** -0.5 if predicted else 0.0] * len(new)
    return ids, weights


def examples(seed: int, number: int, tokenizer: Tokenizer) -> list[Example]:
    """The pool of this number: the same for the same seed, whoever asks, and in whatever order.

    The first pools have conversations of one case each: copying is learned sooner where there is
    less to look at.
    """
    source = Source(f"{seed} {number}", held_out=False, compounds=COMPOUNDS)
    renderer = Renderer()
    texts = (renderer.text(conversation(source, alone=number < N_ALONE)) for _ in range(N_POOL))
    found = (learned(tokenizer, text) for text in texts)
    return [example for example in found if len(example[0]) <= N_CTX]


def batches(pool: list[Example], n_tokens: int, rng: random.Random) -> list[list[Example]]:
    """Of at most `n_tokens` each, padding counted: conversations that are about equally long."""
    made: list[list[Example]] = []
    room = 0
    for example in sorted(pool, key=lambda example: -len(example[0])):
        if not room:
            made.append([])
            room = n_tokens // len(example[0])
        made[-1].append(example)
        room -= 1
    rng.shuffle(made)
    return made
