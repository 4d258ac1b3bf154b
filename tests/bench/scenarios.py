"""The scenarios with their figures, and what lmlite is to reach in each: the whole list."""

from collections.abc import Callable
from typing import NamedTuple

from tests.bench import lifetime, seeing, several_models, small_models, users
from tests.bench.peers import Side
from tests.bench.work import Values, Work


class Figure(NamedTuple):
    """One number of a scenario, and what lmlite is to reach."""

    key: str
    name: str  # with the unit
    more_is_better: bool
    target: float | None  # of the ratio to the other side, or of lmlite's own value
    of_ratio: bool = True


def more(key: str, name: str, target: float | None) -> Figure:
    """A figure whose ratio to the other side should be at least the target."""
    return Figure(key, name, True, target)


def less(key: str, name: str, target: float | None) -> Figure:
    """A figure whose ratio to the other side should be at most the target."""
    return Figure(key, name, False, target)


class Scenario(NamedTuple):
    """One way to use a server."""

    name: str
    run: Callable[[Side, Work], Values]
    figures: tuple[Figure, ...]
    only_once: bool = False  # in the first round alone, because it takes long


SCENARIOS = (
    Scenario("one stream", users.one_stream, (
        more("rate", "generate, tokens/s", 0.98),
        less("first", "first token of 408, s", 1.05),
    )),
    Scenario("8 at once", users.eight_at_once, (
        more("rate", "in all, tokens/s", 1.0),
        less("first", "first token of 108, s", None),
    )),
    Scenario("32 at once", users.thirty_two_at_once, (
        more("rate", "in all, tokens/s", 1.0),
        less("first", "first token of 18, s", 1.0),
    )),
    Scenario("shared system prompt, 4 at once", users.shared_system_prompt, (
        less("wall", "16 questions, s", 0.4),
        less("last", "slowest first token, s", None),
    )),
    Scenario("conversation of 6 turns", users.conversation, (
        less("wall", "whole, s", 1.0),
        less("first", "first token, s", None),
    )),
    Scenario("11-token requests, 8 at once", users.short_requests, (
        more("rate", "requests/s", 1.0),
    )),
    Scenario("1,209 tokens arrive during a stream", users.arriving_prompt, (
        Figure("silence", "longest silence, s", False, 0.35, of_ratio=False),
        less("first", "their first token, s", 1.35),
    )),
    Scenario("another process keeps a core busy", users.busy_machine, (
        more("rate", "generate, tokens/s", 1.3),
    )),
    Scenario("8 clients send large JSON bodies", users.large_bodies, (
        Figure("kept", "generate, of the quiet rate", True, 0.9, of_ratio=False),
        more("rate", "generate, tokens/s", None),
    )),
    Scenario("image of 576 tokens", seeing.same_picture, (
        less("first", "first token, s", None),
        Figure("again", "asked again, of that", False, 0.2, of_ratio=False),
        Figure("other", "asked something else, of that", False, 0.2, of_ratio=False),
    )),
    Scenario("start", lifetime.start, (
        less("first", "process start to first token, s", 1.0),
        less("memory", "memory then, MiB", 1.0),
    )),
    Scenario("tiny model, one answer", lifetime.smallest, (
        Figure("own", "own memory of the process tree, MiB", False, 48.0, of_ratio=False),
        less("memory", "memory with files, MiB", None),
    )),
    Scenario("memory under load", lifetime.memory_under_load, (
        less("memory", "peak of the process tree, MiB", 1.0),
    )),
    Scenario("restart, same 1,000 tokens", lifetime.restart, (
        Figure("kept", "first token, of a cold one", False, 0.15, of_ratio=False),
        less("first", "first token, s", None),
    )),
    Scenario("10,000 requests", lifetime.growth, (
        Figure("growth", "memory left behind, MiB", False, 5.0, of_ratio=False),
    ), only_once=True),
    Scenario("tiny model, one stream", small_models.tiny_stream, (
        more("rate", "generate, tokens/s", 0.8),
    )),
    Scenario("tiny model, 8 streams", small_models.tiny_streams, (
        more("rate", "in all, tokens/s", 0.8),
        Figure("share", "a step besides its decode, ms", False, 0.3 + 8 * 0.08, of_ratio=False),
    )),
    Scenario("tiny model, 11-token requests", small_models.tiny_requests, (
        more("rate", "requests/s", 0.8),
    )),
    Scenario("embeddings, all-MiniLM-L6-v2", small_models.embeddings, (
        more("batch", "64 texts in a request, texts/s", 1.0),
        more("single", "one by one, 4 at once, texts/s", 1.0),
    )),
    Scenario("another model is loaded during a stream", several_models.load_beside_a_stream, (
        Figure("silence", "longest silence, s", False, 0.35, of_ratio=False),
        less("first", "the other's first token, s", None),
    )),
    Scenario("two models, memory for one", several_models.swap, (
        less("small", "first token of SmolLM2-135M, s", None),
        less("large", "first token of a 0.5B, s", None),
    )),
)  # fmt: skip
