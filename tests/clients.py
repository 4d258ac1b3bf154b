"""LM Studio's own examples with the real OpenAI clients: Python, JavaScript, curl. `make clients`

Nothing of the examples is changed but the base URL and the model. Anthropic's client asks the same
server through its own API. The Python packages are in the environment that `make clients` made; the
JavaScript one is fetched beside it by npm.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anthropic
from openai import BadRequestError, NotFoundError, OpenAI
from openai.types.responses import FunctionToolParam

from tests.server_process import REPOSITORY, RunningServer

NODE_FOLDER = REPOSITORY / ".venv" / "clients" / "node"
NODE_PACKAGE = "openai@7.57.0"

JAVASCRIPT = """
import OpenAI from 'openai';
const client = new OpenAI({ baseURL: process.argv[2] + '/v1', apiKey: 'lm-studio' });
const model = process.argv[3];
const messages = [
  { role: 'system', content: 'Always answer in rhymes.' },
  { role: 'user', content: 'Introduce yourself.' },
];
const whole = await client.chat.completions.create({ model, messages, temperature: 0 });
const stream = await client.chat.completions.create({
  model, messages, temperature: 0, stream: true, stream_options: { include_usage: true },
});
let text = '', usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? '';
  usage = chunk.usage ?? usage;
}
const ask = { model, input: 'Introduce yourself.', temperature: 0 };
const response = await client.responses.create(ask);
let said = '';
for await (const event of await client.responses.create({ ...ask, stream: true })) {
  said += event.type === 'response.output_text.delta' ? event.delta : '';
}
const embedding = await client.embeddings.create({ model, input: ['Once upon a time.'] });
const turn = '<|im_start|>user\\nCount from 1 to 9.<|im_end|>\\n<|im_start|>assistant\\n';
const begun = { model, prompt: turn, max_tokens: 3, temperature: 0 };
const legacy = await client.completions.create(begun);
const models = await client.models.list();
let status = 0;
try {
  await client.chat.completions.create({ model: 'no-such-model', messages });
} catch (error) {
  status = error.status;
}
console.log(JSON.stringify({
  content: whole.choices[0].message.content, text, usage: usage.total_tokens,
  whole_usage: whole.usage.total_tokens, n_embd: embedding.data[0].embedding.length,
  legacy: legacy.choices[0].finish_reason, models: models.data.map((m) => m.id), status,
  response: response.output_text, said,
}));
"""


def python_examples(server: RunningServer) -> str:
    """The examples of LM Studio's page; the answer."""
    client = OpenAI(base_url=f"{server.url}/v1", api_key="lm-studio")
    completion = client.chat.completions.create(
        model=server.model,
        messages=[
            {"role": "system", "content": "Always answer in rhymes."},
            {"role": "user", "content": "Introduce yourself."},
        ],
        temperature=0.7,
    )
    print(completion.choices[0].message)
    assert completion.choices[0].message.content
    assert completion.usage is not None

    def get_embedding(text: str, model: str) -> list[float]:
        text = text.replace("\n", " ")
        vector: list[float] = client.embeddings.create(input=[text], model=model).data[0].embedding
        return vector

    vector = get_embedding("Once upon a time, there was a cat.", server.model)
    assert abs(sum(x * x for x in vector) - 1) < 1e-4
    assert [model.id for model in client.models.list()] == [server.model]
    assert client.models.retrieve(server.model).id == server.model
    text = client.completions.create(model=server.model, prompt="Once", max_tokens=3)
    assert text.usage is not None
    try:
        client.completions.create(model="no-such-model", prompt="Once")
        raise AssertionError("an unknown model was accepted")
    except NotFoundError as err:
        assert err.code == "model_not_found"
        assert err.request_id
    return streamed(client, server.model)


def streamed(client: OpenAI, model: str) -> str:
    """A streamed answer, put together, that equals the whole one."""
    ask = [{"role": "user", "content": "Introduce yourself."}]
    whole = client.chat.completions.create(model=model, messages=ask, temperature=0)
    chunks = client.chat.completions.create(
        model=model,
        messages=ask,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage = "", None
    for chunk in chunks:
        usage = chunk.usage or usage
        text += (chunk.choices[0].delta.content or "") if chunk.choices else ""
    assert text == whole.choices[0].message.content
    assert usage is not None and whole.usage is not None
    assert usage.total_tokens == whole.usage.total_tokens
    return text


def responses(client: OpenAI, model: str) -> str:
    """The Responses API: whole, streamed, with a tool, and one after another; the last answer."""
    first = client.responses.create(model=model, input="My name is Alice.", temperature=0)
    with client.responses.stream(model=model, input="My name is Alice.", temperature=0) as events:
        said = "".join(
            event.delta for event in events if event.type == "response.output_text.delta"
        )
        assert events.get_final_response().output_text == said == first.output_text
    tool: FunctionToolParam = {
        "type": "function",
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        "strict": True,
    }
    asked = client.responses.create(
        model=model, input="What is the weather in Paris?", tools=[tool], temperature=0
    )
    (call,) = asked.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("get_weather", {"city": "Paris"})
    told = client.responses.create(
        model=model,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sun"}],
        tools=[tool],
        previous_response_id=asked.id,
        temperature=0,
    )
    assert "sun" in told.output_text
    last = client.responses.create(
        model=model, input="What is my name?", previous_response_id=first.id, temperature=0
    )
    assert last.usage is not None
    try:
        client.responses.create(model=model, input="Hi", previous_response_id="resp_0")
        raise AssertionError("an unknown response was accepted")
    except BadRequestError as err:
        assert err.code == "previous_response_not_found"
    return str(last.output_text)


def curl_example(server: RunningServer) -> str:
    """The curl lines of LM Studio's page."""
    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": "Say this is a test!"}],
        "temperature": 0.7,
    }
    command = ["curl", "--silent", "--fail", f"{server.url}/v1/chat/completions",
               "-H", "Content-Type: application/json", "-d", json.dumps(body)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=True)
    models = subprocess.run(
        ["curl", "--silent", "--fail", f"{server.url}/v1/models"], capture_output=True, check=True
    )
    assert json.loads(models.stdout)["data"][0]["id"] == server.model
    return str(json.loads(done.stdout)["choices"][0]["message"]["content"])


def javascript_examples(server: RunningServer) -> str:
    """The same with OpenAI's JavaScript client."""
    script = NODE_FOLDER / "example.mjs"
    if not (NODE_FOLDER / "node_modules" / "openai").is_dir():
        NODE_FOLDER.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", NODE_PACKAGE]
        subprocess.run(install, cwd=NODE_FOLDER, check=True)
    script.write_text(JAVASCRIPT)
    done = subprocess.run(
        ["node", str(script), server.url, server.model], capture_output=True, check=True
    )
    result = json.loads(done.stdout)
    assert result["content"] == result["text"]
    assert result["response"] == result["said"] != ""
    assert result["usage"] == result["whole_usage"]
    assert (result["legacy"], result["models"], result["status"]) == ("length", [server.model], 404)
    assert result["n_embd"] > 0
    return str(result["content"])


def anthropic_examples(server: RunningServer) -> str:
    """Plain, streamed, with a tool and its result, and counted; the answer."""
    client = anthropic.Anthropic(base_url=server.url, api_key="lm-studio")
    ask = {"model": server.model, "max_tokens": 100, "extra_body": {"temperature": 0}}
    messages = [{"role": "user", "content": "Introduce yourself."}]
    whole = client.messages.create(messages=messages, **ask)
    with client.messages.stream(messages=messages, **ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    counted = client.messages.count_tokens(model=server.model, messages=messages)
    assert counted.input_tokens == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    use_a_tool(client, ask)
    for wrong, error in (({"model": "no-such-model"}, anthropic.NotFoundError),
                         ({"temperature": 3}, anthropic.BadRequestError)):  # fmt: skip
        try:
            client.messages.create(messages=messages, **ask | {"extra_body": wrong})
            raise AssertionError(f"{wrong} was accepted")
        except error as err:
            assert err.body["type"] == "error"
    return str(text)


def use_a_tool(client: anthropic.Anthropic, ask: dict[str, Any]) -> None:
    """A call on a stream, and its result in the next turn."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    tools = [{"name": "get_weather", "description": "", "input_schema": schema}]
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    with client.messages.stream(messages=messages, tools=tools, **ask) as stream:
        called = stream.get_final_message()
    (call,) = called.content
    assert (called.stop_reason, call.name, call.input) == ("tool_use", "get_weather",
                                                           {"city": "Oslo"})  # fmt: skip
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "rain, 4 degrees"}
    messages += [called.to_param(), {"role": "user", "content": [result]}]
    answer = client.messages.create(messages=messages, tools=tools, **ask)
    assert answer.content[0].text == "The result is rain, 4 degrees."


def main(arguments: list[str]) -> None:
    """Runs every client against a server of its own; a model file may be named."""
    with RunningServer(*arguments) as server:
        client = OpenAI(base_url=f"{server.url}/v1", api_key="lm-studio")
        print(f"Python:     {python_examples(server)}")
        print(f"responses:  {responses(client, server.model)}")
        print(f"Anthropic:  {anthropic_examples(server)}")
        if shutil.which("curl"):
            print(f"curl:       {curl_example(server)}")
        else:
            print("curl:       not installed, left out")
        if shutil.which("npm") and shutil.which("node"):
            print(f"JavaScript: {javascript_examples(server)}")
        else:
            print("JavaScript: Node.js is not installed, left out")
    print("all clients got their answers")


if __name__ == "__main__":
    main([str(Path(argument).resolve()) for argument in sys.argv[1:]])
