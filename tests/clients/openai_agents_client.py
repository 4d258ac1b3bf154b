"""OpenAI's agents: their loop calls a Python function, and goes on with what that returned.

Over chats and over responses, whole and streamed.
"""

import asyncio

from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from tests.clients.asked import ANNA, OSLO, RESULT, TOLD, TWO_CITIES, Person
from tests.support.server_process import RunningServer


def examples(server: RunningServer) -> str:
    """All of it; an answer, to be shown."""
    set_tracing_disabled(True)  # it would go to OpenAI
    return asyncio.run(answers(server))


async def answers(server: RunningServer) -> str:
    """Of both APIs, which are alike."""
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="lm-studio") as client:
        told = [
            await answer(OpenAIChatCompletionsModel(server.model, client)),
            await answer(OpenAIResponsesModel(server.model, client)),
        ]
    assert told == [TOLD, TOLD]
    return told[0]


async def answer(model: Model) -> str:
    """What the agent says in the end."""
    asked: list[str] = []

    @function_tool
    def get_weather(city: str) -> str:
        """Get the weather in a city.

        Args:
            city: Its name.

        """
        asked.append(city)
        return RESULT

    greedy = ModelSettings(temperature=0)
    agent = Agent("assistant", model=model, model_settings=greedy, tools=[get_weather])
    done = await Runner.run(agent, OSLO)
    assert asked == ["Oslo"]
    streamed = Runner.run_streamed(agent, OSLO)
    kinds = [event.type async for event in streamed.stream_events()]
    assert "raw_response_event" in kinds
    assert streamed.final_output == done.final_output
    assert asked == ["Oslo"] * 2
    await Runner.run(agent, TWO_CITIES)
    assert sorted(asked[2:]) == ["Oslo", "Rome"]
    clerk = Agent("clerk", model=model, model_settings=greedy, output_type=Person)
    person = await Runner.run(clerk, ANNA)
    assert person.final_output == Person(name="Anna", age=12)
    return str(done.final_output)
