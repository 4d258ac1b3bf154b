"""What the library in a folder is, for `lmlite version`: `python -m lmlite.worker.llama FOLDER`."""

import sys

from lmlite.worker.llama import capi


def main() -> int:
    """Prints llama.cpp's version and the kind of processor, or why the library cannot be used."""
    try:
        lib = capi.load(sys.argv[1])
    except capi.LibraryError as err:
        print(err, file=sys.stderr)
        return 1
    print(lib.llama_version().decode(), lib.cpu_variant)
    return 0


if __name__ == "__main__":
    sys.exit(main())
