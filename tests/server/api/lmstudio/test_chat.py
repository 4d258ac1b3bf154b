"""Bodies of POST /api/v1/chat become chats, or errors that name the field."""

import base64
from dataclasses import replace
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import Chat, ChatMessage, Image
from lmlite.server.api.lmstudio.chat import NativeCall, parse_native_chat
from lmlite.server.api.responses.stored import Record, StoredResponses
from lmlite.server.models.defaults import NO_DEFAULTS
from tests.support.image_files import RED, png
from tests.support.listed_models import EFFORTS, SWITCH, listed_model

SEEING = replace(NO_DEFAULTS, takes_images=True)
PICTURE = png(4, 4, RED)
URL = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"
USER = ChatMessage("user", "Hi")


def parse(stored: StoredResponses | None = None, **body: Any) -> NativeCall:
    return parse_native_chat(stored or StoredResponses(), {"input": "Hi", **body}, SEEING)


def chat(stored: StoredResponses | None = None, **body: Any) -> Chat:
    request = parse(stored, **body).request
    assert isinstance(request, Chat)
    return request


def refused(**body: Any) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(**body)
    return caught.value


# ---- input -----------------------------------------------------------------------------------


def test_a_string_is_the_users_message() -> None:
    assert chat(input="Hi").messages == (USER,)


@pytest.mark.parametrize("kind", ["message", "text"])
def test_texts_and_images_in_a_list_are_one_message(kind: str) -> None:
    items = [
        {"type": kind, "content": "What is "},
        {"type": "image", "data_url": URL},
        {"type": kind, "content": "this?"},
    ]
    image = Image(PICTURE, at=8, path="input.[1]")
    assert chat(input=items).messages == (ChatMessage("user", "What is this?", images=(image,)),)


@pytest.mark.parametrize(
    ("value", "param", "message"),
    [
        (None, "input", "input is missing"),
        ([], "input", "input is a string or a list of items"),
        (7, "input", "input is a string or a list of items"),
        (["Hi"], "input.[0]", "an item of input is an object"),
        ([{"content": "Hi"}], "input.[0].type", "input.[0].type is missing"),
        ([{"type": "audio"}], "input.[0].type", "type is message, text or image"),
        ([{"type": "text"}], "input.[0].content", "input.[0].content is missing"),
        ([{"type": "text", "content": 7}], "input.[0].content",
         "input.[0].content is not a string"),
        ([{"type": "image"}], "input.[0].data_url", "input.[0].data_url is missing"),
        ([{"type": "image", "data_url": "data:image/png;base64,AAAA"}], "input.[0]",
         "the image is not a PNG, JPEG, WebP, GIF or BMP, by its first bytes"),
    ],
)  # fmt: skip
def test_an_input_that_is_none_is_refused(value: Any, param: str, message: str) -> None:
    error = refused(input=value)
    assert (error.param, error.message) == (param, message)


def test_an_image_is_refused_by_a_model_that_sees_none() -> None:
    with pytest.raises(BadRequest, match="this model sees no images"):
        parse_native_chat(StoredResponses(), {"input": [{"type": "image", "data_url": URL}]})


# ---- conversations ---------------------------------------------------------------------------


def test_a_conversation_goes_on_after_any_of_its_replies() -> None:
    stored = StoredResponses()
    said = (ChatMessage("system", "Be brief."), USER, ChatMessage("assistant", "Hello"))
    stored.keep("resp_1", Record(said))
    more = ChatMessage("user", "And?")
    assert chat(stored, input="And?", previous_response_id="resp_1").messages == (*said, more)
    other = chat(stored, input="And?", previous_response_id="resp_1", system_prompt="Rhyme.")
    assert other.messages == (ChatMessage("system", "Rhyme."), *said[1:], more)
    none = chat(stored, input="And?", previous_response_id="resp_1", system_prompt="")
    assert none.messages == (*said[1:], more)


def test_an_unknown_reply_cannot_be_continued() -> None:
    error = refused(previous_response_id="resp_9")
    assert (error.param, error.code) == ("previous_response_id", "previous_response_not_found")


def test_a_system_prompt_comes_first() -> None:
    assert chat(system_prompt="Rhyme.").messages == (ChatMessage("system", "Rhyme."), USER)
    assert chat(system_prompt="").messages == (USER,)


def test_a_conversation_is_stored_unless_the_request_says_not_to() -> None:
    stored = StoredResponses()
    assert parse(stored).stored is parse(stored, store=True).stored is stored
    assert parse(stored, store=False).stored is None
    assert refused(store="no").param == "store"


# ---- settings --------------------------------------------------------------------------------


def test_settings_have_the_names_of_lm_studio() -> None:
    call = parse(
        model="m", stream=True, temperature=0.5, top_p=0.25, top_k=7, min_p=0.125,
        repeat_penalty=1.5, max_output_tokens=9,
    )  # fmt: skip
    request = call.request
    assert isinstance(request, Chat)
    params = replace(
        NO_DEFAULTS.params, temperature=0.5, top_p=0.25, top_k=7, min_p=0.125, repeat_penalty=1.5,
        max_tokens=9,
    )  # fmt: skip
    assert (call.stream, request.params, call.ignored) == (True, params, ())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"), ("top_k", 1.5), ("max_output_tokens", True), ("stream", 1),
        ("system_prompt", 7), ("previous_response_id", 7), ("reasoning", "much"),
        ("context_length", 0), ("context_length", "4k"),
    ],
)  # fmt: skip
def test_a_setting_of_a_wrong_kind_is_refused_by_name(field: str, value: Any) -> None:
    assert refused(**{field: value}).param == field


def test_unknown_fields_and_the_context_length_are_ignored_by_name() -> None:
    assert parse(stop=["x"], context_length=99, top_a=1).ignored == (
        "context_length", "stop", "top_a",
    )  # fmt: skip


@pytest.mark.parametrize("integration", ["mcp/playwright", {"type": "plugin", "id": "mcp/x"}])
def test_integrations_are_not_supported(integration: Any) -> None:
    error = refused(integrations=[integration])
    assert (error.param, error.code) == ("integrations", "unsupported_integrations")
    assert parse(integrations=[]).ignored == ()


# ---- what a model can do ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "thinks", "kwargs"),
    [
        (None, True, None),
        ("on", True, None),
        ("off", False, None),
        ("low", True, {"reasoning_effort": "low"}),
        ("high", True, {"reasoning_effort": "high"}),
    ],
)
def test_reasoning_sets_the_variables_of_templates(value: Any, thinks: bool, kwargs: Any) -> None:
    options = chat(reasoning=value).options
    assert (options.thinks, options.template_kwargs) == (thinks, kwargs)


@pytest.mark.parametrize(
    ("template", "accepted"),
    [
        ("", []),
        (SWITCH, ["off", "on"]),
        (EFFORTS, ["low", "medium", "high"]),
        (SWITCH + EFFORTS, ["off", "on", "low", "medium", "high"]),
        ("{{ '<think>' }}", ["on"]),
    ],
)
def test_reasoning_is_refused_unless_the_template_knows_the_value(
    template: str, accepted: list[str]
) -> None:
    model = listed_model("m", template=template)
    for value in ("off", "on", "low", "medium", "high"):
        call = parse(reasoning=value)
        if value in accepted:
            call.check_model(model)
            continue
        with pytest.raises(BadRequest) as caught:
            call.check_model(model)
        can = f"takes {', '.join(accepted)}" if accepted else "does not reason"
        assert str(caught.value) == f"reasoning is {value}, but m {can}"
        assert caught.value.param == "reasoning"
    parse().check_model(model)


def test_a_longer_context_than_the_loaded_one_is_refused() -> None:
    call, model = parse(context_length=513), listed_model("m", n_ctx=512)
    with pytest.raises(BadRequest) as caught:
        call.check_model(model)
    assert caught.value.param == "context_length"
    assert str(caught.value) == (
        "context_length is 513, but m is loaded with 512: unload it, then load it with this "
        "context_length by POST /api/v1/models/load"
    )
    parse(context_length=512).check_model(model)
    call.check_model(listed_model("m", n_ctx=None))  # not known before it is loaded
