"""The `lmlite` command as a shell uses it."""

import os
import subprocess
import sys

from tests import REPOSITORY


def test_a_reader_that_leaves_ends_the_command_without_a_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "lmlite", "help", "flags"],
        cwd=REPOSITORY, stdout=writer, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
