"""pydantic-ai: an agent calls a Python function, and goes on with what that returned.

Over chats and over responses, whole and streamed.
"""

import asyncio

from pydantic_ai import Agent
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.output import NativeOutput
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.clients.asked import ANNA, OSLO, RESULT, TOLD, TWO_CITIES, Person
from tests.support.server_process import RunningServer


def examples(server: RunningServer) -> str:
    """All of it; an answer, to be shown."""
    provider = OpenAIProvider(base_url=f"{server.url}/v1", api_key="lm-studio")
    chats = OpenAIChatModel(server.model, provider=provider)
    responses = OpenAIResponsesModel(server.model, provider=provider)
    answers = [asyncio.run(answer(model)) for model in (chats, responses)]
    assert answers == [TOLD, TOLD]
    return answers[0]


async def answer(model: Model) -> str:
    """What the agent says in the end."""
    asked: list[str] = []
    agent = Agent(model, model_settings=ModelSettings(temperature=0))

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        asked.append(city)
        return RESULT

    done = await agent.run(OSLO)
    assert asked == ["Oslo"]
    async with agent.run_stream(OSLO) as stream:
        assert await stream.get_output() == done.output
    assert asked == ["Oslo"] * 2
    await agent.run(TWO_CITIES)
    assert sorted(asked[2:]) == ["Oslo", "Rome"]
    without_tools = Agent(model, model_settings=ModelSettings(temperature=0))
    person = await without_tools.run(ANNA, output_type=NativeOutput(Person))
    assert person.output == Person(name="Anna", age=12)
    return done.output
