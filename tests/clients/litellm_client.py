"""LiteLLM: one call for two APIs of this server, whole and streamed, with tools; its errors.

In an environment of its own: `python -m tests.clients.litellm_client URL MODEL`.
"""

import json
import sys
from typing import Any

import litellm

from tests.clients.asked import INTRODUCE, OSLO, WEATHER


def main(url: str, model: str) -> None:
    """Asks each API in the same way; prints an answer."""
    answers = {
        ask("openai", model, api_base=f"{url}/v1", api_key="lm-studio"),
        ask("anthropic", model, api_base=url, api_key="lm-studio"),
    }
    (answer,) = answers
    found = litellm.embedding(model=f"openai/{model}", input=["a", "b"], api_base=f"{url}/v1",
                              api_key="lm-studio", encoding_format="float")  # fmt: skip
    assert len(found.data) == 2
    try:
        litellm.completion(f"openai/{model}", messages=said("word " * 5000), max_retries=0,
                           api_base=f"{url}/v1", api_key="lm-studio")  # fmt: skip
        raise AssertionError("a prompt that does not fit was accepted")
    except litellm.ContextWindowExceededError:
        pass
    print(answer)


def ask(provider: str, model: str, **more: Any) -> str:
    """An answer, whole and streamed; a call of a tool."""
    more |= {"model": f"{provider}/{model}", "temperature": 0, "max_tokens": 100}
    whole = litellm.completion(messages=said(INTRODUCE), **more)
    chunks = litellm.completion(messages=said(INTRODUCE), stream=True, **more)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content != ""
    assert whole.usage.completion_tokens > 0
    tools = [{"type": "function", "function": WEATHER}]
    called = litellm.completion(messages=said(OSLO), tools=tools, **more)
    (call,) = called.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Oslo"}
    return text


def said(content: str) -> list[dict[str, str]]:
    """A conversation of one message."""
    return [{"role": "user", "content": content}]


if __name__ == "__main__":
    main(*sys.argv[1:])
