"""Conversations -> what the model trains on: token ids, and which of them it has to predict."""

import itertools
import json
import re
from collections.abc import Callable, Iterator

import jinja2

from tests.tiny_model import pictures, skills, tools
from tests.tiny_model.conversation import PICTURE, TEMPLATE, Case, Turn, messages
from tests.tiny_model.tokenizer import Tokenizer
from tests.tiny_model.words import Source

OPENING, END = "<|im_start|>assistant\n", "<|im_end|>"
# What stands around the words of a picture; they are no tokens, and end where tokens are made.
PICTURE_BEGIN, PICTURE_END = "\ue000", "\ue001"

Skill = Callable[[Source], Case]
Batch = list[tuple[list[int], list[bool]]]  # conversations: tokens, and which are to be predicted

# How often a conversation begins with each skill; the second number is its share of turns that
# follow others. What is hard to learn comes often.
MIXTURE: dict[Skill, tuple[float, float]] = {
    skills.echo: (14, 6),
    skills.addition: (6, 4),
    skills.counting: (4, 1),
    skills.introduction: (3, 0),
    skills.small_talk: (3, 4),
    skills.unknown: (5, 4),
    skills.storytelling: (2, 0.3),
    skills.thinking: (5, 1),
    skills.puzzle: (2, 1),
    skills.recall: (14, 0),
    skills.forgotten: (0.7, 0),
    skills.json_object: (7, 2),
    tools.call: (14, 0),
    tools.call_result: (6, 0),
    tools.two_calls: (7, 0),
    tools.two_results: (3, 0),
    tools.chain: (5, 0),
    tools.no_call: (5, 0),
    pictures.looking: (8, 1),
}
SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.",
    "You are helpful.", "Be brief.", "Answer in one sentence.", "You are an AI assistant.",
    "You are a helpful, harmless and honest assistant.", "Answer the questions of the user.",
)  # fmt: skip


# What later courses practise more. The second: what the first left hard.
HARDER: dict[Skill, float] = {
    skills.echo: 21,
    skills.addition: 24,
    skills.thinking: 7.5,
    skills.json_object: 10.5,
    tools.call: 28,
    tools.two_calls: 14,
}
# The third: what the second left hard, and less of what has long been learned.
HARDEST: dict[Skill, float] = {
    skills.echo: 21,
    skills.sums: 24,
    skills.counting: 8,
    skills.json_object: 14,
    skills.recall: 8,
    tools.call: 56,
    tools.two_calls: 14,
    pictures.looking: 24,
}
# The fourth: choosing a tool, with a little of what is easily forgotten.
LAST: dict[Skill, float] = {
    skills.echo: 24,
    skills.sums: 8,
    skills.counting: 6,
    skills.thinking: 9,
    skills.json_object: 12,
    skills.recall: 8,
    tools.call: 14,
    tools.many_calls: 60,
    tools.two_calls: 12,
    pictures.looking: 20,
}
# The fifth: what the others had been learned at the cost of, beside what is still hard.
EVEN: dict[Skill, float] = {
    skills.echo: 32,
    skills.sums: 14,
    skills.addition: 8,
    skills.recall: 36,
    skills.json_object: 12,
    tools.call: 18,
    tools.many_calls: 24,
    tools.two_calls: 12,
    pictures.looking: 14,
}
# The sixth: the last that is hard, above all to find which of two pictures it is.
FINEST: dict[Skill, float] = {
    skills.echo: 34,
    skills.sums: 6,
    skills.recall: 16,
    skills.thinking: 16,
    skills.json_object: 8,
    tools.call: 18,
    tools.many_calls: 24,
    tools.two_calls: 20,
    pictures.compared: 40,
}
# The seventh: which of two pictures it is, and which of several tools.
LAST_OF_ALL: dict[Skill, float] = {
    skills.echo: 20,
    skills.sums: 16,
    skills.addition: 8,
    skills.recall: 14,
    tools.call: 30,
    tools.many_calls: 36,
    tools.two_calls: 30,
    pictures.compared: 70,
}


def conversation(
    source: Source, *, shares: dict[Skill, float] | None = None, alone: bool = False
) -> Case:
    """One case, at times with turns of other skills behind it; never when it is to stay alone.

    `shares` changes how often a conversation begins with these skills.
    """
    mixed = {skill: share for skill, (share, _) in MIXTURE.items()} | (shares or {})
    first = source.rng.choices(tuple(mixed), tuple(mixed.values()))[0]
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


def learned(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[bool]]:
    """(tokens, whether each has to be predicted): those of answers, up to the end of the turn."""
    ids: list[int] = []
    mask: list[bool] = []
    parts = text.split(OPENING)
    for i, part in enumerate(parts):
        answer, end, rest = part.partition(END) if i else ("", "", part)
        given = "<think>\n\n</think>\n\n" if answer.startswith("<think>\n\n") else ""
        opening = OPENING if i < len(parts) - 1 else ""
        pieces = ((given, False), (answer[len(given) :] + end, True), (rest + opening, False))
        for piece, predicted in pieces:
            new = encoded(tokenizer, piece)
            ids += new
            mask += [predicted] * len(new)
    return ids, mask


def batches(
    source: Source,
    tokenizer: Tokenizer,
    n_tokens: int,
    shares: dict[Skill, float],
    n_alone: int,
) -> Iterator[Batch]:
    """Batches of about `n_tokens`, each of conversations that are about equally long.

    The first `n_alone` pools of conversations have one case each: copying is learned sooner where
    there is less to look at.
    """
    renderer = Renderer()
    for pool_number in itertools.count():
        alone = pool_number < n_alone
        pool = [
            learned(tokenizer, renderer.text(conversation(source, shares=shares, alone=alone)))
            for _ in range(2000)
        ]
        pool = sorted(
            (item for item in pool if len(item[0]) <= 2048), key=lambda item: len(item[0])
        )
        ready: list[Batch] = []
        batch: Batch = []
        for item in pool:
            if batch and len(item[0]) * (len(batch) + 1) > n_tokens:
                ready.append(batch)
                batch = []
            batch.append(item)
        source.rng.shuffle(ready)  # the last, incomplete one is left out
        yield from ready
