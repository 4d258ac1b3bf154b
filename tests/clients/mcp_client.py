"""MCP's Python client: it starts `lmlite mcp`, lists its tools, calls and cancels them."""

import asyncio
import contextlib
import sys

import mcp
from mcp.client.stdio import StdioServerParameters, stdio_client

from tests import REPOSITORY
from tests.support.server_process import RunningServer


def examples(server: RunningServer) -> str:
    """All of them; returns the answer to a chat."""
    answer = asyncio.run(_examples(server.url))
    server.wait_for_log(r"/v1/chat/completions 499 ")  # a call that was cancelled
    return answer


async def _examples(url: str) -> str:
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "lmlite", "mcp", "--url", url], cwd=str(REPOSITORY)
    )
    async with mcp.Client(stdio_client(command)) as client:
        tools = await client.list_tools()
        assert [tool.name for tool in tools.tools] == ["chat", "embed", "list_models"]
        listed = await client.call_tool("list_models", {})
        assert listed.structured_content["models"][0]["id"] == "tiny"
        embedded = await client.call_tool("embed", {"texts": ["a", "b"]})
        assert len(embedded.structured_content["embeddings"]) == 2
        wrong = await client.call_tool("chat", {"prompt": "Hi", "model": "none"})
        assert wrong.is_error
        story = {"prompt": "Tell me a story.", "max_tokens": 1000}
        many = [client.call_tool("chat", story) for _ in range(60)]  # most have to wait
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*many), 0.3)
            raise AssertionError("no call was cancelled")
        answer = await client.call_tool("chat", {"prompt": "Say hello", "temperature": 0})
        return str(answer.content[0].text)
