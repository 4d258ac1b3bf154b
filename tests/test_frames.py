"""Frames: what is written is read back, and nothing else is accepted."""

import io
import json
from typing import Any

import pytest

from lmlite import frames
from lmlite.messages import (
    CallDelta,
    Cancel,
    Chat,
    ChatMessage,
    ChatOptions,
    Complete,
    Delta,
    Embed,
    Embedded,
    Event,
    Failed,
    Finished,
    Load,
    Loading,
    Ready,
    Request,
    SamplingParams,
    Scored,
    Started,
    TokenLogprob,
    ToolCall,
)

REQUESTS = [
    Load("/models/a.gguf", n_ctx=512, chat_template="{{ x }}"),
    Chat(7, (ChatMessage("user", "héllo\n\x00"), ChatMessage("assistant", "", "bob")),
         SamplingParams(logit_bias=((5, -100.0),), stop=("END",), seed=3), n=2, trace=True),
    Chat(7, (ChatMessage("assistant", "", None, "Hm.", (ToolCall("c", "f", "{}"),)),
             ChatMessage("tool", "7", tool_call_id="c")), SamplingParams(),
         options=ChatOptions(({"type": "function"},), "required", ("f",), False, thinks=False)),
    Complete(8, ("text", (1, 2, 3), ()), SamplingParams(max_tokens=0, n_logprobs=5), echo=True),
    Complete(8, ("a",), SamplingParams(), suffix="b", files=(("c", "d"),), truncates=True),
    Embed(9, ("a",), query="b"),
    Cancel(9),
]  # fmt: skip
EVENTS = [
    Loading(0.5),
    Ready(512, 1352, 192, 4, 2, 0, True),
    Started(1, 0, 10, 9),
    Delta(1, 0, "日本", (TokenLogprob(b"\xe6\x97", -0.25, ((b"a", -1.5),)),
                         TokenLogprob(b"", None, ()))),
    Delta(1, 0, "", (), "Hm.", (CallDelta(0, '{"a"', "call_1", "f"), CallDelta(0, ": 1}"))),
    Finished(1, 0, "stop", 3, "stop_string", 0, "END"),
    Finished(1, 0, "tool_calls", 9, "end_token", 4),
    Embedded(2, 1, 4, b"\x00\x01\xff"),
    Scored(2, 1, 4, -0.5),
    Failed(3, "BadRequest", "no", "prompt"),
    Failed(3, "PromptTooLong", "Shorten it.", "prompt", (300, 256)),
]  # fmt: skip


@pytest.mark.parametrize("message", REQUESTS, ids=lambda m: type(m).__name__)
def test_a_request_is_read_as_it_was_written(message: Any) -> None:
    assert frames.read(io.BytesIO(frames.encode(message)), Request) == message


@pytest.mark.parametrize("message", EVENTS, ids=lambda m: type(m).__name__)
def test_an_event_is_read_as_it_was_written(message: Any) -> None:
    assert frames.read(io.BytesIO(frames.encode(message)), Event) == message


def test_a_clients_json_crosses_as_it_is() -> None:
    schema = {"b": [1e16, -0.0, 0.1, 2**100, None, True, "\ud800 é"], "a": {"": [[]]}}
    options = ChatOptions(({"type": "function"},), json_schema=schema, tool_schemas=(schema,))
    chat = Chat(7, (), SamplingParams(), options=options)
    read = frames.decode(frames.encode(chat)[4:], Request)
    assert json.dumps(read.options.json_schema) == json.dumps(schema)
    assert read == chat


def test_a_frame_is_a_length_and_json() -> None:
    assert frames.encode(Cancel(9)) == b'\x00\x00\x00\x18{"type":"Cancel","id":9}'


def test_fields_with_their_default_value_are_not_written() -> None:
    assert frames.encode(Delta(1, 0, "Hi"))[4:] == b'{"type":"Delta","id":1,"index":0,"text":"Hi"}'


def test_frames_follow_each_other_and_end_cleanly() -> None:
    stream = io.BytesIO(b"".join(map(frames.encode, EVENTS)))
    assert [frames.read(stream, Event) for _ in EVENTS] == EVENTS
    assert frames.read(stream, Event) is None


@pytest.mark.parametrize("n_bytes", range(1, len(frames.encode(Cancel(9)))))
def test_a_frame_cut_short_anywhere_is_refused(n_bytes: int) -> None:
    with pytest.raises(frames.FrameError):
        frames.read(io.BytesIO(frames.encode(Cancel(9))[:n_bytes]), Request)


def test_a_length_over_the_cap_is_refused_before_anything_is_read() -> None:
    class Exploding(io.BytesIO):
        def read(self, n: int | None = -1, /) -> bytes:
            assert n == 4, "no more than the length may be asked for"
            return super().read(n)

    with pytest.raises(frames.FrameError, match="too large"):
        frames.read(Exploding(b"\xff\xff\xff\xff"), Event)


def test_a_message_over_the_cap_is_not_written() -> None:
    with pytest.raises(frames.FrameError, match="too large for a frame"):
        frames.encode(Failed(1, "BadRequest", "x" * frames.MAX_FRAME_BYTES))


def test_a_whole_number_is_accepted_where_a_float_is_expected() -> None:
    read = frames.decode(b'{"type":"Loading","fraction":1}', Event)
    assert (read, type(read.fraction)) == (Loading(1.0), float)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"nonsense",
        b"[]",
        b"null",
        b'{"type":"Cancel"}',
        b'{"type":"Cancel","id":"9"}',
        b'{"type":"Cancel","id":true}',
        b'{"type":"Cancel","id":9.0}',
        b'{"type":"Cancel","id":9,"more":1}',
        b'{"type":"SamplingParams"}',
        b'{"type":"Loading","fraction":0.5}',
        b'{"type":"os"}',
        b'{"id":9}',
        b'{"type":["Cancel"],"id":9}',
        b'{"type":"Cancel","id":9}{}',
        b' {"type":"Cancel","id":9} ',
        '{"type":"Cancel","id":9}'.encode("utf-16"),
        b"[" * 100_000,
        json.dumps({"type": "Finished", "id": 1, "index": 0, "reason": "tired",
                    "n_completion": 1, "cause": "end_token"}).encode(),
        json.dumps({"type": "Embedded", "id": 1, "index": 0, "n_prompt": 1,
                    "vector": "not base64!"}).encode(),
        json.dumps({"type": "Complete", "id": 1, "prompts": [5], "params": {}}).encode(),
        json.dumps({"type": "Complete", "id": 1, "prompts": "a", "params": {}}).encode(),
        json.dumps({"type": "Complete", "id": 1, "prompts": ["a"], "params": 5}).encode(),
        json.dumps({"type": "Complete", "id": 1, "prompts": ["a"], "params": {},
                    "json_schema": [{}]}).encode(),
        json.dumps({"type": "Complete", "id": 1, "prompts": [],
                    "params": {"logit_bias": [[5, -1.0, 2]]}}).encode(),
    ],
)  # fmt: skip
def test_a_payload_of_another_shape_is_refused(payload: bytes) -> None:
    with pytest.raises(frames.FrameError, match="malformed"):
        frames.decode(payload, Request | Finished | Embedded)
