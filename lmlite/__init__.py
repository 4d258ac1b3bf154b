"""lmlite serves GGUF models behind the OpenAI API, on Python's standard library and llama.cpp."""

TYPE_CHECKING = False  # `typing` is not imported, since `lmlite serve` imports this twice
if TYPE_CHECKING:
    from lmlite.child import CannotStart as CannotStart
    from lmlite.child import start as start

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """`start` and `CannotStart`, imported when they are first used."""
    if name not in ("start", "CannotStart"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmlite import child

    return getattr(child, name)
