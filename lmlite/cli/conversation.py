"""A conversation with a model behind a server: its messages, and the request for each answer.

The server may be any that speaks OpenAI's API. Nothing here knows of terminals.
"""

import base64
import json
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lmlite.cli.client import Client, Json
from lmlite.cli.flags import CommandError
from lmlite.server.api.chat.image_formats import ImageFault, media_type
from lmlite.server.logs import printable


class Piece(NamedTuple):
    """What a server sends next: a part of the answer, or why one has to wait."""

    kind: Literal["reasoning", "content", "waiting"]
    text: str


@dataclass
class Answer:
    """What has come of an answer, and when."""

    text: str = ""
    finish_reason: str | None = None  # None: it has not ended, or was stopped here
    usage: Json = field(default_factory=dict)
    asked_s: float = field(default_factory=time.monotonic)
    first_s: float | None = None  # when the first piece came
    last_s: float = 0.0

    def read(self, line: bytes) -> list[Piece]:
        """Takes a line of the stream. Raises CommandError for an error or what is no answer."""
        name, _, value = line.decode(errors="replace").partition(":")
        if not name.strip():  # a comment
            return [Piece("waiting", value.strip())] if value else []
        if name != "data" or value.strip() == "[DONE]":
            return []
        try:
            chunk = json.loads(value)
            if "error" in chunk:
                raise CommandError(printable(chunk["error"]["message"]), 1)
            self.usage = chunk.get("usage") or self.usage
            pieces = [piece for choice in chunk["choices"] for piece in self._pieces(choice)]
        except (ValueError, LookupError, TypeError, AttributeError):
            raise CommandError("the server sends something else than an answer", 1) from None
        if pieces:
            self.last_s = time.monotonic()
            self.first_s = self.first_s or self.last_s
        return pieces

    def _pieces(self, choice: Json) -> Iterator[Piece]:
        self.finish_reason = choice.get("finish_reason") or self.finish_reason
        if thought := choice["delta"].get("reasoning_content"):
            yield Piece("reasoning", thought)
        if text := choice["delta"].get("content"):
            self.text += text
            yield Piece("content", text)

    def statistics(self) -> str:
        """One line; without counts if the answer did not come to its end."""
        if self.first_s is None:
            return "there is no answer yet"
        parts = []
        if self.usage:
            n, n_prompt = self.usage["completion_tokens"], self.usage["prompt_tokens"]
            n_cached = (self.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            parts += [f"{n_prompt} prompt tokens ({n_cached} cached)", f"{n} tokens"]
            if self.last_s > self.first_s:
                parts.append(f"{(n - 1) / (self.last_s - self.first_s):.1f} tokens/s")
        parts.append(f"first after {self.first_s - self.asked_s:.2f} s")
        return ", ".join([*parts, f"stop reason: {printable(self.finish_reason or 'interrupted')}"])


@dataclass
class Conversation:
    """The messages so far, and what goes with the next one."""

    client: Client
    fields: Json  # of each request, such as its model
    system_prompt: str = ""
    answer: Answer = field(default_factory=Answer)  # the last one
    _images: list[Json] = field(default_factory=list)  # content parts of the next message
    _messages: list[Json] = field(default_factory=list)

    def clear(self) -> None:
        """Forgets all messages, but not the system prompt."""
        self._messages, self._images = [], []

    def attach(self, path: str) -> None:
        """Puts an image into the next message. Raises CommandError."""
        try:
            with open(path, "rb") as file:
                data = file.read(16)
                label = media_type(data)
                data += file.read()
        except OSError as err:
            raise CommandError(
                printable(f"the image {path} cannot be read: {err.strerror}"), 1
            ) from None
        except ImageFault as fault:
            raise CommandError(printable(f"the image {path} {fault}"), 1) from None
        url = f"data:{label};base64,{base64.b64encode(data).decode()}"
        self._images.append({"type": "image_url", "image_url": {"url": url}})

    def ask(self, question: str) -> Generator[Piece]:
        """Sends a question; yields its answer as it comes. Raises CommandError.

        Closing the iterator stops the answer. A question without any answer is forgotten.
        """
        parts = [{"type": "text", "text": question}, *self._images]
        asked = {"role": "user", "content": parts if self._images else question}
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        body = {
            **self.fields,
            "messages": [*system, *self._messages, asked],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self._images, self.answer = [], Answer()
        try:
            with closing(self.client.lines("POST", "/v1/chat/completions", body)) as lines:
                for line in lines:
                    yield from self.answer.read(line)
            if self.answer.finish_reason is None:
                raise CommandError("the server ended in the middle of the answer", 1)
        finally:
            if self.answer.text:
                self._messages += [asked, {"role": "assistant", "content": self.answer.text}]
