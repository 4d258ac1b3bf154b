"""Pictures in prompts: read once, found again, and seen by models that differ in how they see."""

import ctypes
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import BadRequest, PromptTooLong, Unsupported
from lmlite.messages import (
    Chat,
    ChatMessage,
    Delta,
    Finished,
    Image,
    Planned,
    Prompted,
    ReplyEvent,
    SamplingParams,
)
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.capi import LlamaError
from lmlite.worker.llama.model import Model
from lmlite.worker.media import MediaEncoder
from lmlite.worker.preparer import Preparer
from lmlite.worker.sequence import Sequence
from tests.conftest import DEFAULT_MODEL
from tests.support import architectures, projectors
from tests.support.image_files import (
    ALPHA_WEBP,
    BLUE,
    BLUE_JPEG,
    LOSSLESS_WEBP,
    LOSSY_WEBP,
    MOVING_WEBP,
    RED,
    RED_JPEG,
    bmp_of,
    gif_of,
    png,
    png_of,
    sunset,
    vp8l,
    webp,
)
from tests.worker.test_engine import Run, joined, started

RED_PNG, BLUE_PNG = png(64, 48, RED), png(64, 48, BLUE)


class CountingLibrary:
    """libmtmd, with a count of its calls by name."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib
        self.calls: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        function = getattr(self._lib, name)

        def call(*arguments: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            return function(*arguments)

        return call


class Seer:
    """A model with a projector, its engine, and what it said."""

    def __init__(self, model: Model, mmproj: Path, n_ctx: int = 1024) -> None:
        self.encoder = MediaEncoder(model, str(mmproj), n_threads=1, max_bytes=1 << 20)
        self.lib = self.encoder._lib = CountingLibrary(self.encoder._lib)
        self.template = ChatTemplate(model)
        self.run = Run(model, n_ctx=n_ctx, encoder=self.encoder)
        self.said: list[Any] = []
        n_ctx_seq, n_batch = self.run.context.n_ctx_seq, self.run.context.n_batch
        self.preparer = Preparer(
            model, self.template, n_ctx_seq, self.said.extend, self.encoder, n_batch
        )

    def close(self) -> None:
        self.run.close()
        self.template.close()
        self.encoder.close()

    def sequences(self, request_id: int, *messages: ChatMessage, **more: Any) -> list[Sequence]:
        params = SamplingParams(temperature=0, max_tokens=6, n_logprobs=0)
        prepared = self.preparer.prepare(Chat(request_id, messages, params, **more))
        assert all(isinstance(each, Sequence) for each in prepared)
        return prepared  # type: ignore[return-value]

    def ask(self, *messages: ChatMessage) -> list[ReplyEvent]:
        self.run.engine.submit(self.sequences(1, *messages))
        return self.run.until_finished(1)[1]


def message(text: str, *images: bytes, at: int | None = None) -> ChatMessage:
    """A user's, with images where `at` says, else behind the text."""
    places = len(text) if at is None else at
    return ChatMessage(
        "user", text, images=tuple(Image(data, places, "the part") for data in images)
    )


def logprobs(events: list[ReplyEvent]) -> list[float | None]:
    deltas = (event for event in events if isinstance(event, Delta))
    return [entry.logprob for delta in deltas for entry in delta.logprobs]


def first(events: list[ReplyEvent]) -> float | None:
    """That of the first token; 0 for an answer of nothing but its end."""
    return next(iter(logprobs(events)), 0.0)


Writer = Callable[[Path], None]
KINDS: dict[str, tuple[Writer | None, Callable[[Path, int], None]]] = {
    "mlp": (None, projectors.mlp),
    "gemma3": (architectures.gemma3, projectors.gemma3),
    "qwen2vl": (architectures.qwen2vl, projectors.qwen2vl),
}


@pytest.fixture(scope="module", params=KINDS)
def seer(request: pytest.FixtureRequest, lib: Any, tmp_path_factory: Any) -> Iterator[Seer]:
    """Each kind of projector, and a model that it is for."""
    write_model, write_projector = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    path = DEFAULT_MODEL if write_model is None else folder / "model.gguf"
    if write_model is not None:
        write_model(path)
    model = Model(lib, str(path))
    write_projector(folder / "mmproj.gguf", model.n_embd)
    made = Seer(model, folder / "mmproj.gguf")
    yield made
    made.close()
    model.close()


@pytest.fixture
def llava(default_model: Model, tmp_path: Path) -> Iterator[Seer]:
    """The embedded model with LLaVA's kind of projector, and nothing in memory."""
    projectors.mlp(tmp_path / "mmproj.gguf", default_model.n_embd)
    made = Seer(default_model, tmp_path / "mmproj.gguf", n_ctx=256)
    yield made
    made.close()


# ---- what holds for every kind -------------------------------------------------------------


def test_what_a_picture_shows_matters(seer: Seer) -> None:
    red, blue = seer.ask(message("Hello", RED_PNG)), seer.ask(message("Hello", BLUE_PNG))
    assert first(red) != pytest.approx(first(blue), abs=1e-6)


def test_the_same_picture_in_the_same_place_is_found_in_memory(seer: Seer) -> None:
    seer.run.memory.forget_all()
    first = seer.ask(message("Hello model", RED_PNG))
    n_encoded = seer.lib.calls["mtmd_encode_chunk"]
    again = seer.ask(message("Hello model", RED_PNG))
    assert started(first).n_cached == 0
    assert started(again).n_cached == started(again).n_prompt - 1
    assert seer.lib.calls["mtmd_encode_chunk"] == n_encoded
    assert joined(again) == joined(first)
    assert logprobs(again) == pytest.approx(logprobs(first), abs=0.05)


def test_another_picture_there_is_read_anew(seer: Seer) -> None:
    seer.run.memory.forget_all()
    fresh = logprobs(seer.ask(message("Hello model", BLUE_PNG)))
    seer.run.memory.forget_all()
    seer.ask(message("Hello model", RED_PNG))
    found = seer.ask(message("Hello model", BLUE_PNG))
    (sequence,) = seer.sequences(1, message("Hello model", BLUE_PNG))
    assert started(found).n_cached == min(sequence.chunks)
    assert logprobs(found) == pytest.approx(fresh, abs=0.05)


def test_a_conversation_goes_on_behind_its_pictures(seer: Seer) -> None:
    seer.run.memory.forget_all()
    turns = [message("Hello", RED_PNG)]
    seer.ask(*turns)
    turns += [ChatMessage("assistant", "Hello"), message(" and", BLUE_JPEG)]
    second = seer.ask(*turns)
    assert started(second).n_cached >= started(seer.ask(turns[0])).n_prompt - 10
    seer.run.memory.forget_all()
    assert logprobs(seer.ask(*turns)) == pytest.approx(logprobs(second), abs=0.05)


def test_together_each_sees_what_it_sees_alone(seer: Seer) -> None:
    asked = [message("Hello", RED_PNG), message("Hello the model"), message("Hello", BLUE_PNG),
             message(" of", RED_JPEG, at=0), message("Hello", RED_PNG, BLUE_PNG)]  # fmt: skip
    alone = [first(seer.ask(each)) for each in asked]
    for i, each in enumerate(asked):
        seer.run.engine.submit(seer.sequences(10 + i, each))
    together = seer.run.until_finished(len(asked))
    found = [first(together[10 + i]) for i in range(len(asked))]
    assert found == pytest.approx(alone, abs=0.05)


def test_no_lane_holds_more_or_less_than_memory(seer: Seer) -> None:
    """The positions of all lanes, as the library counts them."""
    seer.run.memory.forget_all()
    seer.ask(message("Hello", RED_PNG, BLUE_JPEG))
    last = seer.run.context._lib.llama_memory_seq_pos_max
    for lane in seer.run.memory.lanes:
        assert last(seer.run.context._memory, lane.seq_id) + 1 == len(lane.tokens)


# ---- one kind is enough --------------------------------------------------------------------


def test_a_picture_is_encoded_once_wherever_it_stands(llava: Seer) -> None:
    llava.ask(message("Hello", RED_PNG))
    llava.ask(message("What is this? ", RED_PNG, RED_PNG))
    assert llava.lib.calls["mtmd_encode_chunk"] == 1


def test_embeddings_are_kept_within_their_bound(llava: Seer) -> None:
    n_bytes = 16 * llava.run.context.n_embd * 4
    llava.encoder._max_bytes = 2 * n_bytes
    for shade in (10, 20, 30):
        llava.ask(message("Hello", png(8, 8, (shade, 0, 0))))
    assert len(llava.encoder._kept) == 2
    llava.encoder._max_bytes = 0
    llava.ask(message("Hello", png(8, 8, (40, 0, 0))))
    assert len(llava.encoder._kept) == 0


def test_usage_counts_the_tokens_of_pictures(llava: Seer) -> None:
    without = started(llava.ask(message("Hello"))).n_prompt
    assert started(llava.ask(message("Hello", RED_PNG))).n_prompt == without + 16
    assert started(llava.ask(message("Hello", RED_PNG, BLUE_PNG))).n_prompt == without + 32


def test_tokens_of_pictures_with_rows_count_though_they_share_positions(
    lib: Any, tmp_path: Path
) -> None:
    architectures.qwen2vl(tmp_path / "model.gguf")
    model = Model(lib, str(tmp_path / "model.gguf"))
    projectors.qwen2vl(tmp_path / "mmproj.gguf", model.n_embd)
    seer = Seer(model, tmp_path / "mmproj.gguf")
    # 112 x 84 pixels are 4 x 3 tokens of 28 x 28, and as many positions as the longer side.
    (sequence,) = seer.sequences(1, message("Hello", png(112, 84, RED)))
    ((chunk),) = sequence.chunks.values()
    assert (chunk.n_tokens, chunk.n_positions) == (12, 4)
    assert sequence.n_cells(len(sequence.prompt)) == len(sequence.prompt) + 8
    seer.close()
    model.close()


def test_memory_that_fills_puts_a_picture_back_and_it_is_seen_again(llava: Seer) -> None:
    """Four prompts of about 90 tokens each in 256 cells, each other one with two pictures."""
    words = " ".join(["Hello"] * 40)
    asked = [message(f"{i} {words}", *([RED_PNG, BLUE_PNG] * (i % 2))) for i in range(4)]
    alone = [joined(llava.ask(each)) for each in asked]
    llava.run.memory.forget_all()
    for i, each in enumerate(asked):
        llava.run.engine.submit(llava.sequences(10 + i, each))
    together = llava.run.until_finished(4)
    assert [joined(together[10 + i]) for i in range(4)] == alone


def test_every_picture_is_freed_with_its_last_sequence(llava: Seer) -> None:
    for _ in range(5):
        llava.ask(message("Hello", RED_PNG, BLUE_PNG))
    llava.run.engine.submit(llava.sequences(7, message("Hello", RED_PNG), n=3))
    llava.run.until_finished(3)
    calls = llava.lib.calls
    assert calls["mtmd_input_chunks_init"] == calls["mtmd_input_chunks_free"] == 11
    assert calls["mtmd_bitmap_free"] == 11


def test_a_picture_that_is_cancelled_leaves_nothing(llava: Seer) -> None:
    for request_id in range(2, 22):
        llava.run.engine.submit(llava.sequences(request_id, message("Hello", RED_PNG)))
        llava.run.engine.cancel(request_id)
    assert finished(llava.ask(message("Hello", BLUE_PNG))) is not None
    assert not llava.run.generator.running
    calls = llava.lib.calls
    assert calls["mtmd_input_chunks_init"] == calls["mtmd_input_chunks_free"]


def finished(events: list[ReplyEvent]) -> Finished | None:
    return next((event for event in events if isinstance(event, Finished)), None)


def test_the_log_and_a_dry_run_show_where_a_picture_stands(llava: Seer) -> None:
    llava.sequences(1, message("See: what?", RED_PNG, at=4), trace=True)
    (prompted,) = [event for event in llava.said if isinstance(event, Prompted)]
    assert "user\nSee:<image 64x48 sha256:" in prompted.text
    assert " 16 tokens> what?<|im_end|>" in prompted.text
    llava.run.engine.submit(llava.sequences(1, message("See: ", RED_PNG), dry_run=True))
    planned = llava.run.events.get(timeout=60)
    assert isinstance(planned, Planned)
    assert planned.tokens.count(-1) == 16
    assert b"".join(planned.pieces).count(b"<image 64x48 sha256:") == 1


def test_text_cannot_stand_for_a_picture(llava: Seer) -> None:
    spelled = "<__media__> \ue000 0 \ue0010\ue001 <image 64x48 sha256:00000000 16 tokens>"
    (sequence,) = llava.sequences(1, message(spelled, RED_PNG))
    assert len(sequence.chunks) == 1
    assert min(sequence.prompt[: min(sequence.chunks)]) >= 0


def test_a_prompt_that_fits_but_for_its_pictures_is_too_long(llava: Seer) -> None:
    with pytest.raises(PromptTooLong, match="maximum context length is 256 tokens"):
        llava.sequences(1, message("Hello", *[RED_PNG] * 16))


def test_an_image_that_the_library_cannot_decode_is_named(llava: Seer) -> None:
    for data in (b"hello", RED_PNG[:40], b"\xff\xd8\xff\xd9"):
        with pytest.raises(BadRequest, match="cannot be read") as caught:
            llava.sequences(1, message("Hello", data))
        assert caught.value.param == "the part"


def decoded(lib: Any, data: bytes) -> bytes | None:
    """The RGB pixels of a WebP file."""
    width, height = ctypes.c_int32(), ctypes.c_int32()
    pixels = lib.lml_webp_decode(data, len(data), width, height)
    if not pixels:
        return None
    copy = ctypes.string_at(pixels, 3 * width.value * height.value)
    lib.lml_free(pixels)
    return copy


def test_a_lossless_webp_has_the_pixels_that_were_put_into_it(lib: Any) -> None:
    assert decoded(lib, LOSSLESS_WEBP) == sunset(40, 24)
    assert decoded(lib, webp((b"VP8L", vp8l(5, 3)))) == bytes(RED) * 15
    assert decoded(lib, webp((b"VP8L", vp8l(64, 64, BLUE, n_codes=256)))) == bytes(BLUE) * 64 * 64


@pytest.mark.parametrize(("data", "width", "height"), [(LOSSY_WEBP, 48, 32), (ALPHA_WEBP, 30, 20)])
def test_a_lossy_webp_has_about_those_pixels(
    lib: Any, data: bytes, width: int, height: int
) -> None:
    found, original = decoded(lib, data), sunset(width, height)
    assert found is not None
    assert len(found) == len(original)
    assert sum(abs(a - b) for a, b in zip(found, original, strict=True)) / len(found) < 8


def test_a_webp_that_is_cut_or_moves_has_none(lib: Any) -> None:
    for data in (LOSSY_WEBP, LOSSLESS_WEBP, ALPHA_WEBP):
        assert decoded(lib, data[:-8]) is None
    assert decoded(lib, MOVING_WEBP) is None


def test_a_webp_gets_no_more_memory_than_its_pixels_are_worth(lib: Any) -> None:
    """Codes for each 16 pixels of a megapixel are 580 KB of a file, and 387 MB of memory."""
    assert decoded(lib, webp((b"VP8L", vp8l(1024, 1024, RED, n_codes=65_536)))) is None


def test_the_same_pixels_are_the_same_picture_in_every_format(seer: Seer) -> None:
    shades = [bytes((2 * i, 0, 0)) for i in range(64)]
    rows = [b"".join(shades[(x + y) % 64] for x in range(64)) for y in range(48)]
    files = (
        png_of(64, 48, b"".join(b"\0" + row for row in rows)),
        gif_of(64, 48, bytes((x + y) % 64 for y in range(48) for x in range(64))),
        bmp_of(64, -48, b"".join(row[::-1] for row in _mirrored(rows))),
    )
    shaded = [first(seer.ask(message("Hello", data))) for data in files]
    assert shaded == pytest.approx([shaded[0]] * 3, abs=1e-5)
    red = [first(seer.ask(message("Hello", data)))
           for data in (RED_PNG, webp((b"VP8L", vp8l(64, 48))))]  # fmt: skip
    assert red == pytest.approx([red[0]] * 2, abs=1e-5)
    assert shaded[0] != pytest.approx(red[0], abs=1e-5)


def _mirrored(rows: list[bytes]) -> list[bytes]:
    """From right to left, so that the bytes of a row backwards are blue, green and red."""
    return [b"".join(row[i : i + 3] for i in range(len(row) - 3, -1, -3)) for row in rows]


def test_a_picture_that_is_read_at_once_has_to_fit_a_batch(lib: Any, tmp_path: Path) -> None:
    architectures.gemma3(tmp_path / "model.gguf")
    model = Model(lib, str(tmp_path / "model.gguf"))
    projectors.gemma3(tmp_path / "mmproj.gguf", model.n_embd)
    seer = Seer(model, tmp_path / "mmproj.gguf")
    narrow = Preparer(model, seer.template, 1024, seer.said.extend, seer.encoder, n_batch=3)
    with pytest.raises(BadRequest, match="serve with a larger --batch"):
        narrow.prepare(Chat(1, (message("Hello", RED_PNG),), SamplingParams()))
    seer.close()
    model.close()


def test_a_template_that_drops_the_picture_is_told(default_model: Model, tmp_path: Path) -> None:
    projectors.mlp(tmp_path / "mmproj.gguf", default_model.n_embd)
    encoder = MediaEncoder(default_model, str(tmp_path / "mmproj.gguf"), n_threads=1, max_bytes=0)
    template = ChatTemplate(default_model, "{{ messages[0].content[:2] }}")
    with pytest.raises(BadRequest, match="the chat template leaves out an image"):
        template.render([message("Hello", RED_PNG)], None, [encoder.read(RED_PNG)])
    template.close()
    encoder.close()


def test_pictures_keep_their_places_in_messages_that_become_one(llava: Seer) -> None:
    strict = ChatTemplate(
        llava.run.model,
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('no') }}{% endif %}{{ m.role ~ ': ' ~ m.content }}{% endfor %}",
    )
    red, blue = (llava.encoder.read(data) for data in (RED_PNG, BLUE_PNG))
    apart = [message("See: a", RED_PNG, at=5), message("And: b", BLUE_PNG, at=5)]
    images = (*apart[0].images, Image(BLUE_PNG, 13, "the part"))
    as_one = ChatMessage("user", "See: a\n\nAnd: b", images=images)
    assert (
        strict.render(apart, None, [red, blue]).prompt.ids
        == strict.render([as_one], None, [red, blue]).prompt.ids
    )
    strict.close()


def test_a_worker_without_a_projector_takes_no_images(default_model: Model) -> None:
    template = ChatTemplate(default_model)
    said: list[Any] = []
    blind = Preparer(default_model, template, 256, said.extend)
    with pytest.raises(Unsupported):
        blind.prepare(Chat(1, (message("Hello", RED_PNG),), SamplingParams()))
    template.close()


def test_a_projector_of_another_model_is_refused(default_model: Model, tmp_path: Path) -> None:
    projectors.mlp(tmp_path / "mmproj.gguf", default_model.n_embd + 32)
    with pytest.raises(LlamaError, match="made for another model"):
        MediaEncoder(default_model, str(tmp_path / "mmproj.gguf"), n_threads=1, max_bytes=0)


def test_sizes_of_every_form_are_seen(llava: Seer) -> None:
    source = random.Random(3)
    for width, height in ((1, 1), (1, 200), (200, 1), (3, 500), (640, 480)):
        shade = (source.randrange(256), 0, 0)
        assert finished(llava.ask(message("Hello", png(width, height, shade)))) is not None
