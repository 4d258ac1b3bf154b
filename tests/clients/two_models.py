"""OpenAI's clients with two models behind one port: each is loaded when it is asked for."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import NotFoundError, OpenAI

from tests import REPOSITORY
from tests.clients import javascript
from tests.support.gguf_writer import Shape, tiny_llama
from tests.support.server_process import RunningServer

ASK: Any = [{"role": "user", "content": "Say: red"}]


@contextmanager
def both() -> Iterator[RunningServer]:
    """A server of the embedded model, and of one that makes noise."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(REPOSITORY / "lmlite" / "models" / "tiny.gguf", folder)
        tiny_llama(Path(folder) / "noise.gguf")
        with RunningServer("--models", folder) as server:
            yield server


def in_python() -> str:
    """Chats, embeddings and responses in turn; and a model that is not there."""
    with both() as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="lm-studio")
        assert states(client) == {"noise": "not-loaded", "tiny": "not-loaded"}
        chat = client.chat.completions.create(model="tiny", messages=ASK, temperature=0)
        assert (chat.model, chat.choices[0].message.content) == ("tiny", "red")
        assert states(client) == {"noise": "not-loaded", "tiny": "loaded"}
        vectors = client.embeddings.create(model="noise", input="Hi")
        assert (vectors.model, len(vectors.data[0].embedding)) == ("noise", Shape().n_embd)
        assert states(client) == {"noise": "loaded", "tiny": "loaded"}
        response = client.responses.create(model="tiny", input="Say: red", temperature=0)
        assert (response.model, response.output_text) == ("tiny", "red")
        try:
            client.chat.completions.create(model="gpt-4o-mini", messages=ASK)
            raise AssertionError("an unknown model was accepted")
        except NotFoundError as err:
            assert err.code == "model_not_found"
            assert "noise, tiny" in err.message
    return "each by its name"


def states(client: OpenAI) -> dict[str, str]:
    """Which models are listed, and whether they are loaded."""
    return {model.id: str((model.model_extra or {})["state"]) for model in client.models.list()}


def in_javascript() -> str:
    """Streams of both in turn."""
    with both() as server:
        found = javascript.run("two_models.mjs", server)
    first, noise, again = found["said"]
    assert first == again == "red" != noise
    assert (found["models"], found["status"]) == (["noise", "tiny"], 404)
    assert found["n_embd"] == Shape().n_embd
    return "each by its name"
