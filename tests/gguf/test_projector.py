"""Projector files: which one belongs to a model, and every fault for which one is refused."""

from pathlib import Path

import pytest

from lmlite.cli import command
from lmlite.errors import ModelFileError
from lmlite.gguf.projector import projector_beside, read_projector_file
from lmlite.server.models.loading import EMBEDDED_MODEL
from tests.support import projectors
from tests.support.gguf_writer import Value, encode_gguf


def test_the_only_projector_beside_a_model_is_found(tmp_path: Path) -> None:
    model = str(tmp_path / "model.gguf")
    assert projector_beside(model) is None
    first = tmp_path / "mmproj-model.gguf"
    first.touch()
    assert projector_beside(model) == str(first)
    (tmp_path / "mmproj-other.gguf").touch()
    assert projector_beside(model) is None


def spoilt(path: Path, changes: dict[str, Value | None]) -> str:
    """A projector file with other keys; None leaves one out."""
    keys: dict[str, Value] = dict(projectors.KEYS)
    for name, value in changes.items():
        if value is None:
            del keys[name]
        else:
            keys[name] = value
    path.write_bytes(encode_gguf(keys, [projectors.ANY_TENSOR]))
    return str(path)


def test_a_projector_file_in_order_may_be_loaded(tmp_path: Path) -> None:
    read_projector_file(spoilt(tmp_path / "mmproj.gguf", {}))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"general.architecture": "llama"}, "is not a projector"),
        ({"clip.has_vision_encoder": None}, "is a projector without a vision encoder"),
        ({"clip.has_vision_encoder": False}, "is a projector without a vision encoder"),
        ({"clip.vision.patch_size": 0}, "not a whole number from 1 to 1,024"),
        ({"clip.vision.patch_size": 57}, "has patches of 57 pixels for images of 56"),
        ({"clip.vision.image_size": 1 << 20}, "not a whole number from 1 to 8,192"),
        ({"clip.vision.attention.head_count": 3}, "does not divide evenly"),
        ({"clip.vision.attention.head_count": 0}, "not a whole number from 1 to 4,096"),
        ({"clip.vision.embedding_length": None}, "has no clip.vision.embedding_length"),
        ({"clip.vision.block_count": 1 << 30}, "not a whole number from 0 to 512"),
        ({"clip.vision.image_std": [0.5, 0.5]}, "of three numbers"),
        ({"clip.vision.image_mean": None}, "of three numbers"),
        ({"clip.vision.attention.layer_norm_epsilon": -1.0}, "not from 0 to 1"),
    ],
)
def test_a_projector_that_would_end_the_worker_is_refused(
    tmp_path: Path, changes: dict[str, Value | None], fault: str
) -> None:
    with pytest.raises(ModelFileError, match=fault):
        read_projector_file(spoilt(tmp_path / "mmproj.gguf", changes))


def test_a_projector_without_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(encode_gguf(projectors.KEYS, []))
    with pytest.raises(ModelFileError, match="has no weights"):
        read_projector_file(str(path))


def test_a_projector_with_two_tensors_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(encode_gguf(projectors.KEYS, [projectors.ANY_TENSOR] * 2))
    with pytest.raises(ModelFileError, match="has two tensors of one name"):
        read_projector_file(str(path))


@pytest.mark.parametrize(
    ("kind", "changes", "patches"),
    [
        ("mlp", {}, (16, 16)),
        ("gemma3", {}, (16, 16)),
        ("qwen2vl_merger", {}, (4096 * 4, 4)),
        ("qwen2vl_merger", {"clip.vision.spatial_merge_size": 3}, (4096 * 9, 9)),
        ("pixtral", {}, (1024, 1)),
        ("dots_ocr", {"clip.vision.image_max_pixels": 14 * 14 * 1000}, (1000, 4)),
    ],
)
def test_how_much_of_a_picture_is_encoded_at_once(
    tmp_path: Path, kind: str, changes: dict[str, Value], patches: tuple[int, int]
) -> None:
    keys = projectors.KEYS | {"clip.projector_type": kind} | changes
    (tmp_path / "mmproj.gguf").write_bytes(encode_gguf(keys, [projectors.ANY_TENSOR]))
    found = read_projector_file(str(tmp_path / "mmproj.gguf"))
    assert (found.n_patches, found.n_token_patches) == patches


def test_a_language_model_is_not_a_projector(capfd: pytest.CaptureFixture[str]) -> None:
    assert command.main(["serve", "--port", "0", "--mmproj", str(EMBEDDED_MODEL)]) == 1
    assert "is not a projector, which is what --mmproj takes" in capfd.readouterr().err
