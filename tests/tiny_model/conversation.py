"""A conversation with one right answer at each turn of the assistant, and its form as messages."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TEMPLATE = Path(__file__).with_name("chat_template.jinja")
PICTURE = "\ufffc"  # Unicode's own character for an object within a text
NUMBERS = ("one", "two", "three", "four")


@dataclass(frozen=True)
class Picture:
    """So many shapes of one colour; no shape: nothing but the colour."""

    colour: str
    shape: str = ""
    n: int = 0

    @property
    def words(self) -> str:
        """What it shows, as the model reads it and as it tells."""
        if not self.shape:
            return f"only {self.colour}"
        return f"{NUMBERS[self.n - 1]} {self.colour} {self.shape}{'s' if self.n > 1 else ''}"


@dataclass
class Turn:
    """One message; a tool's result has the role "tool"."""

    role: str
    content: str = ""  # with the character PICTURE for each picture
    reasoning: str = ""
    calls: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)


@dataclass
class Case:
    """A conversation whose last turn is the assistant's, and what it needs to know before."""

    turns: list[Turn]
    system: str = ""
    tools: list[dict[str, object]] = field(default_factory=list)
    thinking: bool = True  # False: asked not to (`enable_thinking` of the template)


def exchange(question: str, answer: str, reasoning: str = "") -> list[Turn]:
    """A question and its answer."""
    return [Turn("user", question), Turn("assistant", answer, reasoning)]


def messages(
    case: Case, show: Callable[[Turn], object] = lambda turn: turn.content
) -> list[dict[str, object]]:
    """The messages of a case as a client of the chat endpoint writes them.

    `show` makes the content of a turn with pictures.
    """
    listed: list[dict[str, object]] = []
    if case.system:
        listed.append({"role": "system", "content": case.system})
    n_calls = 0
    for turn in case.turns:
        content = show(turn) if turn.pictures else turn.content
        message: dict[str, object] = {"role": turn.role, "content": content}
        if turn.reasoning:
            message["reasoning_content"] = turn.reasoning
        if turn.calls:
            calls = []
            for name, arguments in turn.calls:
                n_calls += 1
                function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
                calls.append({"id": f"call_{n_calls}", "type": "function", "function": function})
            message["tool_calls"], message["content"] = calls, None
            waiting = [each["id"] for each in calls]
        if turn.role == "tool":
            message["tool_call_id"] = waiting.pop(0)
        listed.append(message)
    return listed
