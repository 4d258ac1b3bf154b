"""The catalog: which models there are, what their names mean, and when it looks again."""

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lmlite.errors import ModelFileError, ModelNotFound
from lmlite.gguf.file import ModelFile, read_model_file
from lmlite.server.models import catalog as catalog_module
from lmlite.server.models.catalog import LOOK_S, Catalog, CatalogEntry, models_folder
from lmlite.server.models.folders import Walk
from lmlite.server.models.loading import EMBEDDED_MODEL, EMBEDDED_PROJECTOR
from tests.server.models.test_folders import hub_file, put
from tests.support.gguf_writer import U16, Typed, Value, encode_gguf, tiny_llama_parts

ODD, SHOWN = os.fsdecode(b"caf\xe9\n"), "caf\\xe9\\n"


class Clock:
    """Stands still until it is moved."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def sized(path: Path, n_bytes: int) -> Path:
    os.truncate(put(path), n_bytes)
    return path


def named(catalog: Catalog) -> list[str]:
    return [entry.name for entry in catalog.entries()]


def in_folder(folder: Path, *names: str) -> Catalog:
    for name in names:
        put(folder / name)
    return Catalog(folders=[str(folder)])


def refusal(catalog: Catalog, name: str) -> str:
    with pytest.raises(ModelNotFound) as caught:
        catalog.find(name)
    assert (caught.value.status, caught.value.param) == (404, "model")
    return caught.value.message


# ---- entries -------------------------------------------------------------------------------


def test_every_field_of_a_model_in_lm_studios_layout(tmp_path: Path) -> None:
    folder = tmp_path / "owner" / "repository"
    sized(folder / "a-Q8_0.gguf", 7)
    for name in ("mmproj-F16.gguf", "a-Q8_0.json", "other.json", "model.yaml"):
        put(folder / name)
    assert in_folder(tmp_path).entries() == [
        CatalogEntry(
            name="owner/a",
            quantisation="Q8_0",
            publisher="owner",
            path=str(folder / "a-Q8_0.gguf"),
            n_bytes=7,
            projector_path=str(folder / "mmproj-F16.gguf"),
            settings_paths=(str(folder / "model.yaml"), str(folder / "a-Q8_0.json")),
        )
    ]


def test_every_field_of_a_file_of_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sized(tmp_path / "a-Q8_0.gguf", 7)
    for name in ("mmproj-b.gguf", "b.gguf", "a-Q8_0.json", "model.yaml"):
        put(tmp_path / name)
    assert Catalog(["a-Q8_0.gguf"], aliases={"x": "a-Q8_0.gguf"}).entries() == [
        CatalogEntry(
            name="a-Q8_0",
            quantisation="Q8_0",
            publisher=None,
            path=str(tmp_path / "a-Q8_0.gguf"),
            n_bytes=7,
            projector_path=str(tmp_path / "mmproj-b.gguf"),  # as before: the folder's only one
            settings_paths=(str(tmp_path / "model.yaml"), str(tmp_path / "a-Q8_0.json")),
            aliases=("x",),
            is_named=True,
        )
    ]


def test_the_embedded_model_has_its_projector() -> None:
    (entry,) = Catalog([str(EMBEDDED_MODEL)]).entries()
    assert (entry.name, entry.projector_path) == ("tiny", str(EMBEDDED_PROJECTOR))
    assert Catalog(folders=[str(EMBEDDED_MODEL.parent)]).find("tiny").projector_path == str(
        EMBEDDED_PROJECTOR
    )


def test_a_model_of_the_hubs_cache_keeps_its_name_and_size(tmp_path: Path) -> None:
    path = hub_file(tmp_path, name="a-Q8_0.gguf")
    os.truncate(path, 9)
    (entry,) = in_folder(tmp_path).entries()
    assert (entry.name, entry.path, entry.n_bytes) == ("owner/a", str(path), 9)


def test_a_split_model_is_one(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        sized(tmp_path / f"big-Q8_0-0000{number}-of-00003.gguf", 10**number)
    put(tmp_path / "big-Q8_0.json")
    first = str(tmp_path / "big-Q8_0-00001-of-00003.gguf")
    for catalog, name in ((in_folder(tmp_path), "big"), (Catalog([first]), Path(first).stem)):
        (entry,) = catalog.entries()
        assert (entry.name, entry.path, entry.n_bytes) == (name, first, 1110)
        assert entry.settings_paths == (str(tmp_path / "big-Q8_0.json"),)
        for spelling in ("big", "big-Q8_0", "big@q8_0", Path(first).name):
            assert catalog.find(spelling) == entry


def test_a_split_model_without_its_first_part_is_listed(tmp_path: Path) -> None:
    (entry,) = in_folder(tmp_path, "a-00002-of-00002.gguf").entries()
    assert (entry.name, entry.path) == ("a", str(tmp_path / "a-00001-of-00002.gguf"))


def test_the_yaml_file_of_a_repository_applies_to_its_subfolders(tmp_path: Path) -> None:
    put(tmp_path / "owner/repository/model.yaml")
    put(tmp_path / "owner/repository/Q8/model.yaml")
    catalog = in_folder(tmp_path, "owner/repository/Q8/a.gguf", "owner/repository/Q8_0/b.gguf")
    outer, inner = (str(tmp_path / f"owner/repository/{name}model.yaml") for name in ("", "Q8/"))
    assert catalog.find("a").settings_paths == (outer, inner)
    assert catalog.find("b").settings_paths == (outer,)


def test_a_quantisation_is_in_the_name_only_if_there_are_several(tmp_path: Path) -> None:
    catalog = in_folder(tmp_path, "a-Q8_0.gguf", "b-Q8_0.gguf", "b-q4_0.gguf", "b.gguf")
    assert named(catalog) == ["a", "b@q8_0", "b@q4_0", "b"]


def test_names_are_distinct(tmp_path: Path) -> None:
    paths = [str(put(tmp_path / folder / "a.gguf")) for folder in "xyz"]
    assert named(Catalog(paths)) == ["a", "a:2", "a:3"]
    catalog = Catalog(paths[1:2], [str(tmp_path)])
    assert [(entry.name, entry.path) for entry in catalog.entries()] == [
        ("a", paths[1]), ("a:2", paths[0]), ("a:3", paths[2])
    ]  # fmt: skip
    assert catalog.find("a:3").path == paths[2]


def test_a_file_named_twice_is_one_model(tmp_path: Path) -> None:
    path = put(tmp_path / "owner/repository/a-Q8_0.gguf")
    (tmp_path / "link.gguf").symlink_to(path)
    (entry,) = Catalog([str(path), str(path)], [str(tmp_path / "owner/..")]).entries()[:1]
    assert (entry.name, entry.publisher, entry.is_named) == ("a-Q8_0", "owner", True)
    assert named(Catalog([str(path)], [str(tmp_path)])) == ["a-Q8_0"]
    assert named(Catalog([str(tmp_path / "link.gguf")], [str(tmp_path)])) == ["link"]


def test_an_alias_alone_adds_its_file(tmp_path: Path) -> None:
    path = str(put(tmp_path / "a.gguf"))
    (entry,) = Catalog(aliases={"x": path, "y": path}).entries()
    assert (entry.name, entry.aliases, entry.is_named) == ("a", ("x", "y"), True)


def test_names_are_printable(tmp_path: Path) -> None:
    catalog = in_folder(tmp_path, f"{ODD}/{ODD}/{ODD}-Q8_0.gguf")
    assert named(catalog) == [f"{SHOWN}/{SHOWN}"]
    assert catalog.find(f"{SHOWN}-Q8_0.gguf").path.endswith(f"/{ODD}-Q8_0.gguf")
    assert f"no model '{SHOWN} x'" in refusal(catalog, f"{ODD} x")


# ---- names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["owner/Model@q8_0", "owner/Model@Q8_0", "Model@q8_0", "Model-Q8_0", "Model-Q8_0.gguf",
     "owner/Model-Q8_0", "owner/Model-Q8_0.gguf", "OWNER/MODEL@q8_0", "model-q8_0.GGUF"],
)  # fmt: skip
def test_a_quantisation_is_found_by_each_spelling(tmp_path: Path, name: str) -> None:
    folder = "owner/repository"
    catalog = in_folder(tmp_path, f"{folder}/Model-Q8_0.gguf", f"{folder}/Model-Q4_K_M.gguf")
    assert catalog.find(name).quantisation == "Q8_0"


@pytest.mark.parametrize("name", ["owner/Model", "Model", "owner/model", "model"])
def test_a_name_without_quantisation_means_q4_k_m_else_four_bits_else_the_smallest(
    tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "owner/repository"
    catalog = Catalog(folders=[str(tmp_path)], clock=Clock())
    for quantisation, n_bytes in (("F16", 16), ("Q8_0", 8), ("Q4_0", 5), ("Q4_K_M", 6)):
        sized(folder / f"Model-{quantisation}.gguf", n_bytes)
    for expected in ("Q4_K_M", "Q4_0", "Q8_0", "F16"):
        catalog = Catalog(folders=[str(tmp_path)])
        assert catalog.find(name).quantisation == expected
        (folder / f"Model-{expected}.gguf").unlink()


def test_an_alias_comes_before_a_name_and_a_name_before_other_spellings(tmp_path: Path) -> None:
    a, b = (str(put(tmp_path / name)) for name in ("a.gguf", "a-Q8_0.gguf"))
    assert Catalog([a, b]).find("a").path == a
    assert Catalog([a, b], aliases={"a": b}).find("a").path == b
    assert Catalog([b]).find("a").path == b


def test_the_case_counts_only_if_it_must(tmp_path: Path) -> None:
    catalog = in_folder(tmp_path, "a.gguf", "A.gguf")
    assert [catalog.find(name).name for name in ("a", "A")] == ["a", "A"]


def test_an_ambiguous_name_lists_the_candidates(tmp_path: Path) -> None:
    catalog = in_folder(tmp_path, "x/r/a.gguf", "y/r/a-Q8_0.gguf", "y/r/a-F16.gguf", "z/r/b.gguf")
    expected = "the name 'A' fits 3 models; name one of them: x/a, y/a@f16, y/a@q8_0"
    assert refusal(catalog, "A") == expected
    assert catalog.find("y/a@f16").quantisation == "F16"


def test_an_unknown_name_lists_all_of_a_few_models(tmp_path: Path) -> None:
    path = str(put(tmp_path / "a.gguf"))
    catalog = Catalog([path], aliases={"x": path})
    assert refusal(catalog, "gpt-4o") == "there is no model 'gpt-4o'; this server has: x, a"
    assert refusal(Catalog(), "a") == "there is no model 'a'; this server has no models"


def test_an_unknown_name_lists_the_nearest_of_many_models(tmp_path: Path) -> None:
    catalog = in_folder(tmp_path, "gemma-3-4b.gguf", *(f"x{i}.gguf" for i in range(9)))
    assert refusal(catalog, "gemma3-4b") == (
        "there is no model 'gemma3-4b'; the nearest of 10 names here: gemma-3-4b"
    )
    assert refusal(catalog, "y" * 1000) == (
        f"there is no model '{'y' * 200}'; none of the 10 names here is like it"
    )


def test_a_path_is_not_a_name(tmp_path: Path) -> None:
    path = put(tmp_path / "models" / "a.gguf")
    other = put(tmp_path / "b.gguf")
    catalog = in_folder(path.parent)
    for name in (str(path), str(other), "../b", "../b.gguf", "./a", "/etc/passwd", "", "@q4_0"):
        assert "there is no model" in refusal(catalog, name)


# ---- changes -------------------------------------------------------------------------------


@pytest.fixture
def n_scans(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often folders were walked."""
    scans: list[Walk] = []

    def walk() -> Walk:
        scans.append(Walk())
        return scans[-1]

    monkeypatch.setattr(catalog_module, "Walk", walk)
    return lambda: len(scans)


def test_unchanged_folders_are_scanned_until_two_scans_agree(
    tmp_path: Path, n_scans: Callable[[], int]
) -> None:
    put(tmp_path / "a.gguf")
    clock = Clock()
    catalog = Catalog(folders=[str(tmp_path)], clock=clock)
    for expected in (1, 2, 2, 2):
        for _ in range(3):
            assert named(catalog) == ["a"]
        assert n_scans() == expected
        clock.now_s += LOOK_S


def test_a_new_file_is_noticed_at_the_next_look(tmp_path: Path) -> None:
    clock = Clock()
    catalog = Catalog(folders=[str(tmp_path / "models")], clock=clock)
    assert named(catalog) == []
    put(tmp_path / "models/owner/repository/a.gguf")
    assert named(catalog) == []
    clock.now_s += LOOK_S
    assert named(catalog) == ["owner/a"]
    shutil.rmtree(tmp_path / "models")
    clock.now_s += LOOK_S
    assert named(catalog) == []


def test_a_file_that_grows_is_listed_with_its_size_in_the_end(tmp_path: Path) -> None:
    clock = Clock()
    catalog = Catalog(folders=[str(tmp_path)], clock=clock)
    for n_bytes in (1, 2, 3):  # as while it is copied, which does not change the folder
        sized(tmp_path / "a.gguf", n_bytes)
        assert [entry.n_bytes for entry in catalog.entries()] == [n_bytes]
        clock.now_s += LOOK_S


def test_an_unknown_name_looks_at_once(tmp_path: Path) -> None:
    catalog = Catalog(folders=[str(tmp_path / "models")], clock=Clock())
    assert named(catalog) == []
    put(tmp_path / "models" / "a.gguf")
    assert catalog.find("a").name == "a"


def test_what_lies_beside_a_file_of_the_command_line_is_noticed(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "a.gguf"
    catalog = Catalog([str(path)], clock=clock)
    assert [(entry.name, entry.n_bytes) for entry in catalog.entries()] == [("a", 0)]
    sized(path, 5)
    settings = put(tmp_path / "a.json")
    clock.now_s += LOOK_S
    (entry,) = catalog.entries()
    assert (entry.n_bytes, entry.settings_paths) == (5, (str(settings),))


def test_a_thread_does_not_wait_for_anothers_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    catalog = in_folder(tmp_path, "a.gguf")
    catalog = Catalog(folders=[str(tmp_path)], clock=clock)
    assert named(catalog) == ["a"]
    put(tmp_path / "b.gguf")
    clock.now_s += LOOK_S
    looks, goes_on = threading.Event(), threading.Event()

    def slow_walk() -> Walk:
        looks.set()
        assert goes_on.wait(20)
        return Walk()

    monkeypatch.setattr(catalog_module, "Walk", slow_walk)
    thread = threading.Thread(target=catalog.entries)
    thread.start()
    assert looks.wait(20)
    assert named(catalog) == ["a"]
    goes_on.set()
    thread.join()
    assert named(catalog) == ["a", "b"]


def test_a_folder_that_is_not_listed_in_full_is_noted(tmp_path: Path) -> None:
    path = put(tmp_path / "file")
    expected = f"the folder {path} cannot be read: Not a directory"
    assert Catalog(folders=[str(path), str(tmp_path / "missing")]).notes() == (expected,)


# ---- headers -------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the files whose headers were read."""
    paths: list[str] = []

    def read(path: str) -> ModelFile:
        paths.append(path)
        return read_model_file(path)

    monkeypatch.setattr(catalog_module, "read_model_file", read)
    return paths


def write_split(folder: Path) -> tuple[Path, Path]:
    """A llama whose second half of tensors lies in a second file."""
    metadata, tensors = tiny_llama_parts()
    half = len(tensors) // 2
    count: dict[str, Value] = {"split.count": Typed(U16, 2), "split.tensors.count": len(tensors)}
    paths = folder / "a-00001-of-00002.gguf", folder / "a-00002-of-00002.gguf"
    for number, (path, keys, part) in enumerate(
        zip(paths, (metadata, {}), (tensors[:half], tensors[half:]), strict=True)
    ):
        path.write_bytes(encode_gguf({**keys, **count, "split.no": Typed(U16, number)}, part))
    return paths


def fault(catalog: Catalog, entry: CatalogEntry) -> str:
    with pytest.raises(ModelFileError) as caught:
        catalog.read(entry)
    return str(caught.value)


def test_no_header_is_read_before_it_is_asked_for(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(encode_gguf(*tiny_llama_parts()))
    catalog = in_folder(tmp_path)
    entry = catalog.find("a")
    assert reads == []
    assert catalog.read(entry) == read_model_file(path)
    assert catalog.read(entry) is catalog.read(entry)
    assert reads == [str(path)]
    os.utime(path, ns=(1, 1))
    assert catalog.read(entry).parts[0].mtime_ns == 1
    assert reads == [str(path)] * 2


def test_a_fault_is_kept_until_the_file_changes(tmp_path: Path, reads: list[str]) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"<html>")
    catalog = in_folder(tmp_path)
    entry = catalog.find("a")
    expected = "a.gguf cannot be loaded: it is a web page, not a GGUF file"
    assert [fault(catalog, entry) for _ in range(3)] == [expected] * 3
    assert len(reads) == 1
    path.write_bytes(encode_gguf(*tiny_llama_parts()))
    assert catalog.read(entry).architecture == "llama"
    path.unlink()
    assert fault(catalog, entry) == "a.gguf cannot be loaded: it does not exist"


def test_a_missing_part_is_a_fault_until_it_is_there(tmp_path: Path, reads: list[str]) -> None:
    first, second = write_split(tmp_path)
    second.rename(tmp_path / "away")
    catalog = in_folder(tmp_path)
    entry = catalog.find("a")
    expected = f"{second.name} cannot be loaded: it does not exist"
    assert [fault(catalog, entry) for _ in range(2)] == [expected] * 2
    assert reads == [str(first)]
    (tmp_path / "away").rename(second)
    assert [part.path for part in catalog.read(entry).parts] == [str(first), str(second)]
    first.unlink()
    assert fault(catalog, entry) == f"{first.name} cannot be loaded: it does not exist"


def test_a_model_of_the_hubs_cache_is_read_through_its_links(tmp_path: Path) -> None:
    first, second = write_split(tmp_path)
    for part in (first, second):
        part.rename(hub_file(tmp_path, name=f"Q8_0/{part.name}").resolve())
    catalog = in_folder(tmp_path)
    assert len(catalog.read(catalog.find("owner/a")).parts) == 2


def test_one_thread_reads_and_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_bytes(encode_gguf(*tiny_llama_parts()))
    catalog = in_folder(tmp_path)
    entry = catalog.find("a")
    n_reads, goes_on = threading.Semaphore(0), threading.Event()

    def slow_read(path: str) -> ModelFile:
        n_reads.release()
        assert goes_on.wait(20)
        return read_model_file(path)

    monkeypatch.setattr(catalog_module, "read_model_file", slow_read)
    files: list[ModelFile] = []
    threads = [threading.Thread(target=lambda: files.append(catalog.read(entry))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert n_reads.acquire(timeout=20)
    goes_on.set()
    for thread in threads:
        thread.join()
    assert len(files) == 4
    assert all(file is files[0] for file in files)
    assert not n_reads.acquire(blocking=False)


def test_the_description_of_a_file_that_has_gone_is_forgotten(
    tmp_path: Path, reads: list[str]
) -> None:
    clock = Clock()
    path = tmp_path / "a.gguf"
    path.write_bytes(encode_gguf(*tiny_llama_parts()))
    catalog = Catalog(folders=[str(tmp_path)], clock=clock)
    entry = catalog.find("a")
    catalog.read(entry)
    path.rename(tmp_path / "away")
    clock.now_s += LOOK_S
    assert named(catalog) == []
    (tmp_path / "away").rename(path)
    catalog.read(entry)
    assert len(reads) == 2


# ---- the folder for models -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LMLITE_MODELS": "/m", "XDG_DATA_HOME": "/data"}, "/m"),
        ({"LMLITE_MODELS": "~/m"}, "/home/me/m"),
        ({"LMLITE_MODELS": "", "XDG_DATA_HOME": "/data"}, "/data/lmlite/models"),
        ({"XDG_DATA_HOME": "data"}, "/home/me/.local/share/lmlite/models"),
        ({}, "/home/me/.local/share/lmlite/models"),
    ],
)
def test_the_folder_for_models(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("LMLITE_MODELS", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **variables}.items():
        monkeypatch.setenv(name, value)
    assert models_folder() == Path(expected)
