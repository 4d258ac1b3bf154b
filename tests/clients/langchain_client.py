"""LangChain: chats, an agent with a Python function, a form and embeddings, whole and streamed."""

from typing import Any

from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

from tests.clients.asked import ANNA, INTRODUCE, OSLO, RESULT, TOLD, TWO_CITIES, Person
from tests.support.server_process import RunningServer


def examples(server: RunningServer) -> str:
    """All of it; an answer, to be shown."""
    address: dict[str, Any] = {"base_url": f"{server.url}/v1", "api_key": "lm-studio"}
    for is_responses in (False, True):
        model = ChatOpenAI(
            model=server.model, temperature=0, use_responses_api=is_responses, **address
        )
        assert answer(model) == TOLD
    embeddings = OpenAIEmbeddings(
        model=server.model,
        check_embedding_ctx_length=False,  # it would ask the network for OpenAI's tokens
        **address,
    )
    first, second = embeddings.embed_documents(["one two three", "red"])
    assert len(first) == len(second) > 0
    assert embeddings.embed_query("red") == second
    return TOLD


def answer(model: ChatOpenAI) -> str:
    """What an agent says in the end."""
    whole = model.invoke(INTRODUCE)
    assert whole.text == "".join(chunk.text for chunk in model.stream(INTRODUCE)) != ""
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] > 0
    asked: list[str] = []

    @tool
    def get_weather(city: str) -> str:
        """Get the weather in a city."""
        asked.append(city)
        return RESULT

    agent: Any = create_agent(model, [get_weather])
    told = agent.invoke({"messages": [("user", OSLO)]})["messages"][-1].text
    assert asked == ["Oslo"]
    steps = agent.stream({"messages": [("user", OSLO)]}, stream_mode="messages")
    pieces = [piece for piece, _ in steps if piece.type == "AIMessageChunk"]
    assert "".join(piece.text for piece in pieces) == told
    assert asked == ["Oslo"] * 2
    agent.invoke({"messages": [("user", TWO_CITIES)]})
    assert sorted(asked[2:]) == ["Oslo", "Rome"]
    form = model.with_structured_output(Person, method="json_schema")
    assert form.invoke(ANNA) == Person(name="Anna", age=12)
    return str(told)
