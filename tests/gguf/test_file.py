"""Reading a model file, and every fault for which one is refused."""

import ctypes
import math
import os
import socket
import stat
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmlite.errors import ModelFileError
from lmlite.gguf import header as gguf_header
from lmlite.gguf.file import read_model_file
from lmlite.gguf.header import TENSOR_TYPES
from lmlite.messages import ModelPart
from tests.conftest import shared_model
from tests.support import architectures, rank_models
from tests.support import gguf_writer as writer
from tests.support.gguf_writer import Shape, Tensor, Typed, Value

Metadata = dict[str, Value]
Tensors = list[Tensor]
SMALL = Shape(n_layer=1, n_embd=32, n_head=2, n_head_kv=1, n_ff=32)
N_VOCAB = 283


def small_llama() -> tuple[Metadata, Tensors]:
    return writer.tiny_llama_parts(shape=SMALL)


def refusal(path: Path) -> str:
    """Why the file is refused: the part of the sentence that varies."""
    with pytest.raises(ModelFileError) as caught:
        read_model_file(path)
    beginning = f"{path.name} cannot be loaded: it "
    message = str(caught.value)
    assert message.startswith(beginning)
    assert "\n" not in message
    return message.removeprefix(beginning)


# ---- good files ----------------------------------------------------------------------------


def test_every_field_of_a_small_llama(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    writer.tiny_llama(path)
    status = path.stat()
    file = read_model_file(path)
    assert file.path == str(path)
    assert file.architecture == "llama"
    assert file.name == "tiny-llama"
    assert file.quantisation == "F32"
    assert file.n_ctx_train == 512
    assert file.n_vocab == N_VOCAB
    assert file.chat_template == writer.CHATML
    assert file.pooling == "unspecified"
    assert not file.embeds_only
    assert file.n_tensor_bytes == 4 * file.n_params == 4 * 110_272
    assert file.mtime == int(status.st_mtime)
    identity = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
    assert file.parts == (ModelPart(str(path), *identity),)


def test_a_model_without_a_name_is_named_after_its_file(tmp_path: Path) -> None:
    metadata, tensors = small_llama()
    del metadata["general.name"]
    writer.write_gguf(tmp_path / "Some-Model-Q8_0.gguf", metadata, tensors)
    assert read_model_file(tmp_path / "Some-Model-Q8_0.gguf").name == "Some-Model-Q8_0"


@pytest.mark.parametrize(("file_type", "name"), [(0, "F32"), (7, "Q8_0"), (15, "Q4_K_M")])
def test_the_quantisation_is_read_from_the_file(tmp_path: Path, file_type: int, name: str) -> None:
    metadata, tensors = small_llama()
    writer.write_gguf(tmp_path / "a.gguf", metadata | {"general.file_type": file_type}, tensors)
    assert read_model_file(tmp_path / "a.gguf").quantisation == name


def test_without_a_file_type_the_quantisation_is_the_type_of_most_weights(tmp_path: Path) -> None:
    metadata, tensors = writer.tiny_llama_parts(shape=SMALL, kind=writer.TENSOR_F16)
    del metadata["general.file_type"]
    writer.write_gguf(tmp_path / "a.gguf", metadata, tensors)
    assert read_model_file(tmp_path / "a.gguf").quantisation == "F16"


@pytest.mark.parametrize("number, pooling", enumerate(["none", "mean", "cls", "last"]))
def test_the_pooling_has_a_name(tmp_path: Path, number: int, pooling: str) -> None:
    metadata, tensors = small_llama()
    writer.write_gguf(tmp_path / "a.gguf", metadata | {"llama.pooling_type": number}, tensors)
    file = read_model_file(tmp_path / "a.gguf")
    assert (file.pooling, file.embeds_only) == (pooling, False)


@pytest.mark.parametrize(
    ("make", "ranker"), [(rank_models.bert, "encoder"), (rank_models.qwen3, "causal")]
)
def test_a_reranking_model_is_of_one_of_two_kinds(
    tmp_path: Path, make: Callable[[Path], object], ranker: str
) -> None:
    make(tmp_path / "a.gguf")
    file = read_model_file(tmp_path / "a.gguf")
    assert (file.pooling, file.embeds_only, file.ranker) == ("rank", True, ranker)


@pytest.mark.parametrize(
    ("labels", "shapes", "fault"),
    [
        ([], {}, "no scores for 1 labels"),
        ([], {"cls.weight": (8, 8)}, "8 scores for 1 labels"),
        (["yes", "no"], {"cls.output.weight": (8,)}, "1 scores for 2 labels"),
        (["a"], {"cls.weight": (8, 8), "cls.output.weight": (8, 2)}, "2 scores for 1 labels"),
    ],
)
def test_a_reranking_model_must_have_a_score_for_each_label(
    tmp_path: Path, labels: list[str], shapes: dict[str, tuple[int, ...]], fault: str
) -> None:
    """The library would read its scores from behind the end of what the model computes."""
    metadata, tensors = small_llama()
    metadata |= {"llama.pooling_type": 4}
    if labels:
        metadata["llama.classifier.output_labels"] = labels
    tensors += [writer.tensor(name, dims, [0.0] * math.prod(dims), writer.TENSOR_F32)
                for name, dims in shapes.items()]  # fmt: skip
    writer.write_gguf(tmp_path / "a.gguf", metadata, tensors)
    assert refusal(tmp_path / "a.gguf") == f"ranks texts, but has {fault}"


def test_a_model_without_causal_attention_only_embeds(tmp_path: Path) -> None:
    metadata, tensors = small_llama()
    writer.write_gguf(tmp_path / "a.gguf", metadata | {"llama.attention.causal": False}, tensors)
    assert read_model_file(tmp_path / "a.gguf").embeds_only


def test_a_model_without_a_chat_template_has_none(tmp_path: Path) -> None:
    writer.tiny_llama(tmp_path / "a.gguf", chat_template=None)
    assert read_model_file(tmp_path / "a.gguf").chat_template is None


def test_version_2_is_read_like_version_3(tmp_path: Path) -> None:
    writer.write_gguf(tmp_path / "a.gguf", *small_llama(), version=2)
    assert read_model_file(tmp_path / "a.gguf").n_vocab == N_VOCAB


def test_empty_tokens_are_not_equal(tmp_path: Path) -> None:
    metadata, tensors = small_llama()
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    tokens[40] = tokens[50] = ""
    writer.write_gguf(tmp_path / "a.gguf", metadata, tensors)
    assert read_model_file(tmp_path / "a.gguf").n_vocab == N_VOCAB


def test_a_layer_without_keys_may_have_no_heads_for_them(tmp_path: Path) -> None:
    metadata, tensors = writer.tiny_llama_parts(shape=SMALL._replace(n_layer=2))
    metadata["llama.attention.head_count_kv"] = [1, 0]
    without = [tensor for tensor in tensors if tensor.name != "blk.1.attn_k.weight"]
    writer.write_gguf(tmp_path / "a.gguf", metadata, without)
    assert read_model_file(tmp_path / "a.gguf").architecture == "llama"


def test_a_model_without_attention_has_nothing_to_rotate(tmp_path: Path) -> None:
    architectures.mamba(tmp_path / "a.gguf")
    assert read_model_file(tmp_path / "a.gguf").architecture == "mamba"


def test_experts_in_even_groups_are_accepted(tmp_path: Path) -> None:
    metadata, tensors = small_llama()
    sizes = {"count": 8, "used_count": 2, "group_count": 4, "group_used_count": 2}
    metadata |= {f"llama.expert_{name}": n for name, n in sizes.items()}
    writer.write_gguf(tmp_path / "a.gguf", metadata, tensors)
    assert read_model_file(tmp_path / "a.gguf").architecture == "llama"


def test_a_single_expert_of_hunyuan_is_ignored(tmp_path: Path) -> None:
    metadata, tensors = small_llama()
    named = {key.replace("llama.", "hunyuan-dense."): value for key, value in metadata.items()}
    named |= {"general.architecture": "hunyuan-dense", "hunyuan-dense.expert_count": 1}
    writer.write_gguf(tmp_path / "a.gguf", named, tensors)
    assert read_model_file(tmp_path / "a.gguf").architecture == "hunyuan-dense"


# ---- files that change while they are read -------------------------------------------------


def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.gguf"
    writer.write_gguf(path, *small_llama())
    parse = gguf_header._parse

    def parse_and_touch(*arguments: Any) -> Any:
        os.utime(path, ns=(0, 0))
        return parse(*arguments)

    monkeypatch.setattr(gguf_header, "_parse", parse_and_touch)
    assert refusal(path) == "changed while it was read"


def test_a_file_that_is_cut_short_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.gguf"
    whole = writer.encode_gguf(*small_llama())
    path.write_bytes(whole[:1000])
    fstat = os.fstat

    def before(fd: int) -> os.stat_result:
        fields = list(fstat(fd))
        fields[stat.ST_SIZE] = len(whole)
        return os.stat_result(fields)

    monkeypatch.setattr(os, "fstat", before)
    assert refusal(path) == "was cut short while it was read"


# ---- real files ----------------------------------------------------------------------------


def test_the_vocabularies_of_llama_cpp_are_accepted(llama_cpp: Path) -> None:
    paths = sorted((llama_cpp / "models").glob("ggml-vocab-*.gguf"))
    assert len(paths) >= 19
    for path in paths:
        assert read_model_file(path, vocab_only=True).n_vocab >= 30_000, path
        assert refusal(path) == "has no weights"


def test_a_large_vocabulary_is_read_in_half_a_second(llama_cpp: Path) -> None:
    start_s = time.process_time()
    file = read_model_file(llama_cpp / "models" / "ggml-vocab-qwen2.gguf", vocab_only=True)
    assert time.process_time() - start_s < 0.5
    assert file.n_vocab == 151_936


def test_an_encoder_is_accepted() -> None:
    file = read_model_file(shared_model("all-minilm-l6-v2-q8_0.gguf"))
    assert (file.architecture, file.pooling, file.embeds_only) == ("bert", "mean", True)
    assert (file.quantisation, file.n_vocab, file.n_ctx_train) == ("Q8_0", 30_522, 512)


def test_a_chat_model_is_accepted() -> None:
    file = read_model_file(shared_model("chat-trial.gguf"))
    assert (file.architecture, file.embeds_only, file.n_vocab) == ("llama", False, 1352)


# ---- not a model at all --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>404</html>", "is a web page, not a GGUF file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "is a Git LFS pointer, not the model that it stands for",
        ),
        (b"PK\x03\x04", "is a zip or PyTorch file, not a GGUF file"),
        (b"GGJT\3\0\0\0", "does not begin with GGUF"),
        (bytes(100), "does not begin with GGUF"),
        (
            b"GGUF\0\0\0\3" + bytes(100),
            "is a big-endian GGUF file, which only big-endian machines can load",
        ),
        (b"GGUF\1\0\0\0" + bytes(100), "is GGUF version 1; 2 and 3 can be loaded"),
        (b"GGUF\4\0\0\0" + bytes(100), "is GGUF version 4; 2 and 3 can be loaded"),
        (b"GGUF\3\0\0\0", "ends in the middle of its header"),
        (b"GGUF\3\0\0\0" + bytes(16), "names no architecture"),
    ],
)
def test_other_kinds_of_files_are_named_in_the_refusal(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    assert refusal(path) == message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "a.gguf") == "does not exist"


def test_an_impossible_path_is_refused() -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_model_file("a\0b.gguf")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "is a folder"


def test_a_pipe_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    os.mkfifo(path)
    assert refusal(path) == "is not a regular file"


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("a.gguf")
        assert refusal(tmp_path / "a.gguf") == "is not a regular file"


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
def test_a_device_is_refused(device: str) -> None:
    assert refusal(Path(device)) == "is not a regular file"


def test_a_link_to_a_file_is_followed(tmp_path: Path) -> None:
    writer.write_gguf(tmp_path / "blob", *small_llama())
    (tmp_path / "link.gguf").symlink_to("blob")
    assert read_model_file(tmp_path / "link.gguf").path == str(tmp_path / "link.gguf")


# ---- lies about lengths --------------------------------------------------------------------


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = writer.encode_gguf(*small_llama())
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(data)
    read_model_file(whole)
    n_header = data.index(b"output_norm.weight") + 2000
    path = tmp_path / "a.gguf"
    last_tensor_end = len(data)
    for n_bytes in [*range(0, n_header, 3), *range(n_header, last_tensor_end, 257)]:
        path.write_bytes(data[:n_bytes])
        with pytest.raises(ModelFileError):
            read_model_file(path)


def lies() -> dict[str, bytes]:
    """Short files that claim to be long."""
    head = b"GGUF" + struct.pack("<I", 3)
    one_key = head + struct.pack("<QQ", 0, 1)
    key = writer.string("a.b")
    huge = 1 << 60
    return {
        "tensors": head + struct.pack("<QQ", huge, 0),
        "keys": head + struct.pack("<QQ", 0, huge),
        "length of a key": one_key + struct.pack("<Q", huge),
        "length of a string": one_key + key + struct.pack("<IQ", writer.STRING, huge),
        "strings": one_key + key + struct.pack("<IIQ", writer.ARRAY, writer.STRING, huge),
        "numbers": one_key + key + struct.pack("<IIQ", writer.ARRAY, writer.F64, huge),
        "length of a name": head + struct.pack("<QQQ", 1, 0, huge),
        "tensors in range": head + struct.pack("<QQ", 65_536, 0),
        "keys in range": head + struct.pack("<QQ", 0, 65_536),
        "strings in range": one_key + key + struct.pack("<IIQ", writer.ARRAY, writer.STRING, 127),
    }


@pytest.mark.parametrize("what", lies())
def test_a_false_count_costs_neither_memory_nor_time(tmp_path: Path, what: str) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(lies()[what].ljust(1024, b"\xff"))
    tracemalloc.start()
    start_s = time.process_time()
    try:
        refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        assert time.process_time() - start_s < 0.5
    finally:
        tracemalloc.stop()


def test_more_strings_than_any_vocabulary_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + writer.string("a.b")
    with path.open("wb") as file:
        file.write(head + struct.pack("<IIQ", writer.ARRAY, writer.STRING, 4 << 20))
        file.truncate(64 << 20)
    assert refusal(path) == "has more than 2,097,152 strings"


def test_a_header_longer_than_any_known_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + writer.string("a.b")
    with path.open("wb") as file:
        file.write(head + struct.pack("<IQ", writer.STRING, 200 << 20))
        file.truncate(1 << 30)
    assert refusal(path) == "has a header of more than 134,217,728 bytes"


# ---- lies about values ---------------------------------------------------------------------

VALUE_FAULTS: list[tuple[Metadata, str]] = [
    ({"general.architecture": ""}, "names no architecture"),
    ({"general.architecture": "Llama 3"}, "names no architecture"),
    ({"general.architecture": 3}, "has a general.architecture that is not a string"),
    ({"general.architecture": "clip"}, "is a projector for images (mmproj)"),
    ({"general.architecture": "t5"}, "is an encoder-decoder model (T5)"),
    ({"general.architecture": "t5encoder"}, "is a T5 encoder"),
    ({"general.architecture": "eagle3"}, "is a draft model, which only helps another"),
    ({"general.architecture": "dflash"}, "is a draft model, which only helps another"),
    ({"general.architecture": "qwen2"}, "has no qwen2.block_count"),
    ({"general.alignment": 48}, "has the alignment 48, which is not a power of two"),
    ({"general.alignment": 8}, "has a general.alignment that is not a whole number from 32 to"),
    ({"llama.block_count": 0}, "has a llama.block_count that is not a whole number from 1 to 512"),
    (
        {"llama.block_count": 513},
        "has a llama.block_count that is not a whole number from 1 to 512",
    ),
    ({"llama.block_count": 1.0}, "has a llama.block_count that is not a whole number"),
    ({"llama.block_count": "1"}, "has a llama.block_count that is not a whole number"),
    ({"llama.block_count": [1]}, "has a list for llama.block_count, which is one number"),
    ({"llama.embedding_length": 0}, "has a llama.embedding_length that is not a whole number"),
    ({"llama.embedding_length": 131_073}, "has a llama.embedding_length that is not a whole"),
    ({"llama.embedding_length_out": 1024}, "has a llama.embedding_length_out that is not a whole"),
    ({"llama.context_length": 0}, "has a llama.context_length that is not a whole number"),
    ({"llama.context_length": (1 << 26) + 1}, "has a llama.context_length that is not a whole"),
    ({"llama.feed_forward_length": (1 << 24) + 1}, "has a llama.feed_forward_length that is no"),
    ({"llama.attention.head_count": 0}, "has no llama.attention.head_count"),
    ({"llama.attention.head_count": 4097}, "has a llama.attention.head_count that is not a whole"),
    ({"llama.attention.head_count": [2, 2]}, "has 2 values of llama.attention.head_count for 1"),
    ({"llama.attention.head_count": [-1]}, "has a llama.attention.head_count that is not a whole"),
    (
        {"llama.attention.head_count": 3, "llama.attention.head_count_kv": 2},
        "has an llama.attention.head_count that head_count_kv does not divide",
    ),
    ({"llama.attention.head_count_kv": [0]}, "has keys of 16 numbers in layer 0 for 0 heads"),
    ({"llama.attention.head_count_kv": [2]}, "has keys of 16 numbers in layer 0 for 2 heads"),
    ({"llama.rope.dimension_count": 15}, "has heads of 15 numbers to rotate, which is odd"),
    ({"llama.rope.scaling.type": "spiral"}, "has the unknown llama.rope.scaling.type 'spiral'"),
    ({"llama.nextn_predict_layers": 2}, "has a llama.nextn_predict_layers that is not a whole"),
    ({"llama.pooling_type": 5}, "has a llama.pooling_type that is not a whole number from 0 to 4"),
    ({"llama.expert_count": 1025}, "has a llama.expert_count that is not a whole number"),
    ({"llama.expert_count": 8}, "has 8 experts but uses none"),
    ({"llama.expert_used_count": 2}, "has a llama.expert_used_count that is not a whole number"),
    (
        {
            "llama.expert_count": 8,
            "llama.expert_used_count": 2,
            "llama.expert_group_count": 3,
            "llama.expert_group_used_count": 1,
        },
        "has 8 experts in 3 groups",
    ),
    ({"tokenizer.chat_template": 7}, "has a tokenizer.chat_template that is not a string"),
    ({"tokenizer.ggml.model": "none"}, "has the tokenizer 'none', which cannot be used"),
    ({"tokenizer.ggml.model": "llama"}, "has a vocabulary of 'llama' without a token for the"),
    ({"tokenizer.ggml.model": "rwkv"}, "has a vocabulary of 'rwkv' without a token for the"),
    ({"tokenizer.ggml.tokens": Typed(writer.STRING, [])}, "has no vocabulary"),
    ({"tokenizer.ggml.tokens": [1, 2]}, "has no vocabulary"),
    ({"tokenizer.ggml.token_type": [1, 1]}, "has 2 tokenizer.ggml.token_type for 283 tokens"),
    ({"tokenizer.ggml.scores": [0.5]}, "has 1 tokenizer.ggml.scores for 283 tokens"),
    ({"tokenizer.ggml.bos_token_id": N_VOCAB}, "has a tokenizer.ggml.bos_token_id that is no"),
    ({"tokenizer.ggml.eos_token_id": 1 << 31}, "has a tokenizer.ggml.eos_token_id that is no"),
    ({"": 1}, "has a key without a proper name: ''"),
    ({"a\0b": 1}, "has a key without a proper name: 'a\\x00b'"),
    ({"a" * 1025: 1}, "has a name of 1,025 bytes, of 1,024 at most"),
]


@pytest.mark.parametrize(("changes", "message"), VALUE_FAULTS)
def test_a_value_that_would_end_the_worker_is_refused(
    tmp_path: Path, changes: Metadata, message: str
) -> None:
    metadata, tensors = small_llama()
    path = tmp_path / "a.gguf"
    writer.write_gguf(path, metadata | changes, tensors)
    assert message in refusal(path)


@pytest.mark.parametrize("epsilon", [-1e-5, 1.5, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["llama.attention.layer_norm_rms_epsilon", "llama.x_epsilon"])
def test_an_epsilon_outside_its_range_is_refused(tmp_path: Path, key: str, epsilon: float) -> None:
    metadata, tensors = small_llama()
    writer.write_gguf(tmp_path / "a.gguf", metadata | {key: epsilon}, tensors)
    assert refusal(tmp_path / "a.gguf") == f"has a {key} that is not from 0 to 1"


@pytest.mark.parametrize(
    "key", ["llama.block_count", "llama.embedding_length", "llama.context_length"]
)
def test_a_missing_size_is_refused(tmp_path: Path, key: str) -> None:
    metadata, tensors = small_llama()
    del metadata[key]
    writer.write_gguf(tmp_path / "a.gguf", metadata, tensors)
    assert refusal(tmp_path / "a.gguf") == f"has no {key}"


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    data = writer.encode_gguf({"llama.aaaa": 1, "llama.bbbb": 2})
    (tmp_path / "a.gguf").write_bytes(data.replace(b"bbbb", b"aaaa"))
    assert refusal(tmp_path / "a.gguf") == "has the key llama.aaaa twice"


@pytest.mark.parametrize("kind", [writer.ARRAY, 13, 1 << 31])
def test_a_type_that_does_not_exist_is_refused(tmp_path: Path, kind: int) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + writer.string("a.b")
    array_of_arrays = struct.pack("<IIQ", writer.ARRAY, kind, 1)
    (tmp_path / "a.gguf").write_bytes(head + array_of_arrays + bytes(100))
    assert refusal(tmp_path / "a.gguf") == f"gives a.b the unknown type {kind}"


# ---- vocabularies --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([b"same", b"same"], "has the token 'same' twice"),
        ([b"cut", b"cut\0here"], "has the token 'cut' twice"),
        ([b"", b"[EMPTY_30]"], "has the token '[EMPTY_' twice"),
    ],
)
def test_tokens_that_the_library_sees_as_equal_are_refused(
    tmp_path: Path, texts: list[bytes], message: str
) -> None:
    metadata, tensors = small_llama()
    tokens = metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, list)
    tokens[30:32] = texts
    metadata["tokenizer.ggml.tokens"] = Typed(writer.STRING, tokens)
    writer.write_gguf(tmp_path / "a.gguf", metadata, tensors)
    assert refusal(tmp_path / "a.gguf") == message


def vocabulary(kind: str, tokens: list[str], **others: Value) -> Metadata:
    """The metadata of a file that is a vocabulary only."""
    keys: Metadata = {"general.architecture": "llama", "tokenizer.ggml.model": kind}
    keys["tokenizer.ggml.tokens"] = tokens
    return keys | {f"tokenizer.ggml.{name}": value for name, value in others.items()}


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
ESCAPED = [repr(bytes([byte]))[2:-1] for byte in range(256)]


@pytest.mark.parametrize(
    "keys",
    [
        vocabulary("llama", BYTES),
        vocabulary("llama", [text.replace("<0x41>", "A") for text in BYTES]),
        vocabulary("rwkv", ESCAPED),
        vocabulary("bert", BYTES),
        vocabulary("plamo2", BYTES),
        vocabulary("t5", ["a", "b"]),
        vocabulary("gemma4", ["a", "b"], bos_token_id=1),
        vocabulary("gpt2", ["a", "b"], bos_token_id=1),
        vocabulary("gpt2", ["a", "b"], add_bos_token=False),
    ],
)
def test_a_complete_vocabulary_is_accepted(tmp_path: Path, keys: Metadata) -> None:
    path = tmp_path / "vocab.gguf"
    writer.write_gguf(path, keys)
    n_vocab = read_model_file(path, vocab_only=True).n_vocab
    assert n_vocab in (2, 256)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (vocabulary("llama", BYTES[:-1]), "without a token for the byte 255"),
        (vocabulary("rwkv", ESCAPED[1:]), "without a token for the byte 0"),
        (vocabulary("bert", ["a", "b"]), "adds a bos token to every text, but has none"),
        (
            vocabulary("bert", BYTES[:102], add_eos_token=False),
            "adds a seperator token to every text, but has none",
        ),
        (
            vocabulary("bert", BYTES, token_type=[1] * 255 + [6]),
            "has byte tokens, which a bert tokenizer cannot have",
        ),
        (vocabulary("gpt2", ["a", "b"]), "adds a bos token to every text, but has none"),
        (vocabulary("plamo2", [*BYTES, "x" * 257]), "has a plamo2 token of more than 256 bytes"),
        (vocabulary("gemma4", ["a", "b"]), "adds a bos token to every text, but has none"),
        (vocabulary("t5", ["a"]), "adds a eos token to every text, but has none"),
    ],
)
def test_a_vocabulary_that_would_end_the_worker_is_refused(
    tmp_path: Path, keys: Metadata, message: str
) -> None:
    path = tmp_path / "vocab.gguf"
    writer.write_gguf(path, keys)
    with pytest.raises(ModelFileError, match=message):
        read_model_file(path, vocab_only=True)


# ---- tensors -------------------------------------------------------------------------------

Change = Callable[[Tensor], Tensor]


def changed(**fields: Any) -> Change:
    return lambda tensor: tensor._replace(**fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(dims=(32, 64)), "ends before the weights of 'blk.0.ffn_down.weight'"),
        (changed(name="x" * 64), "has a name of 64 bytes, of 63 at most"),
        (changed(name="output.weight"), "has two tensors of one name"),
        (changed(dims=()), "with 0 dimensions"),
        (changed(dims=(1,) * 5), "with 5 dimensions"),
        (changed(dims=(32, 0)), "of the impossible shape [32, 0]"),
        (changed(dims=(32, (1 << 32) + 1)), "of the impossible shape [32, 4294967297]"),
        (changed(dims=(1 << 32,) * 4), "ends before the weights of 'blk.0.ffn_down.weight'"),
        (changed(kind=26), "of type 26, which weights cannot have"),
        (changed(kind=28), "of type 28, which weights cannot have"),
        (changed(kind=9), "of type 9, which weights cannot have"),
        (changed(kind=4), "of type 4, which weights cannot have"),
        (changed(kind=12), "with rows of 32, not a multiple of 256"),
        (changed(offset=64), "at 64 instead of"),
        (changed(offset=0), "at 0 instead of"),
        (changed(data=b""), "ends before the weights of 'blk.0.ffn_down.weight'"),
    ],
)
def test_a_tensor_that_would_end_the_worker_is_refused(
    tmp_path: Path, change: Change, message: str
) -> None:
    metadata, tensors = small_llama()
    assert tensors[-1].name == "blk.0.ffn_down.weight"
    tensors[-1] = change(tensors[-1])
    writer.write_gguf(tmp_path / "a.gguf", metadata, tensors)
    assert message in refusal(tmp_path / "a.gguf")


def test_a_vector_of_another_type_than_f32_is_refused(tmp_path: Path) -> None:
    metadata, tensors = small_llama()
    place = next(i for i, item in enumerate(tensors) if item.name == "output_norm.weight")
    tensors[place] = tensors[place]._replace(kind=writer.TENSOR_F16, data=bytes(64))
    writer.write_gguf(tmp_path / "a.gguf", metadata, tensors)
    assert refusal(tmp_path / "a.gguf") == (
        "has the vector 'output_norm.weight' in F16 instead of F32"
    )


def test_the_table_of_experts_may_have_integers(tmp_path: Path) -> None:
    metadata, tensors = small_llama()
    table = Tensor("blk.0.ffn_gate_tid2eid.weight", (2, 4), bytes(32), kind=26)
    writer.write_gguf(tmp_path / "a.gguf", metadata, [*tensors, table])
    assert read_model_file(tmp_path / "a.gguf").n_tensor_bytes == 4 * 24_360


def test_a_file_without_weights_is_refused_unless_only_its_vocabulary_is_wanted(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.gguf"
    writer.write_gguf(path, small_llama()[0])
    assert refusal(path) == "has no weights"
    assert read_model_file(path, vocab_only=True).n_tensor_bytes == 0


def test_another_alignment_moves_the_weights(tmp_path: Path) -> None:
    metadata, tensors = small_llama()
    metadata["general.alignment"] = 64
    path = tmp_path / "a.gguf"
    path.write_bytes(writer.encode_gguf(metadata, tensors, alignment=64))
    assert read_model_file(path).n_vocab == N_VOCAB


def test_the_sizes_of_all_types_are_those_of_the_library(lib: Any) -> None:
    lib.ggml_type_size.restype = ctypes.c_size_t
    lib.ggml_blck_size.restype = ctypes.c_int64
    lib.ggml_type_name.restype = ctypes.c_char_p
    for kind, (name, n_block, n_bytes) in TENSOR_TYPES.items():
        assert lib.ggml_type_name(kind).decode().upper() == name
        assert (lib.ggml_blck_size(kind), lib.ggml_type_size(kind)) == (n_block, n_bytes), name


# ---- a model in several files --------------------------------------------------------------


def part_keys(number: int, n_parts: int, n_tensors: int) -> Metadata:
    return {
        "split.no": Typed(writer.U16, number),
        "split.count": Typed(writer.U16, n_parts),
        "split.tensors.count": Typed(writer.I32, n_tensors),
    }


def write_parts(folder: Path, n_parts: int = 3) -> list[Path]:
    """A llama in several parts; the first has all the metadata."""
    metadata, tensors = small_llama()
    paths = [folder / f"big-{i + 1:05}-of-{n_parts:05}.gguf" for i in range(n_parts)]
    for number, path in enumerate(paths):
        keys = part_keys(number, n_parts, len(tensors))
        share = tensors[number::n_parts]
        writer.write_gguf(path, metadata | keys if number == 0 else keys, share)
    return paths


def rewrite(path: Path, **changes: Value) -> None:
    """A later part with other keys and no tensors."""
    keys = part_keys(1, 3, 12) | {f"split.{name}": value for name, value in changes.items()}
    writer.write_gguf(path, keys)


def test_a_split_model_is_one_model(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    file = read_model_file(paths[0])
    assert [part.path for part in file.parts] == list(map(str, paths))
    assert [part.n_bytes for part in file.parts] == [path.stat().st_size for path in paths]
    whole = tmp_path / "whole.gguf"
    writer.write_gguf(whole, *small_llama())
    assert file.n_tensor_bytes == read_model_file(whole).n_tensor_bytes
    assert [part.ino for part in file.parts] == [path.stat().st_ino for path in paths]


def test_a_count_of_one_is_no_split(tmp_path: Path) -> None:
    metadata, tensors = small_llama()
    path = tmp_path / "a.gguf"
    writer.write_gguf(path, metadata | part_keys(0, 1, len(tensors)), tensors)
    assert len(read_model_file(path).parts) == 1


def test_a_later_part_names_the_one_to_load(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    assert refusal(paths[1]) == "is part 2 of 3; the one to load is big-00001-of-00003.gguf"


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    paths[2].unlink()
    with pytest.raises(ModelFileError) as caught:
        read_model_file(paths[0])
    assert str(caught.value) == "big-00003-of-00003.gguf cannot be loaded: it does not exist"


def test_parts_with_another_name_are_refused(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    path = paths[0].rename(tmp_path / "small.gguf")
    assert refusal(path) == "is part 1 of 3, but its name does not end in -00001-of-00003.gguf"


def test_a_part_that_is_the_first_one_again_is_refused(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    paths[1].unlink()
    paths[1].symlink_to(paths[0])
    with pytest.raises(ModelFileError, match=r"big-00002-of-00003\.gguf .* says split\.no 0 in"):
        read_model_file(paths[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no": Typed(writer.U16, 2)}, "it says split.no 2 instead of 1"),
        ({"no": 1}, "it is not a part of a model: it has no split.no of 16 bits"),
        ({"no": [1]}, "it is not a part of a model: it has no split.no of 16 bits"),
        ({"count": Typed(writer.U16, 4)}, "it says split.count 4 instead of 3"),
        ({}, "it has parts of other models: 8 tensors were found"),
    ],
)
def test_parts_that_contradict_are_refused(
    tmp_path: Path, changes: dict[str, Value], message: str
) -> None:
    paths = write_parts(tmp_path)
    rewrite(paths[1], **changes)
    with pytest.raises(ModelFileError) as caught:
        read_model_file(paths[0])
    assert str(caught.value).endswith(message)


def test_a_thousand_parts_are_enough(tmp_path: Path) -> None:
    metadata, tensors = small_llama()
    path = tmp_path / "big-00001-of-01001.gguf"
    writer.write_gguf(path, metadata | part_keys(0, 1001, 12), tensors)
    assert refusal(path) == "has a split.count that is not a whole number from 0 to 1,000"


def test_two_parts_with_the_same_tensor_are_refused(tmp_path: Path) -> None:
    paths = write_parts(tmp_path)
    _, tensors = small_llama()
    writer.write_gguf(paths[1], part_keys(1, 3, 12), tensors[:1])
    assert refusal(paths[0]) == "has two tensors of one name"
