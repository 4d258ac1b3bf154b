"""One chat template in llama.cpp's Jinja: the bridge's requests in, its replies out.

A template is a program that comes with a model file, and llama.cpp runs it without bounds. So its
memory and time are bounded here, for the calling thread alone: what it allocates beyond them fails
with an error that the library reports. A call that does not even allocate is ended with its
process, and the server sees a worker that died.
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

MAX_SECONDS = 10.0  # the slowest known takes a hundredth, for a context full of messages
MAX_BYTES = 1 << 30  # beside what its thread has allocated already
TIME_TO_REPORT = 0.5  # of MAX_SECONDS: to free what was allocated, before the process ends
SCHEMAS = ("schemas", "json_schema")  # fields of which llama.cpp makes grammars


class TemplateError(Exception):
    """A chat template that cannot be read."""


class Renderer:
    """A template that was read. Not thread-safe."""

    def __init__(self, model: Model, source: str | None = None) -> None:
        """The model's own template where there is no source. Raises TemplateError."""
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
        """The prompt and what belongs to it (see lml_chat_render in native/bridge.h).

        `fields` have the schemas whose numbers are held to their bounds. Raises BadRequest with
        the template's own words, or for a schema of which llama.cpp can make no grammar.
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
    """For one call of the library that runs a template. Not within another."""
    lib.lml_bound_thread(MAX_BYTES, MAX_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS * (1 + TIME_TO_REPORT))  # ends the process
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        lib.lml_bound_thread(0, 0)


def _refusal(fault: str, request: Json) -> BadRequest:
    """The client's error, for a fault that llama.cpp or the template has found."""
    _, is_of_schema, words = fault.partition("JSON schema error ")
    if is_of_schema:
        param = "tools" if "tools" in request else "response_format"
        return BadRequest(f"no grammar can be made of {param}: {words}", param=param)
    words = _own_words(fault)
    return BadRequest(f"the chat template refuses the messages: {words}", param="messages")


def _own_words(error: str) -> str:
    """What the template itself said, without llama.cpp's account of where it said it.

    >>> _own_words("While executing ... Error: Jinja Exception: roles must alternate")
    'roles must alternate'
    """
    for introduction in ("Jinja Exception: ", "Error: "):
        if introduction in error:
            error = error.rpartition(introduction)[2]
            break
    return " ".join(error.split())
