"""`python -m lmlite` is the command `lmlite`."""

import sys

from lmlite import allocator


def main() -> int:
    """The command; its exit code."""
    if sys.argv[1:2] == ["serve"]:
        allocator.begin_again()
    from lmlite.cli import command

    return command.main()


if __name__ == "__main__":
    sys.exit(main())
