"""The balancers' programs: those of this machine, or else Debian's, which `make balancers` fetches.

Debian's lie in a root folder of their own, and their own loader runs them there.
"""

import os
import shutil

from tests.pyz.roots import DEBIAN_NAMES, STORE, once, packages, unpack

NAMES = ("haproxy", "nginx")
ROOT = STORE / "balancers"


def program(name: str) -> list[str] | None:
    """The command that runs a balancer; None if it is missing."""
    if found := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin"):
        return [found]
    fetched = ROOT / "usr/sbin" / name
    if not fetched.is_file():
        return None
    loader = next(ROOT.glob("lib/*/ld-linux*.so.*"))
    libraries = f"{loader.parent}:{ROOT / 'usr/lib' / loader.parent.name}"
    return [str(loader), "--library-path", libraries, str(fetched)]


def main() -> None:
    """Fetches the programs that are missing. Raises CannotMakeRootError."""
    if not all(map(program, NAMES)):
        print("fetching HAProxy and nginx, 40 MB")
        debian_name = DEBIAN_NAMES[os.uname().machine]
        once(ROOT, lambda part: unpack(packages(debian_name, *NAMES), part))


if __name__ == "__main__":
    main()
