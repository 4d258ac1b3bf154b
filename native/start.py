"""The start of the one file. Pythons that are too old can read it, too."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036
    sys.exit("lmlite: needs Python 3.11 or newer; this is %d.%d" % sys.version_info[:2])  # noqa: UP031
try:
    from lmlite.__main__ import main

    sys.exit(main())
except ImportError as err:
    if err.name is None or err.name.startswith("lmlite"):
        raise
    sys.exit(
        "lmlite: needs Python's whole standard library, and there is no module "
        + err.name
        + " (Debian, Ubuntu: apt install python3)"
    )
