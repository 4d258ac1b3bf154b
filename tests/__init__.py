"""The tests of lmlite; `make test` runs them."""

from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
