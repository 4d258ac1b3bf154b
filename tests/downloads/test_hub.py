"""What a name stands for, and which of a repository's files are fetched."""

from pathlib import Path

import pytest

from lmlite.downloads.hub import choose, parse
from lmlite.downloads.progress import DownloadError
from lmlite.server.models.catalog import Catalog
from tests.downloads.conftest import Fetch, model, names_in, parts, projector
from tests.support.fake_hub import COMMIT, FakeHub, Fault, entry

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", ("a/b", "", "")),
        ("a/b:Q8_0", ("a/b", "", "Q8_0")),
        ("a/b@q8_0", ("a/b", "", "q8_0")),
        ("a/b:s/c-Q8_0.gguf", ("a/b", "", "s/c-Q8_0.gguf")),
        (f"{HUB}/a/b", ("a/b", "", "")),
        (f"{HUB}/a/b:Q8_0", ("a/b", "", "Q8_0")),
        (f"{HUB}/a/b/", ("a/b", "", "")),
        (f"{HUB}/a/b/tree/main", ("a/b", "main", "")),
        (f"{HUB}/a/b/blob/main/c.gguf", ("a/b", "main", "c.gguf")),
        (f"{HUB}/a/b/resolve/v1/s/c%20d.gguf?download=true", ("a/b", "v1", "s/c d.gguf")),
    ],
)
def test_a_name_is_a_repository_and_maybe_a_choice(
    name: str, expected: tuple[str, str, str]
) -> None:
    assert parse(name, HUB) == expected


def test_an_address_elsewhere_is_a_file() -> None:
    assert parse("https://example.org/a/b/resolve/main/c.gguf", HUB) is None
    assert parse("https://huggingface.co:8443/a/b", HUB) is None


@pytest.mark.parametrize(
    "name",
    ["", "a", "../b", "a/..", "a/.b", "/a/b", "a//b", "a/b/c", "a/b c", "a\0/b", f"{HUB}/a",
     f"{HUB}/a/b/c"],
)  # fmt: skip
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(DownloadError, match="is not a model to fetch: give owner/repository, "):
        parse(name, HUB)


@pytest.mark.parametrize(
    ("sizes", "choice", "expected"),
    [
        ({"F16": 160, "Q4_K_M": 45, "Q4_K_S": 43, "Q2_K": 30}, "", "Q4_K_M"),
        ({"F16": 160, "Q4_K_S": 43, "IQ4_XS": 42, "Q2_K": 30}, "", "IQ4_XS"),
        ({"F16": 160, "Q8_0": 85}, "", "Q8_0"),
        ({"UD-Q4_K_XL": 50, "Q8_0": 85}, "", "UD-Q4_K_XL"),
        ({"UD-Q4_K_XL": 50, "Q8_0": 85}, "q4_k_xl", "UD-Q4_K_XL"),
        ({"Q4_K_M": 45, "Q8_0": 85}, "Q8_0", "Q8_0"),
        ({"Q4_K_M": 45, "Q8_0": 85}, "m-Q8_0", "Q8_0"),
        ({"Q4_K_M": 45, "Q8_0": 85}, "m-Q8_0.gguf", "Q8_0"),
    ],
)
def test_a_quantisation_is_chosen(sizes: dict[str, int], choice: str, expected: str) -> None:
    paths = {f"m-{name}.gguf": n_bytes for name, n_bytes in sizes.items()}
    assert choose(paths, "a/b", choice) == [f"m-{expected}.gguf"]


def test_files_that_only_help_a_model_are_not_chosen() -> None:
    paths = ["mmproj-Q4_K_M.gguf", "x-mmproj-F16.gguf", "imatrix.gguf", "mtp-Q4_K_M.gguf", "m.gguf"]
    assert choose(dict.fromkeys(paths, 1), "a/b", "") == ["m.gguf"]


def test_a_quantisation_in_a_folder_of_its_own_is_found() -> None:
    bf16 = [f"BF16/m-BF16-0000{n}-of-00002.gguf" for n in (1, 2)]
    paths = ["Q8_0/m-Q8_0.gguf", *bf16]
    assert choose(dict.fromkeys(paths, 1), "a/b", "bf16") == bf16
    assert choose(dict.fromkeys(paths, 1), "a/b", "BF16/m-BF16-00001-of-00002.gguf") == bf16


@pytest.mark.parametrize(
    ("paths", "choice", "message"),
    [
        ([], "", "a/b has no GGUF files; look for a repository that has them"),
        (["m-Q8_0.gguf", "m-F16.gguf", "n.gguf"], "Q4_0",
         "a/b has no Q4_0; it has F16, Q8_0, n.gguf"),
        (["m-Q8_0.gguf", "n-Q8_0.gguf"], "", "a/b has several models; name one: "
         "a/b:m-Q8_0.gguf, a/b:n-Q8_0.gguf"),
        (["m-Q8_0.gguf", "n-Q8_0.gguf"], "q8_0", "a/b has several models of q8_0; "
         "name one: a/b:m-Q8_0.gguf, a/b:n-Q8_0.gguf"),
        (["m-00001-of-00003.gguf", "m-00003-of-00003.gguf"], "",
         "a/b lacks m-00002-of-00003.gguf, a part of the model"),
    ],
)  # fmt: skip
def test_what_cannot_be_chosen_is_told(paths: list[str], choice: str, message: str) -> None:
    with pytest.raises(DownloadError) as caught:
        choose(dict.fromkeys(paths, 1), "a/b", choice)
    assert str(caught.value) == message


def test_a_repository_lies_in_a_folder_of_its_name(
    hub: FakeHub, fetch: Fetch, tmp_path: Path
) -> None:
    hub.files["a/b-GGUF"] = {
        "README.md": b"", "m-Q8_0.gguf": model(1), "m-Q4_K_M.gguf": model(), ".gitattributes": b""
    }  # fmt: skip
    assert fetch("a/b-GGUF") == [tmp_path / "a/b-GGUF/m-Q4_K_M.gguf"]
    assert names_in(tmp_path) == ["a/b-GGUF/m-Q4_K_M.gguf"]
    assert (tmp_path / "a/b-GGUF/m-Q4_K_M.gguf").read_bytes() == model()
    # The list has several pages, and all addresses name the commit.
    assert len(hub.asked_for("/tree/")) == 2
    assert {COMMIT} == {asked.path.split("/")[4] for asked in hub.asked_for("/resolve/")}


def test_an_address_of_the_hub_is_a_repositorys_file(
    hub: FakeHub, fetch: Fetch, tmp_path: Path
) -> None:
    hub.files["a/b"] = {"m-Q8_0.gguf": model(), "m-Q4_K_M.gguf": model(1)}
    assert fetch(f"{hub.url}/a/b/resolve/main/m-Q8_0.gguf") == [tmp_path / "a/b/m-Q8_0.gguf"]
    assert hub.asked[0].path == "/api/models/a/b/revision/main"


def test_all_parts_of_a_split_model_are_fetched(hub: FakeHub, fetch: Fetch, tmp_path: Path) -> None:
    hub.files["a/b"] = {f"F32/{name}": content for name, content in parts().items()}
    assert fetch("a/b") == [tmp_path / "a/b" / name for name in parts()]
    assert names_in(tmp_path) == [f"a/b/{name}" for name in parts()]


def test_all_parts_are_found_by_the_address_of_the_first(
    hub: FakeHub, fetch: Fetch, tmp_path: Path
) -> None:
    hub.files["a/b"] = parts()
    address = f"{hub.store_url}/a/b/resolve/main/big-00001-of-00003.gguf"
    assert fetch(address) == [tmp_path / "127.0.0.1/big" / name for name in parts()]


def test_the_projector_comes_with_the_model(hub: FakeHub, fetch: Fetch, tmp_path: Path) -> None:
    hub.files["a/b"] = {
        "m-Q8_0.gguf": model(),
        "mmproj-m-BF16.gguf": projector(),
        "mmproj-m-F16.gguf": projector(),
    }
    (path, _) = fetch("a/b")
    assert names_in(tmp_path) == ["a/b/m-Q8_0.gguf", "a/b/mmproj-m-F16.gguf"]
    entry = Catalog(folders=[str(tmp_path)]).find("a/m")
    assert entry.path == str(path)
    assert entry.projector_path == str(path.with_name("mmproj-m-F16.gguf"))


def test_a_projector_that_belongs_to_another_model_stays(
    hub: FakeHub, fetch: Fetch, tmp_path: Path
) -> None:
    hub.files["a/b"] = {
        "m-Q8_0.gguf": model(), "n-Q8_0.gguf": model(), "mmproj-n-F16.gguf": projector()
    }  # fmt: skip
    fetch("a/b:m-Q8_0")
    assert names_in(tmp_path) == ["a/b/m-Q8_0.gguf"]


@pytest.mark.parametrize(
    "path", [".m.gguf", "-m.gguf", "a\\m.gguf", "m\n.gguf", "m\x1b[2J.gguf", f"{'m' * 250}.gguf"]
)
def test_a_hostile_name_is_refused(hub: FakeHub, fetch: Fetch, tmp_path: Path, path: str) -> None:
    hub.files["a/b"] = {"m.gguf": model()}
    hub.listed = [entry(path, b"")]
    with pytest.raises(DownloadError, match=r"is not a plain name of a \.gguf file"):
        fetch("a/b")
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("path", ["../../m.gguf", "/etc/m.gguf", "a/../../m.gguf"])
def test_only_the_last_part_of_a_path_is_used(
    hub: FakeHub, fetch: Fetch, tmp_path: Path, path: str
) -> None:
    hub.files["a/b"] = {path: model()}
    fetch("a/b")
    assert names_in(tmp_path) == ["a/b/m.gguf"]


@pytest.mark.parametrize(
    "about",
    [b"<html>", b"[]", b"{}", b'{"sha": "main"}', b'{"sha": 7}', b"[" * 100_000],
)
def test_an_endpoint_of_another_kind_is_told(hub: FakeHub, fetch: Fetch, about: bytes) -> None:
    hub.files["a/b"] = {}
    hub.faults = [("/api/", Fault(body=about))]
    with pytest.raises(DownloadError) as caught:
        fetch("a/b")
    assert str(caught.value) == f"{hub.url} does not answer as Hugging Face does"


@pytest.mark.parametrize(
    "change",
    [{"size": None, "lfs": None}, {"lfs": {"oid": "x", "size": 1}}, {"path": 7}, {"type": None},
     {"size": -1, "lfs": None}, {"lfs": {"oid": "0" * 64, "size": "1"}}],
)  # fmt: skip
def test_a_strange_entry_is_never_fetched(
    hub: FakeHub, fetch: Fetch, tmp_path: Path, change: dict[str, object]
) -> None:
    hub.files["a/b"] = {}
    hub.listed = [entry("m.gguf", model()) | change]
    with pytest.raises(DownloadError):
        fetch("a/b")
    assert names_in(tmp_path) == []


def test_a_further_page_on_another_host_is_not_asked_for(hub: FakeHub, fetch: Fetch) -> None:
    hub.files["a/b"] = {"m.gguf": model()}
    hub.faults = [("/tree/", Fault(headers={"Link": f'<{hub.store_url}/x>; rel="next"'}))]
    fetch("a/b", token="secret")
    assert hub.asked_for("/x") == []
