"""Root folders made of Debian's packages for any processor, and commands that run inside them.

`python -m tests.pyz.roots aarch64` fetches qemu and prints the path of its program for a processor.

A root holds a system's Python and what it depends on, and nothing of the repository. Programs of
another processor, or of a certain model of this one, run in qemu's user mode: `python3` is then a
script that starts the real one in qemu. So Python may also start itself by `sys.executable`, and
nothing needs to be registered with the kernel (binfmt_misc).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import REPOSITORY
from tests.pyz.musl import build_python, source_names

STORE = REPOSITORY / "native" / "build" / "roots"
DEBIAN_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "armhf"}
QEMU_NAMES = {"x86_64": "x86_64", "aarch64": "aarch64", "armv7l": "arm"}
PYTHON = ("python3-minimal", "libpython3-stdlib")
HOME = "/home/someone"

# Lists and packages lie in a folder of their own: nothing of this machine's apt is changed.
APT_CONFIGURATION = """
APT::Architecture "{debian_name}";
APT::Architectures {{ "{debian_name}"; }};
APT::Install-Recommends "false";
APT::Get::List-Cleanup "false";
APT::Sandbox::User "";
Acquire::Languages "none";
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
"""

# Mounts that end with the command. /proc and /dev are this machine's, as in a container. /mnt is a
# file system in memory.
ENTER = """
mount --rbind /proc "$0/proc" && mount --rbind /dev "$0/dev" &&
mount -t tmpfs none "$0/mnt" && exec chroot "$0" "$@"
"""

# Every file of it belongs to this machine's processor. `env` is there for programs that begin with
# `#!/usr/bin/env python3`.
EMULATED = """#!/qemu/busybox sh
exec /qemu/qemu {processor} -0 "$0" "$(/qemu/busybox realpath /usr/bin/python3.real)" "$@"
"""


class CannotMakeRootError(Exception):
    """What this machine lacks, as a sentence."""


@dataclass(frozen=True)
class Root:
    """A root folder. Its programs are a `processor`'s, as `uname -m` says it."""

    folder: Path
    processor: str

    def emulate(self, model: str | None) -> None:
        """Runs Python in qemu, on a model of a processor; "" means qemu's own choice.

        None means without qemu.
        """
        python = self.folder / "usr/bin/python3"
        real = python.with_name("python3.real")
        if not real.is_symlink():
            python.rename(real)
        python.unlink(missing_ok=True)
        if model is None:
            python.symlink_to("python3.real")
        else:
            python.write_text(EMULATED.format(processor=f"-cpu {model}" if model else ""))
            python.chmod(0o755)

    def command(self, *arguments: str) -> list[str]:
        """What runs a program in this root; the process keeps its id."""
        clean = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", f"HOME={HOME}"]
        return [*clean, *separate(), "sh", "-c", ENTER, str(self.folder), *arguments]

    def files(self) -> set[str]:
        """All files and folders, but for Python's bytecode of its own library."""
        library = self.folder / "usr/lib"
        return {
            str(path.relative_to(self.folder))
            for path in self.folder.rglob("*")
            if not ("__pycache__" in path.parts and path.is_relative_to(library))
        }

    def clear(self) -> Path:
        """Empties the home folder, and returns it."""
        home = self.folder / HOME[1:]
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        return home


def separate() -> list[str]:
    """What gives a command mounts of its own. Raises CannotMakeRootError."""
    command = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--map-root-user"])]
    done = run(*command, "true")
    if done.returncode:
        raise CannotMakeRootError(f"this needs root's rights or user namespaces: {done.stderr}")
    return command


def root_of(name: str) -> Root:
    """The root for a processor, or for musl if the name ends in -musl.

    Made once: this takes a quarter of a minute and 100 MB, for musl some minutes.
    Raises CannotMakeRootError.
    """
    processor, _, library = name.partition("-")

    def fill(folder: Path) -> None:
        if library == "musl":
            unpack(packages(DEBIAN_NAMES[processor], "musl"), folder)
            build_python(f"{processor}-linux-musl", sources(source_names()), folder)
        else:
            unpack(packages(DEBIAN_NAMES[processor], *PYTHON), folder)
        add_emulator(folder, f"usr/bin/qemu-{QEMU_NAMES[processor]}")

    root = Root(once(STORE / name, fill), processor)
    root.emulate(None if processor == os.uname().machine else "")
    return root


def add_emulator(folder: Path, qemu: str) -> None:
    """Adds qemu, the shell that starts it, and the folders of a running system."""
    tools = fetched_tools()
    for inner in ("qemu", "proc", "dev", "tmp", "mnt", "usr/bin"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    (folder / "tmp").chmod(0o1777)
    shutil.copy(emulator(tools, qemu), folder / "qemu/qemu")
    shutil.copy(tools / "bin/busybox", folder / "qemu/busybox")
    (folder / "usr/bin/env").symlink_to("/qemu/busybox")


def fetched_tools() -> Path:
    """The folder with qemu for every processor, and busybox. Both are for this machine."""
    names = ("qemu-user-static", "busybox-static")
    host = DEBIAN_NAMES[os.uname().machine]
    return once(STORE / "tools", lambda part: unpack(packages(host, *names), part))


def emulator(tools: Path, qemu: str) -> Path:
    """The path of a program of qemu, such as usr/bin/qemu-arm."""
    static = tools / f"{qemu}-static"  # newer versions leave this ending out
    return static if static.is_file() else tools / qemu


def once(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Makes a folder and fills it, unless it is there. An interrupted one is begun again."""
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        fill(part)
        part.rename(folder)
    return folder


# ---- Debian's packages ---------------------------------------------------------------------


def packages(debian_name: str, *names: str) -> list[Path]:
    """Fetches packages for Debian's `debian_name` of a processor, and all that they depend on.

    Raises CannotMakeRootError if there is no apt, or it cannot fetch them.
    """
    folder, apt = apt_for(debian_name)
    run(*apt, "clean")
    fetch(apt, ["install", "--yes", "--download-only", *names], folder)
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def sources(names: Sequence[str]) -> list[Path]:
    """Fetches the sources of Debian's packages, without Debian's patches.

    Raises CannotMakeRootError if there is no apt, or it cannot fetch them.
    """
    folder, apt = apt_for(DEBIAN_NAMES[os.uname().machine])
    line = "deb-src $(REPO_URI) $(CODENAME) $(COMPONENT)"
    lines = run(*apt, "indextargets", "--format", line, "Created-By: Packages", "Label: Debian")
    source_list = folder / "sources.list"
    source_list.write_text(lines.stdout)
    only = ("-o", f"Dir::Etc::sourcelist={source_list}", "-o", "Dir::Etc::sourceparts=-")
    downloads = folder / "sources"
    downloads.mkdir(exist_ok=True)
    fetch([*apt, *only], ["source", "--download-only", *names], downloads)
    return [next(downloads.glob(f"{name}_*.orig.tar.?z*")) for name in names]


def apt_for(debian_name: str) -> tuple[Path, list[str]]:
    """A folder for all that apt keeps, and the command that uses it."""
    if not all(map(shutil.which, ("apt-get", "dpkg-deb"))):
        raise CannotMakeRootError("this needs apt-get and dpkg-deb, Debian's tools")
    folder = STORE / f"apt-{debian_name}"
    for inner in ("state/lists/partial", "cache/archives/partial"):
        (folder / inner).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    configuration = folder / "apt.conf"
    configuration.write_text(APT_CONFIGURATION.format(debian_name=debian_name, folder=folder))
    return folder, ["env", f"APT_CONFIG={configuration}", "apt-get", "-qq"]


def fetch(apt: Sequence[str], command: Sequence[str], folder: Path) -> None:
    """Fetches apt's lists, and then what the command names."""
    updated = run(*apt, "update")  # one of several sources may fail without harm
    done = run(*apt, *command, cwd=folder)
    if done.returncode:
        why = updated.stderr + done.stderr
        raise CannotMakeRootError(f"apt cannot fetch {' '.join(command[2:])}: {why}")


def unpack(archives: Sequence[Path], folder: Path) -> None:
    """Unpacks packages into a folder, without running their scripts."""
    for archive in archives:
        subprocess.run(["dpkg-deb", "--extract", archive, folder], check=True)


def run(*command: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end; keeps what it prints."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


if __name__ == "__main__":
    print(emulator(fetched_tools(), f"usr/bin/qemu-{QEMU_NAMES[sys.argv[1]]}"))
