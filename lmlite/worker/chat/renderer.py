"""Renders one chat template with llama.cpp's Jinja: passes requests to the bridge.

A template is a program that comes with a model file, and llama.cpp runs it without limits. So its
memory and time are limited here, for the calling thread only. Beyond a limit, the next allocation
fails with an error that the library reports. If a call runs too long without allocating, a timer
ends the process, and the server sees that the worker has died.
"""

import ctypes
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lmlite.errors import BadRequest
from lmlite.worker.grammars.json_grammar import mended, with_marks
from lmlite.worker.llama.capi import take_fault, take_text
from lmlite.worker.llama.model import Model

Json = dict[str, Any]

MAX_SECONDS = 10.0  # the slowest known template takes 0.1 s for a context full of messages
MAX_BYTES = 1 << 30  # in addition to what the thread has allocated before the call
TIME_TO_REPORT = 0.5  # fraction of MAX_SECONDS: extra time to free memory and report the error
SCHEMAS = ("schemas", "json_schema")  # fields from which llama.cpp makes grammars


class TemplateError(Exception):
    """A chat template that cannot be read."""


class Renderer:
    """A template that llama.cpp has parsed. Not thread-safe."""

    def __init__(self, model: Model, source: str | None = None) -> None:
        """Parses `source`, or the model's own template without it. Raises TemplateError."""
        self._lib = model.lib
        error = ctypes.c_void_p()
        data = source.encode() if source else None
        with _bounded(self._lib):
            self._pointer = self._lib.lml_chat_init(model.pointer, data, ctypes.byref(error))
        if not self._pointer:
            fault = take_fault(self._lib, error)
            raise TemplateError(f"the chat template cannot be read: {fault}")
        self.source: str = self._lib.lml_chat_source(self._pointer).decode("utf-8", "replace")

    def close(self) -> None:
        """Frees the template."""
        self._lib.lml_chat_free(self._pointer)

    def reply(self, request: Json, fields: tuple[str, ...] = SCHEMAS) -> Json:
        """The prompt, the form of its answer and more (see lml_chat_render in native/bridge.h).

        The grammar enforces bounds on numbers for the schemas in `fields`. Raises BadRequest with
        the template's own words, or if llama.cpp cannot make a grammar from a schema.
        """
        asked, rules = with_marks(request, fields)
        data = json.dumps(asked).encode()
        with _bounded(self._lib):
            pointer = self._lib.lml_chat_render(self._pointer, data)
        reply: Json = json.loads(take_text(self._lib, pointer))
        if "error" in reply:
            raise _refusal(reply["error"], request)
        if request.keys() & set(SCHEMAS):
            reply["grammar"] = mended(reply["grammar"], rules)
        return reply


@contextmanager
def _bounded(lib: Any) -> Iterator[None]:
    """Limits the memory and time of the one library call in its block. Must not be nested."""
    lib.lml_bound_thread(MAX_BYTES, MAX_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS * (1 + TIME_TO_REPORT))  # ends the process
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        lib.lml_bound_thread(0, 0)


def _refusal(fault: str, request: Json) -> BadRequest:
    """The error for the client, from an error message of llama.cpp or of the template."""
    _, is_of_schema, words = fault.partition("JSON schema error ")
    if is_of_schema:
        param = "tools" if "tools" in request else "response_format"
        return BadRequest(f"no grammar can be made of {param}: {words}", param=param)
    words = _own_words(fault)
    return BadRequest(f"the chat template refuses the messages: {words}", param="messages")


def _own_words(error: str) -> str:
    """The template's own message, without llama.cpp's text about the place of the error.

    >>> _own_words("While executing ... Error: Jinja Exception: roles must alternate")
    'roles must alternate'
    """
    for introduction in ("Jinja Exception: ", "Error: "):
        if introduction in error:
            error = error.rpartition(introduction)[2]
            break
    return " ".join(error.split())
