"""smolagents: its model class, whole and streamed, and with a tool that it calls.

In an environment of its own: `python -m tests.clients.smolagents_client URL MODEL`.
"""

import json
import sys
from typing import Any

from smolagents import OpenAIServerModel, tool

from tests.clients.asked import INTRODUCE, OSLO, RESULT


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city.

    Args:
        city: Its name.

    """
    return RESULT if city == "Oslo" else "none"


def main(url: str, model: str) -> None:
    """Asks, lets it call the tool, and sends what that returned; prints an answer."""
    server = OpenAIServerModel(model, api_base=f"{url}/v1", api_key="lm-studio", temperature=0)
    whole = server.generate(said(INTRODUCE))
    parts = server.generate_stream(said(INTRODUCE))
    assert whole.content == "".join(part.content or "" for part in parts) != ""
    assert whole.token_usage.output_tokens > 0
    called = server.generate(said(OSLO), tools_to_call_from=[get_weather], tool_choice="auto")
    (call,) = called.tool_calls
    arguments = call.function.arguments
    arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert get_weather(**arguments) == RESULT
    print(whole.content)


def said(content: str) -> list[dict[str, Any]]:
    """A conversation of one message, in the form that its agents send."""
    return [{"role": "user", "content": [{"type": "text", "text": content}]}]


if __name__ == "__main__":
    main(*sys.argv[1:])
