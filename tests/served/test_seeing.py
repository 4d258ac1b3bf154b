"""Pictures over HTTP: through each API, many at once, in long conversations, and refusals.

`test_tiny_model.py` tests what the embedded model says about pictures.
"""

import base64
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lmlite.server.models.loading import EMBEDDED_MODEL
from tests.support.image_files import BLUE, BLUE_JPEG, RED, bmp_of, gif_of, png, png_of, vp8l, webp
from tests.support.server_process import RunningServer

CHAT = "/v1/chat/completions"
RED_URL, BLUE_URL = (
    f"data:image/png;base64,{base64.b64encode(png(64, 48, colour)).decode()}"
    for colour in (RED, BLUE)
)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--ctx", "4096") as running:
        yield running


def turn(text: str, *urls: str) -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [{"type": "text", "text": text}, *images]}


def ask(server: RunningServer, *turns: Any, **more: Any) -> Any:
    body = {"messages": list(turns), "temperature": 0, "max_tokens": 8, **more}
    answer = server.post(CHAT, **body)
    assert answer.status == 200, answer.body
    return answer.json


def text_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def cached(answer: Any) -> int:
    return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_the_list_of_models_says_that_it_sees(server: RunningServer) -> None:
    (model,) = server.get("/v1/models").json["data"]
    assert model["type"] == "vlm"


def test_usage_counts_a_picture_and_the_second_request_finds_it_in_memory(
    server: RunningServer,
) -> None:
    n_text = ask(server, turn("What is it now?"))["usage"]["prompt_tokens"]
    first = ask(server, turn("What is it now?", RED_URL))
    assert first["usage"]["prompt_tokens"] == n_text + 16
    again = ask(server, turn("What is it now?", RED_URL))
    assert cached(again) == n_text + 15
    assert text_of(again) == text_of(first)


def test_ten_pictures_in_one_conversation(server: RunningServer) -> None:
    turns: list[Any] = []
    for i in range(10):
        turns.append(turn(f"Picture {i}", (RED_URL, BLUE_URL)[i % 2]))
        answer = ask(server, *turns)
        turns.append({"role": "assistant", "content": text_of(answer)})
    assert answer["usage"]["prompt_tokens"] > 160
    assert cached(answer) > answer["usage"]["prompt_tokens"] - 40


def test_a_stream_and_a_whole_answer_say_the_same(server: RunningServer) -> None:
    whole = text_of(ask(server, turn("Look here", RED_URL)))
    body = {"messages": [turn("Look here", RED_URL)], "temperature": 0, "max_tokens": 8}
    chunks = [chunk for chunk in server.stream(CHAT, **body) if chunk != "[DONE]"]
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == whole


RED_FILES = {
    "image/png": png(64, 48, RED),
    "image/webp": webp((b"VP8L", vp8l(64, 48))),
    "image/gif": gif_of(64, 48, bytes([127]) * 64 * 48),
    "image/bmp": bmp_of(64, 48, bytes((0, 0, 255)) * 64 * 48),
    "image/jpeg": webp((b"VP8L", vp8l(64, 48))),  # the bytes decide, not this type
}


@pytest.mark.parametrize("media_type", RED_FILES)
def test_every_api_shows_pictures_of_every_format(server: RunningServer, media_type: str) -> None:
    data = base64.b64encode(RED_FILES[media_type]).decode()
    url = f"data:{media_type};base64,{data}"
    answer = ask(server, turn("What colour is this?", url))
    expected = text_of(answer)
    n_text = ask(server, turn("What colour is this?"))["usage"]["prompt_tokens"]
    assert answer["usage"]["prompt_tokens"] == n_text + 16
    item = {"role": "user", "content": [{"type": "input_text", "text": "What colour is this?"},
                                        {"type": "input_image", "image_url": url}]}  # fmt: skip
    answer = server.post("/v1/responses", input=[item], temperature=0, max_output_tokens=8).json
    assert answer["output"][0]["content"][0]["text"] == expected
    source = {"type": "base64", "media_type": media_type, "data": data}
    content = [{"type": "text", "text": "What colour is this?"},
               {"type": "image", "source": source}]  # fmt: skip
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8, "temperature": 0}
    assert server.post("/v1/messages", **body).json["content"][0]["text"] == expected
    counted = server.post("/v1/messages/count_tokens", messages=body["messages"]).json
    assert counted["input_tokens"] > 16


def test_an_image_in_a_tools_result_is_seen(server: RunningServer) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    shown = [{"type": "image_url", "image_url": RED_URL}, {"type": "text", "text": "taken"}]
    turns = [{"role": "user", "content": "Look"},
             {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "tool_call_id": "a", "content": shown}]  # fmt: skip
    assert ask(server, *turns)["usage"]["prompt_tokens"] > 16


def test_two_hundred_at_once_with_and_without_pictures_end_as_alone(server: RunningServer) -> None:
    asked = [
        turn("Count from 1 to 4."), turn("What is it?", RED_URL), turn("What is it?", BLUE_URL),
        turn("Say hello world"), turn("Which one is red?", RED_URL, BLUE_URL),
    ]  # fmt: skip
    alone = [text_of(ask(server, each)) for each in asked]
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda i: text_of(ask(server, asked[i % 5])), range(200)))
    assert answers == alone * 40


def test_a_broken_image_is_a_400_and_harms_no_other_request(server: RunningServer) -> None:
    pid = server.worker_pid()
    truncated = base64.b64encode(BLUE_JPEG[:200] + b"\xff\xd9").decode()
    answer = server.post(CHAT, messages=[turn("Hi", RED_URL, truncated)])
    assert answer.status == 400
    assert answer.error["param"] == "messages.[0].content.[2]"
    assert server.worker_pid() == pid


def test_a_body_with_images_may_be_larger_than_one_without(server: RunningServer) -> None:
    noise = random.Random(1).randbytes(1200 * 3)
    rows = b"".join(b"\0" + noise[i:] + noise[:i] for i in range(1200))
    url = f"data:image/png;base64,{base64.b64encode(png_of(1200, 1200, rows, level=0)).decode()}"
    assert len(url) > 5_000_000
    assert ask(server, turn("What is it now?", url))["usage"]["prompt_tokens"] > 16


def test_a_server_without_a_projector_says_what_is_missing(tmp_path: Path) -> None:
    alone = tmp_path / "alone.gguf"
    alone.write_bytes(EMBEDDED_MODEL.read_bytes())
    with RunningServer(str(alone)) as blind:
        answer = blind.post(CHAT, messages=[turn("Hi", RED_URL)])
        assert (answer.status, answer.error["code"]) == (400, "unsupported_image_url")
        assert "--mmproj FILE" in answer.error["message"]
        assert blind.get("/v1/models").json["data"][0]["type"] == "llm"
