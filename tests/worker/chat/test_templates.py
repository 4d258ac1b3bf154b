"""Every chat template in llama.cpp's tree becomes the text that Python's own Jinja makes of it."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pytest

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage, ChatOptions, ToolCall
from lmlite.worker.chat.bridge_request import request_of
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.model import Model
from tests.support.jinja_reference import Json, Refused, environment, message_json, variables
from tests.support.template_tree import NAMES, source_of


def test_all_templates_are_tested(llama_cpp: Path) -> None:
    assert llama_cpp.is_dir()
    assert len(NAMES) == 70


# ---- the same text as the reference ----------------------------------------------------------


class Conversation(NamedTuple):
    messages: list[ChatMessage]
    tools: list[Json] | None = None
    thinks: bool = True


def tool(name: str, description: str, **properties: Any) -> Json:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function",
            "function": {"name": name, "description": description,
                         "parameters": parameters}}  # fmt: skip


def result(call: ToolCall, text: str) -> ChatMessage:
    return ChatMessage("tool", text, name=call.name, tool_call_id=call.id)


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def assistant(text: str, reasoning: str | None = None, *calls: ToolCall) -> ChatMessage:
    return ChatMessage("assistant", text, reasoning=reasoning, tool_calls=calls)


KIND, ASK = ChatMessage("system", "Be kind."), user("The weather in Zürich?")
TOOLS = [
    tool(
        "get_weather",
        'The weather, "now" & later.',
        city={"type": "string", "description": "Zürich, <b>or</b> 東京"},
        unit={"type": "string", "description": "C or F", "enum": ["C", "F"]},
        days={"type": "array", "description": "Which days.", "items": {"type": "integer"}},
    ),
    tool("set_timer", "Set a timer.", minutes={"type": "number", "description": "How long."}),
]
WEATHER = ToolCall(
    "call00001",
    "get_weather",
    '{"city": "Zürich \\"old town\\"", "unit": "C", "days": [1, 2], "exact": true, "limit": 2.5, '
    '"note": null, "more": {"a": "<b>"}}',
)
TIMER = ToolCall("call00002", "set_timer", '{"minutes": 5}')

CONVERSATIONS = {
    "plain": Conversation([user('Hello & <b>you</b>, "friend"! {{ 1 + 1 }} 東京 🌍\n  two lines')]),
    "system": Conversation([KIND, user("Hi there")]),
    "turns": Conversation([KIND, user("Hi"), assistant("Hello."), user(" How are you?\n")]),
    "tools": Conversation([KIND, ASK], TOOLS),
    "call": Conversation([ASK, assistant("", None, WEATHER), result(WEATHER, "rain")], TOOLS),
    "calls": Conversation(
        [ASK, assistant("I look.", None, WEATHER, TIMER), result(WEATHER, "rain"),
         result(TIMER, '{"ok": true}'), assistant("It rains."), user("Thanks")],
        TOOLS,
    ),
    "reasoning": Conversation([user("2+2?"), assistant("4", "Two and two."), user("And 3+3?")]),
    "reasoned call": Conversation(
        [ASK, assistant("", "I look.", WEATHER), result(WEATHER, "rain")], TOOLS
    ),
    "unthinking": Conversation([user("2+2?")], thinks=False),
}  # fmt: skip


def without_tools(seen: Json) -> Json:
    return seen if seen["tools"] else {key: seen[key] for key in seen if key != "tools"}


def system_in_the_first_turn(seen: Json) -> Json:
    first, *others = seen["messages"]
    if first["role"] != "system":
        return seen
    merged = others[0] | {"content": f"{first['content']}\n{others[0]['content']}"}
    return seen | {"messages": [merged, *others[1:]]}


def arguments_as_text(seen: Json) -> Json:
    messages = json.loads(json.dumps(seen["messages"]))
    texts = iter([WEATHER.arguments, TIMER.arguments])
    for message in messages:
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = next(texts)
    return seen | {"messages": messages}


def thoughts_as_thinking(seen: Json) -> Json:
    def told(message: Json) -> Json:
        if "reasoning_content" not in message:
            return message
        message = message | {"thinking": message["reasoning_content"]}
        if "tool_calls" in message:
            del message["content"]
        return message

    return seen | {"messages": [told(message) for message in seen["messages"]]}


def thoughts_as_blocks(seen: Json) -> Json:
    def told(message: Json) -> Json:
        if "reasoning_content" not in message:
            return message
        blocks = [
            {"type": "thinking", "thinking": message["reasoning_content"]},
            {"type": "text", "text": message["content"]},
        ]
        return message | {"content": blocks}

    return seen | {"messages": [told(message) for message in seen["messages"]]}


def trimmed(seen: Json) -> Json:
    return seen | {"messages": [m | {"content": m["content"].strip()} for m in seen["messages"]]}


def without_functions(seen: Json) -> Json:
    return seen | {"functions": ""}


def results_in_the_call(seen: Json) -> Json:
    """Results, and the answer after them, belong to the message that made the calls."""
    messages: list[Json] = []
    for message in seen["messages"]:
        calling = messages[-1] if messages and "tool_calls" in messages[-1] else None
        if message["role"] == "tool" and calling is not None:
            text = message["content"]
            response = json.loads(text) if text.startswith("{") else text
            entry = {"name": message["name"], "response": response}
            calling.setdefault("tool_responses", []).append(entry)
        elif message["role"] == "assistant" and calling is not None:
            calling["content"] = message["content"]
        elif "tool_calls" in message:
            messages.append(message | {"content": ""})
        else:
            messages.append(message)
    return seen | {"messages": messages}


# The same conversation in other words: what the reference has to be told, and why.
TOLD: dict[str, tuple[Callable[[Json], Json], str]] = {
    **dict.fromkeys(
        [
            "CohereForAI-c4ai-command-r-plus-tool_use",
            "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
            "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        ],
        (without_tools, "without tools, llama.cpp leaves `tools` undefined; None is an error here"),
    ),
    "fireworks-ai-llama-3-firefunction-v2": (
        without_functions,
        "an undefined `functions` is an error for jinja2, and nothing for llama.cpp",
    ),
    "google-gemma-2-2b-it": (
        system_in_the_first_turn,
        "the template has no system role; llama.cpp puts it before the first turn",
    ),
    "google-gemma-4-31B-it-interleaved": (
        results_in_the_call,
        "the template knows no role for results; llama.cpp puts them into the calling message",
    ),
    **dict.fromkeys(
        ["LFM2.5-8B-A1B", "openai-gpt-oss-120b"],
        (thoughts_as_thinking, "the template calls reasoning_content `thinking`"),
    ),
    "meetkai-functionary-medium-v3.2": (
        arguments_as_text,
        "the template writes arguments as they are, so llama.cpp leaves them text",
    ),
    "mistralai-Ministral-3-14B-Reasoning-2512": (
        thoughts_as_blocks,
        "the template wants reasoning as a part of the content",
    ),
    "StepFun3.5-Flash": (
        trimmed,
        "llama.cpp trims contents, as spaces make this model think in circles",
    ),
}

# Templates that jinja2 cannot render as transformers set it up: they are held against a more
# lenient set-up, in which lists can change, `tojson` takes generators, and `safe` does nothing.
LENIENT = {
    "Kimi-K2-Instruct": "changes a list, which transformers forbid",
    "Kimi-K2-Thinking": "changes a list, which transformers forbid",
    "llama-cpp-deepseek-r1": "writes a generator as JSON",
    "meetkai-functionary-medium-v3.1": "marks text as safe HTML, so that quotes become &#34;",
}

PRINTED = "llama.cpp prints null as nothing, and a list or an object without its brackets"

# Conversations whose text is not the reference's, and why.
DIFFERENT: dict[str, tuple[set[str], str]] = {
    "CohereForAI-c4ai-command-r-plus-tool_use": (
        {"tools", "call", "calls", "reasoned call"},
        "takes the method `items` of an array's schema for its key: jinja2 then finds no type, "
        "and llama.cpp refuses with the words `Function has no builtins`",
    ),
    **dict.fromkeys(
        ["google-gemma-4-31B-it", "google-gemma-4-31B-it-interleaved", "openbmb-MiniCPM5-1B"],
        ({"call", "calls", "reasoned call"}, PRINTED),
    ),
    "unsloth-mistral-Devstral-Small-2507": (
        {"reasoning"},
        "llama.cpp puts reasoning before the content as a part of it, and the template writes "
        "the first part only: the answer is lost",
    ),
}

# Templates that write the keys of a schema as tags. <enum> is a token in this vocabulary, though
# not in their models', and so no key can write it.
KEYS_AS_TAGS = ["NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Qwen3-Coder"]


@cache
def reference(name: str, lenient: bool) -> jinja2.Template:
    return environment(lenient).from_string(source_of(name))


def expected(name: str, conversation: Conversation, *, plain: bool = False) -> str:
    """The reference's text, or its refusal; `plain` without what is special to a template."""
    messages = [message_json(message) for message in conversation.messages]
    seen = variables(messages, conversation.tools, conversation.thinks)
    if name in TOLD and not plain:
        seen = TOLD[name][0](seen)
    try:
        return str(reference(name, name in LENIENT and not plain).render(seen))
    except Refused as refusal:
        return f"refused: {' '.join(str(refusal).split())}"
    except Exception as error:
        return f"failed: {error}"


def options_of(conversation: Conversation) -> ChatOptions:
    return ChatOptions(tools=tuple(conversation.tools or ()), thinks=conversation.thinks)


def rendered(template: ChatTemplate, conversation: Conversation) -> tuple[str, list[int]]:
    """(the text of lmlite's prompt, its tokens), or (the refusal, [])."""
    request = request_of(conversation.messages, options_of(conversation))
    try:
        prompt, reply = template.prompt(request)
        text = (reply or template._own.reply(request))["prompt"]
    except BadRequest as refusal:
        return refusal.message.replace("the chat template refuses the messages", "refused"), []
    return text, prompt.ids


@pytest.mark.parametrize("name", NAMES)
def test_a_template_writes_what_the_reference_writes(special_model: Model, name: str) -> None:
    template, vocab = ChatTemplate(special_model, source_of(name)), special_model.vocab
    listed, _ = DIFFERENT.get(name, (set(), ""))
    different, needs_telling = set(), False
    for title, conversation in CONVERSATIONS.items():
        text, tokens = rendered(template, conversation)
        wanted = expected(name, conversation)
        if text != wanted and text != expected(name, conversation):  # midnight may have passed
            different.add(title)
            assert title in listed, (text, wanted)
        if name in TOLD or name in LENIENT:
            needs_telling |= wanted != expected(name, conversation, plain=True)
        if tokens and name not in KEYS_AS_TAGS:
            assert tokens == vocab.tokenize(text, add_special=True, parse_special=True), title
    template.close()
    assert different == listed, "remove from DIFFERENT what no longer differs"
    assert needs_telling == (name in TOLD or name in LENIENT), "remove it from TOLD or LENIENT"


def test_the_lists_name_existing_templates(llama_cpp: Path) -> None:
    assert llama_cpp.is_dir()
    assert {*TOLD, *LENIENT, *DIFFERENT, *KEYS_AS_TAGS} <= set(NAMES)
