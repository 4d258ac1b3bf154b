"""The binding agrees with the library, and a library of another build is refused in a sentence."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lmlite import library
from lmlite.cli import command, serve
from lmlite.server.front.limits import DEFAULT_LIMITS
from lmlite.worker.llama import capi
from tests import REPOSITORY


def test_the_library_lays_structs_out_as_python_does(lib: Any) -> None:
    assert lib.lml_layout().decode().splitlines() == capi.expected_layout()


def test_every_prototype_is_understood() -> None:
    lines = [line for line in capi.PROTOTYPES.splitlines() if line]
    assert len(list(capi.signatures())) == len(lines)


def test_the_defaults_are_those_of_this_pin(lib: Any) -> None:
    params = lib.llama_context_default_params()
    seen = [params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max]
    assert seen == [512, 2048, 512, 1]
    assert (params.type_k, params.type_v, params.rope_scaling_type) == (1, 1, -1)
    assert (params.yarn_ext_factor, params.offload_kqv, params.swa_full) == (-1.0, True, True)


def test_a_wrong_handle_is_an_error_of_ctypes_and_not_a_crash(lib: Any) -> None:
    signatures = {name: (result, types) for name, result, types in capi.signatures()}
    context_type = signatures["llama_init_from_model"][0]
    with pytest.raises(ctypes.ArgumentError):
        lib.llama_model_n_embd_out(context_type(1))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda lines: lines[:-1], "lines, expected"),
        (lambda lines: [line.replace(" 8 ", " 12 ") for line in lines], "expected llama_batch"),
        (lambda lines: ["llama_batch sizeof 64", *lines[1:]], "llama_batch sizeof 64, expected"),
        (lambda _: [], "0 lines, expected"),
    ],
)
def test_any_other_layout_is_found_out(change: Any, difference: str) -> None:
    layout = "\n".join(change(capi.expected_layout()))
    assert difference in (capi.layout_difference(layout) or "")
    assert capi.layout_difference("\n".join(capi.expected_layout())) is None


@pytest.fixture(scope="module")
def foreign_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a library that has every symbol, and llama_batch one field longer."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("foreign")
    layout = ["llama_batch sizeof 64", *capi.expected_layout()[1:]]
    quoted = "".join(f'"{line}\\n"' for line in layout)
    others = [name for name, _, _ in capi.signatures() if name != "lml_layout"]
    source = f"#include <stdlib.h>\nconst char * lml_layout(void) {{ return {quoted}; }}\n"
    source += "".join(f"void {name}(void) {{ abort(); }}\n" for name in others)
    (folder / "foreign.c").write_text(source)
    command = [compiler, "-shared", "-fPIC", "-o", capi.LIBRARY_NAME, "foreign.c"]
    subprocess.run(command, cwd=folder, check=True)
    return folder


def test_a_library_of_another_build_is_refused_before_any_other_call(foreign_library: Path) -> None:
    with pytest.raises(capi.LibraryError, match=r"another llama.cpp.*\(llama_batch sizeof 64"):
        capi.load(str(foreign_library))


def test_serving_with_a_library_of_another_build_ends_with_one_sentence_and_code_1(
    foreign_library: Path,
) -> None:
    command = [sys.executable, "-m", "lmlite", "serve", "--port", "0", "--lib"]
    done = subprocess.run(
        [*command, str(foreign_library)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("lmlite: ")
    assert "was built from another llama.cpp than this lmlite is made for" in done.stderr


def test_a_missing_library_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(capi.LibraryError, match="run `make`"):
        capi.load(str(tmp_path))


def test_the_flag_and_then_the_variable_name_the_folder_of_the_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LMLITE_LIB", "/from/variable")
    assert library.library_folder("/from/flag") == Path("/from/flag")
    assert library.library_folder(None) == Path("/from/variable")
    options = command.parser().parse_args(["serve"])
    load = serve.load_of(options, DEFAULT_LIMITS)
    assert load.lib_path == "/from/variable", "a worker does not see the variable"
    monkeypatch.delenv("LMLITE_LIB")
    assert library.library_folder(None) == Path(library.__file__).parent / "lib"


@pytest.mark.parametrize(("part", "is_gpu"), [("cpu", False), ("cuda", True), ("vulkan", True)])
def test_a_part_of_ggml_tells_whether_there_is_a_gpu(
    tmp_path: Path, part: str, is_gpu: bool
) -> None:
    for name in ("cpu-x64", part):
        (tmp_path / f"libggml-{name}.so").touch()
    assert library.drives_a_gpu(str(tmp_path)) == is_gpu
