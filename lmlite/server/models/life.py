"""The life of a model's worker: the states that it passes through, and what is known in each.

Unloaded -> Loading -> Ready -> Loading -> ... -> Failed -> Loading -> ... -> Unloading -> Unloaded
"""

from dataclasses import dataclass

from lmlite import messages
from lmlite.errors import ModelFailed, Unavailable


@dataclass(frozen=True)
class Unloaded:
    """There is no worker: it was not started, or was stopped."""


@dataclass(frozen=True)
class Loading:
    """A worker is being started, or another one will be in a moment."""

    progress: float = 0.0  # of the model's file, 0 to 1
    reason: str | None = None  # why the last attempt came to nothing; it is repeated


@dataclass(frozen=True)
class Ready:
    """The worker takes requests."""

    loaded: messages.Ready  # what the worker says of the model
    engine: messages.EngineState | None = None  # its latest report


@dataclass(frozen=True)
class Failed:
    """There will be no worker until a file of the model is replaced."""

    reason: str


@dataclass(frozen=True)
class Unloading:
    """The worker is being stopped."""


State = Unloaded | Loading | Ready | Failed | Unloading


def refusal(state: State) -> Unavailable | None:
    """The error of every request in this state; None where requests are let in."""
    match state:
        case Failed(reason):
            return ModelFailed(f"the model is not available: {reason}")
        case Loading(reason=str(reason)):
            return Unavailable(f"the model is not available now: {reason}")
        case Unloading() | Unloaded():
            return Unavailable("the server is stopping")
    return None
