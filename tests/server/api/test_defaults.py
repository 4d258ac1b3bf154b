"""Which value holds: request, preset, command line, model settings, model file, llama.cpp."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from lmlite.messages import Chat, ChatMessage, Complete, Json
from lmlite.server.api.anthropic.requests import parse_count, parse_message
from lmlite.server.api.call import Call, with_defaults
from lmlite.server.api.dry_run import DryRun, planned
from lmlite.server.api.llamacpp.tokenizer import parse_tokenize
from lmlite.server.api.openai.requests import parse_chat, parse_completion, parse_embeddings
from lmlite.server.api.responses.requests import ResponseCall, parse_response
from lmlite.server.api.responses.stored import StoredResponses
from lmlite.server.api.sampling import default_params
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults
from lmlite.server.models.served_model import ServedModel
from lmlite.server.models.settings import Settings, with_settings

HI = [{"role": "user", "content": "Hi"}]
CHATS: dict[str, tuple[Callable[[Json, Defaults], Call], Json]] = {
    "chat": (parse_chat, {"messages": HI}),
    "response": (partial(parse_response, StoredResponses()), {"input": "Hi"}),
    "message": (parse_message, {"messages": HI, "max_tokens": 5}),
    "count": (parse_count, {"messages": HI}),
    "tokenize": (parse_tokenize, {"messages": HI}),
}
ORIGINS = ["request", "preset", "command line", "model settings", "model file", "default"]


def call_of(api: str, defaults: Defaults, **body: Any) -> Call:
    parse, least = CHATS[api]
    return with_defaults(parse({**least, **body}, defaults), defaults)


def chat_of(api: str, defaults: Defaults, **body: Any) -> Chat:
    request = call_of(api, defaults, **body).request
    assert isinstance(request, Chat)
    return request


def layered(first: int) -> Defaults:
    """Defaults of a server in which the layers from this one of ORIGINS on set the temperature."""
    file, line, model, preset = (
        {"temperature": value} if first <= layer else {}
        for layer, value in ((4, 0.4), (2, 0.2), (3, 0.3), (1, 0.1))
    )
    params, origins = default_params(file, line, warn=pytest.fail)
    defaults = replace(NO_DEFAULTS, params=params, origins=origins)
    defaults = with_settings(defaults, Settings(sampling=model), "model settings")
    return with_settings(defaults, Settings(sampling=preset), "preset")


def sampling_of(body: Json, defaults: Defaults, served: ServedModel) -> Json:
    """What a dry run tells about each value."""
    call = planned(with_defaults(parse_chat(body, defaults), defaults))
    sampling: Json = DryRun(body, defaults, call, "id", served, 0).whole()["sampling"]
    return sampling


@pytest.fixture
def served() -> ServedModel:
    """A model of which only the name is asked."""
    model = object.__new__(ServedModel)
    object.__setattr__(model, "name", "tiny")
    return model


@pytest.mark.parametrize("api", ["chat", "response", "message"])
@pytest.mark.parametrize(
    ("layer", "temperature"), [(0, 1.5), (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 0.8)]
)
def test_the_first_that_has_a_value_sets_it(api: str, layer: int, temperature: float) -> None:
    body = {"temperature": 1.5} if layer == 0 else {}
    assert chat_of(api, layered(layer), **body).params.temperature == temperature


@pytest.mark.parametrize("layer", range(6))
def test_a_dry_run_tells_where_a_value_comes_from(layer: int, served: ServedModel) -> None:
    body: Json = {"messages": HI} | ({"temperature": 1.5} if layer == 0 else {})
    assert sampling_of(body, layered(layer), served)["temperature"]["origin"] == ORIGINS[layer]


# ---- the end of an answer ------------------------------------------------------------------

SHORT = with_settings(NO_DEFAULTS, Settings(max_tokens=9, stop=("END",)), "model settings")


def test_an_answer_ends_as_the_settings_say_if_the_request_does_not() -> None:
    for api in ("chat", "response"):
        params = chat_of(api, SHORT).params
        assert (params.max_tokens, params.stop) == (9, ("END",))
    assert chat_of("message", SHORT).params.stop == ("END",)
    request = parse_completion({"prompt": "a"}, SHORT).request
    assert isinstance(request, Complete)
    assert (request.params.max_tokens, request.params.stop) == (9, ("END",))


def test_an_answer_ends_as_the_request_says() -> None:
    params = chat_of("chat", SHORT, max_tokens=3, stop="x").params
    assert (params.max_tokens, params.stop) == (3, ("x",))
    params = chat_of("chat", SHORT, max_completion_tokens=-1, stop=[]).params
    assert (params.max_tokens, params.stop) == (None, ())
    assert chat_of("response", SHORT, max_output_tokens=4).params.max_tokens == 4
    assert chat_of("message", SHORT, stop_sequences=["y"]).params.stop == ("y",)


def test_a_dry_run_tells_where_the_end_comes_from(served: ServedModel) -> None:
    sampling = sampling_of({"messages": HI, "max_tokens": 2}, SHORT, served)
    assert sampling["max_tokens"] == {"value": 2, "origin": "request"}
    assert sampling["stop"] == {"value": ("END",), "origin": "model settings"}


def test_a_preset_overrides_and_keeps_what_it_does_not_set() -> None:
    defaults = with_settings(SHORT, Settings(max_tokens=7), "preset")
    assert (defaults.params.max_tokens, defaults.params.stop) == (7, ("END",))
    assert defaults.origins == {"max_tokens": "preset", "stop": "model settings"}


# ---- the system prompt ---------------------------------------------------------------------

KIND = with_settings(NO_DEFAULTS, Settings(system_prompt="Be kind."), "model settings")
SYSTEM = ChatMessage("system", "Be kind.")
USER = ChatMessage("user", "Hi")


@pytest.mark.parametrize("api", CHATS)
def test_a_chat_without_a_system_message_gets_the_default_one(api: str) -> None:
    assert chat_of(api, KIND).messages == (SYSTEM, USER)
    assert chat_of(api, NO_DEFAULTS).messages == (USER,)


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("chat", {"messages": [{"role": "system", "content": "Own."}, *HI]}),
        ("chat", {"messages": [{"role": "developer", "content": "Own."}, *HI]}),
        ("tokenize", {"messages": [{"role": "system", "content": "Own."}, *HI]}),
        ("response", {"instructions": "Own."}),
        ("response", {"input": [{"role": "developer", "content": "Own."}, *HI]}),
        ("message", {"system": "Own."}),
        ("count", {"system": "Own."}),
    ],
)
def test_a_chats_own_system_message_is_the_only_one(api: str, body: Json) -> None:
    assert chat_of(api, KIND, **body).messages == (ChatMessage("system", "Own."), USER)


def test_a_system_message_later_in_the_chat_counts_too() -> None:
    late = [*HI, {"role": "system", "content": "Own."}]
    assert chat_of("chat", KIND, messages=late).messages == (USER, ChatMessage("system", "Own."))


def test_a_stored_conversation_does_not_keep_the_default_system_prompt() -> None:
    call = call_of("response", KIND)
    assert isinstance(call, ResponseCall)
    assert call.conversation == (USER,)


def test_a_preset_replaces_the_system_prompt_or_removes_it() -> None:
    for prompt, messages in [
        ("Be rude.", (ChatMessage("system", "Be rude."), USER)),
        ("", (USER,)),
    ]:
        defaults = with_settings(KIND, Settings(system_prompt=prompt), "preset")
        assert chat_of("chat", defaults).messages == messages


def test_completions_and_embeddings_get_no_system_prompt() -> None:
    for parse, body in ((parse_completion, {"prompt": "a"}), (parse_embeddings, {"input": "a"})):
        call = parse(body, KIND)
        assert with_defaults(call, KIND) is call


# ---- reasoning -----------------------------------------------------------------------------


def thoughts(api: str, defaults: Defaults, **body: Any) -> tuple[bool, Json | None]:
    """Whether a chat's model is to think, and the variables of its template."""
    options = chat_of(api, defaults, **body).options
    return options.thinks, options.template_kwargs


OFF, ON, LOW = (
    with_settings(NO_DEFAULTS, settings, "model settings")
    for settings in (Settings(thinks=False), Settings(thinks=True),
                     Settings(thinks=True, effort="low"))
)  # fmt: skip
EFFORT_LOW = {"reasoning_effort": "low"}
HIGH: dict[str, Json] = {
    "chat": {"reasoning_effort": "high"},
    "response": {"reasoning": {"effort": "high"}},
    "message": {"output_config": {"effort": "high"}},
}


@pytest.mark.parametrize("api", HIGH)
def test_a_request_that_says_nothing_thinks_as_the_settings_say(api: str) -> None:
    assert thoughts(api, OFF) == (False, None)
    assert thoughts(api, ON) == (True, None)
    assert thoughts(api, LOW) == (True, EFFORT_LOW)


@pytest.mark.parametrize("api", HIGH)
@pytest.mark.parametrize("defaults", [OFF, ON, LOW])
def test_an_effort_in_the_request_overrides_the_settings(api: str, defaults: Defaults) -> None:
    assert thoughts(api, defaults, **HIGH[api]) == (True, {"reasoning_effort": "high"})


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("chat", {"chat_template_kwargs": {"enable_thinking": False}}),
        ("chat", {"reasoning_effort": "none"}),
        ("response", {"reasoning": {"effort": "none"}}),
        ("message", {"thinking": {"type": "disabled"}}),
    ],
)
def test_a_request_turns_thinking_off(api: str, body: Json) -> None:
    assert thoughts(api, LOW, **body)[0] is False


@pytest.mark.parametrize(
    ("api", "body"),
    [
        ("chat", {"chat_template_kwargs": {"enable_thinking": True}}),
        ("message", {"thinking": {"type": "enabled", "budget_tokens": 1024}}),
    ],
)
def test_a_request_turns_thinking_on_with_the_effort_of_the_settings(api: str, body: Json) -> None:
    assert thoughts(api, OFF, **body) == (True, None)
    assert thoughts(api, LOW, **body) == (True, EFFORT_LOW)


def test_an_effort_for_the_template_counts_as_one_of_the_request() -> None:
    high = {"reasoning_effort": "high"}
    for defaults in (OFF, LOW):
        assert thoughts("chat", defaults, chat_template_kwargs=high) == (True, high)


def test_a_preset_turns_thinking_off_and_on_again() -> None:
    off = with_settings(LOW, Settings(thinks=False), "preset")
    assert thoughts("chat", off) == (False, None)
    on = with_settings(OFF, Settings(thinks=True, effort="low"), "preset")
    assert thoughts("chat", on) == (True, EFFORT_LOW)
