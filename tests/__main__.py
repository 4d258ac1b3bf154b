"""Runs the tests in two processes at once, each with every other file of tests.

    make test                    (or: python -m tests, with the arguments of pytest)

The first process reports as it goes; what the second one printed follows when both have ended.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence

N_PARTS = 2  # more would compete for the cores that a test's own server needs
NO_TESTS = 5  # pytest's exit code when it ran none


def main(arguments: Sequence[str]) -> int:
    """The exit code is pytest's: 0 if all tests passed, 5 if there were none to run."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    with tempfile.TemporaryFile() as output:
        second = subprocess.Popen(
            [*command, f"--part={N_PARTS}"], stdout=output, stderr=subprocess.STDOUT
        )
        codes = {subprocess.run([*command, "--part=1"], check=False).returncode, second.wait()}
        output.seek(0)
        sys.stdout.write(output.read().decode(errors="replace"))
    return max(codes - {NO_TESTS}, default=NO_TESTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
