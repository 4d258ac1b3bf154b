"""Asks the served model what it was taught, with words that its training never saw.

    make tiny-check                   (or: python -m tests.tiny_model.check --help)

Every question goes through the chat endpoint of a running server, at temperature 0, and counts
when the answer is exactly the expected one: text, JSON, or calls with their arguments.
"""

import argparse
import base64
import json
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.support.server_process import RunningServer
from tests.tiny_model import drawing, pictures, skills, tools
from tests.tiny_model.conversation import PICTURE, Case, Turn, exchange, messages
from tests.tiny_model.words import Source

Message = dict[str, Any]


class Row(NamedTuple):
    """A line of the table."""

    name: str
    cases: Callable[[int], list[Case]]  # how many -> that many
    is_right: Callable[[Case, Message], bool]
    goal: float


def drawn(skill: Callable[[Source], Case]) -> Callable[[int], list[Case]]:
    """Cases of a skill, from the words that were held out."""

    def cases(n: int) -> list[Case]:
        source = Source(2026, held_out=True)
        return [skill(source) for _ in range(n)]

    return cases


def introductions(_n: int) -> list[Case]:
    """Every listed phrasing, alone and with each wish for rhymes."""
    plain = [Case(exchange(question, skills.INTRODUCTION)) for question in skills.INTRODUCTIONS]
    rhymed = [
        Case(exchange(question, skills.RHYME), system=wish)
        for question in skills.INTRODUCTIONS
        for wish in skills.RHYME_WISHES
    ]
    return plain + rhymed


def says(case: Case, message: Message) -> bool:
    """The expected text, and nothing else."""
    return bool(message["content"] == case.turns[-1].content and "tool_calls" not in message)


def thinks_and_says(case: Case, message: Message) -> bool:
    """Thoughts apart from the answer, and both as expected."""
    thought = message.get("reasoning_content", "").strip()
    return says(case, message) and thought == case.turns[-1].reasoning


def says_json(case: Case, message: Message) -> bool:
    """The expected object, its fields in the expected order."""
    try:
        found = json.loads(message["content"])
    except (ValueError, TypeError):
        return False
    return json.dumps(found) == json.dumps(json.loads(case.turns[-1].content))


def calls(case: Case, message: Message) -> bool:
    """The expected calls in their order, with exactly the expected arguments."""
    try:
        found = [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in message.get("tool_calls", [])
        ]
    except ValueError:  # the context was full before the arguments had ended
        return False
    return found == case.turns[-1].calls


ROWS = (
    Row("repeat 1 to 8 words", drawn(skills.echo), says, 0.95),
    Row("remember across 1 to 3 turns", drawn(skills.recall), says, 0.95),
    Row("add up to 20 + 20", drawn(skills.addition), says, 0.98),
    Row("count, up to 60 numbers", drawn(skills.counting), says, 0.95),
    Row("introduce itself, also in rhymes", introductions, says, 1.0),
    Row("answer as a JSON object", drawn(skills.json_object), says_json, 0.95),
    Row("call one of 1 to 5 tools", drawn(tools.call), calls, 0.95),
    Row("use a tool's result", drawn(tools.call_result), says, 0.95),
    Row("two calls at once", drawn(tools.two_calls), calls, 0.80),
    Row("use two results", drawn(tools.two_results), says, 0.80),
    Row("no call when no tool fits", drawn(tools.no_call), says, 0.80),
    Row("think first", drawn(skills.thinking), thinks_and_says, 0.95),
    Row("say what it does not know", drawn(skills.unknown), says, 0.80),
    Row("the colour of a picture", drawn(pictures.colour), says, 0.90),
    Row("the shape in a picture", drawn(pictures.shape), says, 0.90),
    Row("how many shapes, up to 4", drawn(pictures.count), says, 0.90),
    Row("which of two pictures", drawn(pictures.compared), says, 0.90),
)


def shown(turn: Turn) -> list[Message]:
    """The content parts of a turn with pictures, each drawn as nobody has drawn it before."""
    rng = random.Random(f"{turn.content} {turn.pictures}")
    parts: list[Message] = []
    for i, text in enumerate(turn.content.split(PICTURE)):
        if text:
            parts.append({"type": "text", "text": text})
        if i < len(turn.pictures):
            kind, data = image_file(drawing.paint(turn.pictures[i], rng), rng)
            url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
            parts.append({"type": "image_url", "image_url": {"url": url}})
    return parts


def image_file(image: drawing.Image, rng: random.Random) -> tuple[str, bytes]:
    """Kind and bytes of a file: a PNG or, where Pillow is there, as often a JPEG."""
    if rng.random() < 0.5:
        try:
            return "jpeg", drawing.jpeg(image, rng.randint(40, 95))
        except ImportError:
            pass
    return "png", drawing.png(image)


class Client:
    """Chats with a server, one connection for each question."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url).netloc

    def ask(self, case: Case, **more: Any) -> Message:
        """The message that answers the case, whose own last turn is not sent."""
        turns = case.turns[:-1]
        listed = messages(Case(turns, case.system), shown)
        body: dict[str, Any] = {"messages": listed, "temperature": 0}
        if case.tools:
            body["tools"] = case.tools
        connection = HTTPConnection(self._address, timeout=120)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/v1/chat/completions", json.dumps(body | more), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer}")
        return dict(answer["choices"][0]["message"])


def measured(client: Client, row: Row, n: int, show: int) -> tuple[int, int]:
    """(right answers, questions); prints the first wrong ones."""
    cases = row.cases(n)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(client.ask, cases))
    wrong = [(c, a) for c, a in zip(cases, answers, strict=True) if not row.is_right(c, a)]
    for case, answer in wrong[:show]:
        asked = next(turn for turn in reversed(case.turns[:-1]) if turn.role == "user")
        said = {key: value for key, value in answer.items() if value and key != "role"}
        print(f"  asked     {asked.content!r}\n  expected  {expected(case.turns[-1])}\n"
              f"  answered  {said}")  # fmt: skip
    return len(cases) - len(wrong), len(cases)


def expected(turn: Turn) -> object:
    """What a turn says, for people."""
    return (
        turn.calls or (turn.content, turn.reasoning)
        if turn.reasoning
        else turn.calls or turn.content
    )


def stories(client: Client, n: int) -> tuple[int, int]:
    """(different stories, asked for): at temperature 1 they should differ, and be stories."""
    case = Case(exchange("Tell me a story.", ""))
    told = {str(client.ask(case, temperature=1, seed=seed)["content"]) for seed in range(n)}
    whole = {
        text for text in told if text.startswith("Once upon a time") and text.endswith("The end.")
    }
    return len(whole), n


@contextmanager
def served(url: str | None) -> Iterator[str]:
    """The server asked for, or one of our own with the embedded model."""
    if url is not None:
        yield url
        return
    with RunningServer("--ctx", "8192") as server:
        yield server.url


def main() -> int:
    """Prints the table; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description="Measure the skills of the embedded model.")
    parser.add_argument("--n", type=int, default=100, metavar="N", help="questions of each skill")
    parser.add_argument("--url", help="a running server (default: a new one, the embedded model)")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="wrong answers to print")
    parser.add_argument("--only", default="", metavar="TEXT", help="skills whose name has this")
    options = parser.parse_args()
    missed = 0
    with served(options.url) as url:
        client = Client(url)
        for row in ROWS:
            if options.only not in row.name:
                continue
            right, n = measured(client, row, options.n, options.show)
            missed += right < row.goal * n
            mark = "" if right >= row.goal * n else "  MISSED"
            print(
                f"{row.name:34} {right:4} of {n:4}  {right / n:6.1%}  goal {row.goal:.0%}{mark}",
                flush=True,
            )
        if options.only in "different stories":
            right, n = stories(client, min(options.n, 50))
            print(f"{'different stories':34} {right:4} of {n:4}  {right / n:6.1%}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
