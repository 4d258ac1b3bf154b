"""Which patches of `native/patches/` the library has. Each can be removed."""

import pytest

from native.patches.apply import hunks
from tests import REPOSITORY
from tests.conftest import LLAMA_CPP


def is_applied(name: str) -> bool:
    """Whether the source tree, which may be one without patches, has every line of a patch."""
    patch = REPOSITORY / "native" / "patches" / f"{name}.patch"
    return patch.exists() and all(
        (LLAMA_CPP / path).is_file() and new in (LLAMA_CPP / path).read_text()
        for path, _, new in hunks(patch.read_text())
    )


# Without it, weights are multiplied by one token in another order than by many.
same_bits_in_any_batch = pytest.mark.skipif(
    not is_applied("products"), reason="needs native/patches/products.patch"
)
