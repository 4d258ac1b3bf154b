"""`python -m lmlite` is the command `lmlite`."""

import sys

from lmlite.cli import main

sys.exit(main())
