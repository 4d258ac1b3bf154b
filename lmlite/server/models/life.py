"""The states of a model's worker, with the data that each state has.

Unloaded -> Loading -> Ready -> Loading -> ... -> Failed -> Loading -> ... -> Unloading -> Unloaded
"""

import time
from dataclasses import dataclass, field

from lmlite import messages
from lmlite.errors import ModelFailed, Unavailable


@dataclass(frozen=True)
class Unloaded:
    """There is no worker: it was not started, or was stopped."""


@dataclass(frozen=True)
class Loading:
    """A worker is being started, or will be after a pause."""

    progress: float = 0.0  # loaded part of the model's file, 0 to 1
    reason: str | None = None  # why the last attempt failed; the supervisor will try again


@dataclass(frozen=True)
class Ready:
    """The worker takes requests."""

    loaded: messages.Ready  # the worker's description of the model
    engine: messages.EngineState | None = None  # its latest report
    since_s: float = field(default_factory=time.monotonic, compare=False)  # when it was loaded


@dataclass(frozen=True)
class Failed:
    """The model cannot be loaded; tried again only when one of its files is replaced."""

    reason: str


@dataclass(frozen=True)
class Unloading:
    """The worker is being stopped."""


State = Unloaded | Loading | Ready | Failed | Unloading


def refusal(state: State) -> Unavailable | None:
    """The error for every request in this state; None if requests are accepted."""
    match state:
        case Failed(reason):
            return ModelFailed(f"the model is not available: {reason}")
        case Loading(reason=str(reason)):
            return Unavailable(f"the model is not available now: {reason}")
        case Unloading() | Unloaded():
            return Unavailable("the server is stopping")
    return None
