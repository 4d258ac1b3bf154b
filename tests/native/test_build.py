"""What CMakeLists.txt makes of the compiler."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import REPOSITORY

TOOLS = f"{REPOSITORY / '.venv' / 'build' / 'bin'}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.long
@pytest.mark.parametrize("is_native", ["ON", "OFF"])
def test_gcc_keeps_the_tile_configuration_in_every_variant(
    llama_cpp: Path, tmp_path: Path, is_native: str
) -> None:
    cmake, ninja = shutil.which("cmake", path=TOOLS), shutil.which("ninja", path=TOOLS)
    libwebp = REPOSITORY / "native" / "build" / "libwebp"
    if not (cmake and ninja and shutil.which("g++") and libwebp.is_dir()):
        pytest.skip("needs CMake, Ninja, g++ and the source tree of libwebp")
    options = {
        "CMAKE_C_COMPILER": "gcc", "CMAKE_CXX_COMPILER": "g++", "CMAKE_MAKE_PROGRAM": ninja,
        "GGML_NATIVE": is_native, "LLAMA_CPP_DIR": llama_cpp, "LIBWEBP_DIR": libwebp,
    }  # fmt: skip
    flags = [f"-D{name}={value}" for name, value in options.items()]
    source = REPOSITORY / "native"
    configure = [cmake, "-S", str(source), "-B", str(tmp_path), "-G", "Ninja", *flags]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    listed = subprocess.run(
        [ninja, "-C", tmp_path, "-t", "commands", "libraries"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    compiled = [line for line in listed.stdout.splitlines() if line.endswith("amx/mmq.cpp")]
    assert compiled
    assert all(" -fno-dse " in line for line in compiled)
