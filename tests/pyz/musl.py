"""Builds a Python for musl, the C library of Alpine and OpenWrt, from Debian's source packages.

The registries have no such Python. The compiler is zig, which brings musl's headers and builds for
any processor. About five minutes on two cores, once.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests import REPOSITORY

ZIG = os.environ.get("ZIG", f"{REPOSITORY}/.venv/zig/bin/python-zig")

# Python's setup.py names the folders of this machine's own library. -Wno-date-time: zig refuses
# times in programs, and Python shows the time of its build.
TOOLS = {
    "cc": """#!/bin/sh
for each do
  shift
  case $each in -[IL]/usr/*) ;; *) set -- "$@" "$each" ;; esac
done
exec {zig} cc -target {target} -dynamic -fno-sanitize=undefined -Wno-date-time "$@"
""",
    "ar": '#!/bin/sh\nexec {zig} ar "$@"\n',
    "ranlib": '#!/bin/sh\nexec {zig} ranlib "$@"\n',
}
CROSS = ("--build={machine}-linux-gnu", "--host={target}")
STATIC = (*CROSS, "--disable-shared", "--with-pic")

# Debian's name of each source, and the options of its configure script. Python is the last.
SOURCES = {
    "libffi": (*STATIC, "--disable-docs", "--disable-exec-static-tramp"),
    "zlib": ("--static",),
    "xz-utils": (*STATIC, "--disable-doc", "--disable-nls", "--disable-xz", "--disable-xzdec",
                 "--disable-lzmadec", "--disable-lzmainfo", "--disable-scripts"),
    "": (*CROSS, "--disable-test-modules", "--without-ensurepip", "--with-system-ffi",
         "--with-build-python=/usr/bin/{python}",
         # What configure cannot try, because programs for musl do not run here:
         "ac_cv_file__dev_ptmx=yes", "ac_cv_file__dev_ptc=no", "ac_cv_buggy_getaddrinfo=no",
         # What the loader in Debian 12, musl 1.2.3, lacks:
         "ac_cv_func_preadv2=no", "ac_cv_func_pwritev2=no"),
}  # fmt: skip
LEFT_OUT = shutil.ignore_patterns(
    "test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo", "__pycache__"
)


def system_python() -> str:
    """The name of Debian's own Python: the build needs one of the same version as the source."""
    return Path("/usr/bin/python3").resolve().name


def source_names() -> list[str]:
    """Debian's names of the sources."""
    return [name or system_python() for name in SOURCES]


def build_python(target: str, archives: Sequence[Path], root: Path) -> None:
    """Builds what Python needs and Python, and installs it in a root folder.

    `target` is as in x86_64-linux-musl; `archives` are the sources, in the order of SOURCES.
    """
    work = root.with_suffix(".build")
    shutil.rmtree(work, ignore_errors=True)
    installed, tools = work / "installed", work / "tools"
    names = {"target": target, "zig": ZIG, "python": system_python(),
             "machine": os.uname().machine}  # fmt: skip
    tools.mkdir(parents=True)
    for name, text in TOOLS.items():
        (tools / name).write_text(text.format(**names))
        (tools / name).chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{tools}:{os.environ['PATH']}",
        "CC": "cc", "AR": "ar", "RANLIB": "ranlib", "READELF": shutil.which("readelf") or "readelf",
        "CFLAGS": "-O1 -fPIC", "CPPFLAGS": f"-I{installed}/include",
        "LDFLAGS": f"-L{installed}/lib", "LIBFFI_INCLUDEDIR": f"{installed}/include",
        "PKG_CONFIG": "false",
    }  # fmt: skip
    for archive, (name, options) in zip(archives, SOURCES.items(), strict=True):
        tree = work / f"tree-{name or 'python'}"
        tree.mkdir()
        prefix = installed if name else "/usr"
        given = [option.format(**names) for option in options]
        make = ["make", "-j", str(os.cpu_count()), "install" if name else "all"]
        logged(["tar", "xf", str(archive), "--strip-components=1"], tree, environment)
        logged(["./configure", f"--prefix={prefix}", *given], tree, environment)
        logged(make, tree, environment)
    install(work / "tree-python", root / "usr")
    shutil.rmtree(work)


def logged(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Runs a command. Its output goes to a file beside the folder."""
    path = folder.with_suffix(".log")
    with path.open("a") as log:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=log, stderr=log, check=False
        )
    assert done.returncode == 0, f"{' '.join(command[:2])} failed: see {path}"


def install(tree: Path, prefix: Path) -> None:
    """Copies a Python that was built, and its library, into a folder."""
    name = system_python()
    library = prefix / "lib" / name
    shutil.copytree(tree / "Lib", library, ignore=LEFT_OUT)
    (library / "lib-dynload").mkdir()
    for path in tree.glob("build/lib.*/*"):
        shutil.copy(path, library / "lib-dynload")
    (prefix / "bin").mkdir(exist_ok=True)
    shutil.copy(tree / "python", prefix / "bin" / name)
    (prefix / "bin" / "python3").symlink_to(name)
