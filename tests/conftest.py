"""Fixtures that several test files need: the library, models, and the pinned source tree."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lmlite.worker.llama import capi
from lmlite.worker.llama.model import Model
from tests import REAL_MODEL, REPOSITORY
from tests.__main__ import N_PARTS
from tests.reliability.__main__ import ROWS
from tests.support.house import House, opened

SHARED_MODELS = REPOSITORY.parent / "shared" / "models"
DEFAULT_MODEL = REPOSITORY / "lmlite" / "models" / "tiny.gguf"
# How many times to repeat tests that should run many times: once in `make test`.
TIMES = int(os.environ.get("LMLITE_TIMES", "1"))
# Whoever started the tests in the background may have made them ignore Control-C, and children too.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Servers of the tests do not find the models of the user who runs them.
os.environ["LMLITE_MODELS"] = os.devnull
LLAMA_CPP = Path(os.environ.get("LMLITE_LLAMA_CPP", REPOSITORY / "native/build/llama.cpp"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """For `tests/__main__.py`."""
    parser.addoption("--part", type=int, help="run every other file of tests: part 1 or 2")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the files of the other part."""
    part = config.getoption("part")
    if part is not None:
        files = sorted({item.path for item in items})
        items[:] = [item for item in items if files.index(item.path) % N_PARTS == part - 1]


def pytest_collection_finish() -> None:
    """Excludes pytest's objects for thousands of tests from later garbage collections."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def figure(record_property: Any) -> Callable[[str, str], None]:
    """Records a measurement for a row of `make reliability`, by the row's number."""

    def note(number: str, text: str) -> None:
        assert number in {row.number for row in ROWS}, f"promises.txt has no row {number}"
        record_property(number, text)

    return note


@pytest.fixture(scope="session")
def lib() -> Any:
    """The native library. Tests that need it fail without it: `make test` builds it."""
    lib = capi.load()
    lib.llama_backend_init()
    return lib


@pytest.fixture(scope="session")
def llama_cpp() -> Path:
    """The pinned source tree of llama.cpp."""
    if not (LLAMA_CPP / "models").is_dir():
        pytest.skip("needs the source tree of llama.cpp, which `make native` fetches")
    return LLAMA_CPP


def shared_model(name: str) -> Path:
    """The path of a real model next to the repository. Skips the test if it is missing."""
    path = SHARED_MODELS / name
    if not path.is_file():
        pytest.skip(f"needs the model {name}, which is not part of the repository")
    return path


@pytest.fixture(scope="session")
def trial_path() -> Path:
    """A small trained chat model."""
    return shared_model("chat-trial.gguf")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The embedding model all-MiniLM-L6-v2."""
    return shared_model("all-minilm-l6-v2-q8_0.gguf")


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2-135M-Instruct, a real chat model with a vocabulary of 49,152 tokens."""
    if not REAL_MODEL.is_file():
        pytest.skip("needs the model that `make real-model` fetches")
    return REAL_MODEL


@pytest.fixture(scope="session")
def default_model(lib: Any) -> Iterator[Model]:
    """The embedded model."""
    model = Model(lib, str(DEFAULT_MODEL))
    yield model
    model.close()


@pytest.fixture(scope="session")
def special_model(
    lib: Any, llama_cpp: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    """A vocabulary with the special tokens of every template in llama.cpp's tree."""
    from tests.support.template_tree import write_special_vocabulary

    assert llama_cpp.is_dir()
    path = tmp_path_factory.mktemp("special") / "special.gguf"
    write_special_vocabulary(path)
    model = Model(lib, str(path), vocab_only=True)
    yield model
    model.close()


@pytest.fixture(scope="session")
def trial(lib: Any, trial_path: Path) -> Iterator[Model]:
    """The small trained chat model, loaded."""
    model = Model(lib, str(trial_path))
    yield model
    model.close()


@pytest.fixture(scope="session")
def endless(default_model: Model) -> dict[str, Any]:
    """Options that forbid end tokens: the embedded model generates until its context is full."""
    vocab = default_model.vocab
    ends = [token for token in range(vocab.n_tokens) if vocab.ends_generation(token)]
    return {"temperature": 0, "logit_bias": {str(token): -100 for token in ends}}


@pytest.fixture
def open_house() -> Iterator[Any]:
    """Opens servers with workers without models, and closes them after the test."""
    with ExitStack() as stack:
        yield lambda *args, **kwargs: stack.enter_context(opened(*args, **kwargs))


@pytest.fixture
def house(open_house: Any) -> House:
    """A server with a worker without a model."""
    made: House = open_house()
    return made
