"""Damaged files, and forms that nobody would write: a few of those of the slow tier, each time."""

import pytest

from lmlite.gguf.file import read_model_file
from tests.fuzz import gguf as fuzz_gguf
from tests.fuzz import images as fuzz_images
from tests.fuzz import schemas as fuzz_schemas
from tests.fuzz import vocabularies as fuzz_vocabularies

SEED = 2  # the slow tier begins with 1


def test_damaged_models_end_no_worker() -> None:
    loader = fuzz_gguf.WorkerLoader()
    try:
        totals = fuzz_gguf.run(SEED, range(40), read_model_file, loader)
    finally:
        loader.close()
    assert totals["deaths"] == 0
    assert totals["refused"] > 0 < totals["served by the worker"]


@pytest.mark.usefixtures("llama_cpp")
def test_damaged_vocabularies_end_no_loader() -> None:
    totals = fuzz_vocabularies.run(SEED, range(6))
    assert totals["died"] == 0
    assert totals["refused"] > 0 < totals["used"]


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize(("name", "number"), [("gpt-2", 210), ("starcoder", 57)])
def test_damage_never_reads_past_a_text_that_has_lost_its_end(name: str, number: int) -> None:
    original = fuzz_vocabularies.Original(name)
    assert fuzz_vocabularies.mutant(original, name, 1, number) != original.data


@pytest.mark.parametrize("kind", fuzz_images.KINDS)
def test_damaged_images_end_no_worker(kind: str) -> None:
    totals = fuzz_images.run(SEED, kind, range(100))
    assert totals["died by the worker"] == 0
    assert totals["refused"] > 0 < totals["seen by the worker"]


def test_schemas_and_grammars_by_chance_are_compiled_or_refused_at_once() -> None:
    totals, _ = fuzz_schemas.run(SEED, range(200))
    assert totals["faults"] == 0
    kinds = ("response_format", "grammar")
    either = {f"{kind} {status}" for kind in kinds for status in (200, 400)}
    assert set(totals) == either | {"tools 200"}  # a tool is widened, not refused
