"""What the name of a model file says, and which projector belongs to it."""

import pytest

from lmlite.server.models import names
from lmlite.server.models.names import FileName, nearest, parsed, part_paths, projector_for


@pytest.mark.parametrize(
    ("name", "model", "quantisation"),
    [
        ("gemma-3-4b-it-Q4_K_M.gguf", "gemma-3-4b-it", "Q4_K_M"),
        ("gemma-3-4b-it.Q8_0.gguf", "gemma-3-4b-it", "Q8_0"),
        ("qwen2.5-0.5b-instruct-q4_0.gguf", "qwen2.5-0.5b-instruct", "Q4_0"),
        ("all-MiniLM-L6-v2_f16.gguf", "all-MiniLM-L6-v2", "F16"),
        ("Qwen3-8B-IQ4_XS.gguf", "Qwen3-8B", "IQ4_XS"),
        ("Qwen3-8B-UD-Q4_K_XL.gguf", "Qwen3-8B", "UD-Q4_K_XL"),
        ("Qwen3-8B.i1-IQ2_XXS.gguf", "Qwen3-8B", "I1-IQ2_XXS"),
        ("gpt-oss-20b-MXFP4.gguf", "gpt-oss-20b", "MXFP4"),
        ("bitnet-TQ2_0.gguf", "bitnet", "TQ2_0"),
        ("phi-4-bf16.gguf", "phi-4", "BF16"),
        ("Phi-3-mini-4k-instruct-q4.gguf", "Phi-3-mini-4k-instruct", "Q4"),
        ("big-Q4_K_M-00001-of-00003.gguf", "big", "Q4_K_M"),
        ("tiny.gguf", "tiny", ""),
        ("Q4_K_M.gguf", "Q4_K_M", ""),
        ("Meta-Llama-3.1-8B-Instruct.gguf", "Meta-Llama-3.1-8B-Instruct", ""),
    ],
)
def test_the_quantisation_is_the_last_word_of_a_name(
    name: str, model: str, quantisation: str
) -> None:
    assert parsed(f"/models/{name}")[1:] == (model, quantisation)


def test_the_stem_of_a_split_file_has_no_number() -> None:
    assert parsed("big-Q4_K_M-00002-of-00003.gguf") == FileName("big-Q4_K_M", "big", "Q4_K_M")


@pytest.mark.parametrize("number", ["00000-of-00002", "00003-of-00002", "00001-of-99999"])
def test_a_number_that_no_part_can_have_is_part_of_the_name(number: str) -> None:
    assert parsed(f"a-{number}.gguf").stem == f"a-{number}"
    assert part_paths(f"a-{number}.gguf") == [f"a-{number}.gguf"]


def test_every_part_leads_to_all_parts() -> None:
    parts = ["/m/a-00001-of-00002.gguf", "/m/a-00002-of-00002.gguf"]
    assert [part_paths(path) for path in parts] == [parts, parts]
    assert [names.first_part(path) for path in parts] == [parts[0]] * 2


@pytest.mark.parametrize(
    ("models", "projectors", "expected"),
    [
        ({"a"}, ["mmproj.gguf"], "mmproj.gguf"),
        ({"a"}, ["mmproj-F16.gguf"], "mmproj-F16.gguf"),
        ({"a"}, ["mmproj-model-f16.gguf"], "mmproj-model-f16.gguf"),
        ({"a"}, ["mmproj-BF16.gguf", "mmproj-F16.gguf", "mmproj-F32.gguf"], "mmproj-F16.gguf"),
        ({"a"}, ["mmproj-b.gguf", "mmproj-c.gguf"], None),
        ({"a"}, [], None),
        ({"a", "b"}, ["mmproj.gguf"], None),
        ({"a", "b"}, ["mmproj-b.gguf"], None),
        ({"a", "b"}, ["mmproj-b.gguf", "mmproj-A-f16.gguf"], "mmproj-A-f16.gguf"),
        ({"a", "b"}, ["a-mmproj.gguf", "b-mmproj.gguf"], "a-mmproj.gguf"),
        ({"a", "b"}, ["a.mmproj-Q8_0.gguf"], "a.mmproj-Q8_0.gguf"),
        ({"a", "b"}, ["a-Q4_K_M-mmproj.gguf"], "a-Q4_K_M-mmproj.gguf"),
        ({"a", "a-2"}, ["mmproj-a-2.gguf"], None),
        ({"a", "a-2"}, ["mmproj-a-3.gguf", "mmproj-a-2.gguf"], "mmproj-a-3.gguf"),
        ({"a", "b"}, ["mmproj-ab.gguf"], None),
    ],
)
def test_a_projector_belongs_to_the_model_that_it_names_or_to_the_only_one(
    models: set[str], projectors: list[str], expected: str | None
) -> None:
    assert projector_for("a", models, projectors) == expected


def test_of_several_quantisations_q4_k_m_comes_first_then_four_bits_then_the_smallest() -> None:
    sizes = {"Q8_0": 8, "Q2_K": 2, "IQ4_XS": 4, "Q4_K_M": 5, "Q4_0": 4, "F16": 16, "": 1}
    order = sorted(
        sizes, key=lambda quantisation: names.preference(quantisation, sizes[quantisation])
    )
    assert order == ["Q4_K_M", "IQ4_XS", "Q4_0", "", "Q2_K", "Q8_0", "F16"]


KNOWN = ["google/gemma-3-4b-it", "google/gemma-3-12b-it", "qwen/qwen3-8b@q4_k_m", "Tiny"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tinny", ["Tiny"]),
        ("TINY", ["Tiny"]),
        ("qwen3-8b@q8_0", ["qwen/qwen3-8b@q4_k_m"]),
        ("qwen3", ["qwen/qwen3-8b@q4_k_m"]),
        ("gemma-3-4b", ["google/gemma-3-4b-it", "google/gemma-3-12b-it"]),
        ("gpt-4o", []),
        ("x" * 10_000_000, []),
    ],
)
def test_the_nearest_names_are_those_with_the_same_letters(name: str, expected: list[str]) -> None:
    assert nearest(name, KNOWN) == expected


def test_at_most_five_names_are_near() -> None:
    assert len(nearest("model", [f"model-{i}" for i in range(9)])) == 5


def test_a_wrong_name_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    known = [f"one-{i}" for i in range(9)]
    first = nearest("one-7x", known)
    monkeypatch.delattr("difflib.get_close_matches")
    assert first and nearest("one-7x", known) == first
    with pytest.raises(AttributeError):
        nearest("one-7x", [*known, "new"])


def test_the_nearest_name_comes_first_whatever_its_publisher() -> None:
    known = ["a/model-7-instruct", "a/model-767-instruct", "another-publisher/model-77-instruct"]
    assert nearest("a/model-77-instrct", known)[0] == "another-publisher/model-77-instruct"
