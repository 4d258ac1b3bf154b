"""Settings of `lmlite serve` from variables and from a file in TOML."""

import subprocess
import sys
from pathlib import Path

import pytest

from lmlite.cli import serve
from lmlite.cli.configuration import variables
from lmlite.cli.flags import MODEL_FLAG, SERVE_FLAGS, CommandError, limit_flags
from tests import REPOSITORY
from tests.support.documents import blocks
from tests.support.server_process import RunningServer


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lmlite.toml"


def refusal(*arguments: str) -> str:
    with pytest.raises(CommandError) as caught:
        serve.parsed(list(arguments))
    assert caught.value.code == 2
    return str(caught.value)


def test_a_flag_wins_over_a_variable_and_that_over_the_file(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def n_ctx(*arguments: str) -> int:
        n: int = serve.parsed([*arguments]).n_ctx
        return n

    assert n_ctx() is None
    file.write_text("ctx = 3\n")
    assert n_ctx("--config", str(file)) == 3
    monkeypatch.setenv("LMLITE_CONFIG", str(file))
    assert n_ctx() == 3
    monkeypatch.setenv("LMLITE_CTX", "2")
    assert n_ctx() == 2
    assert n_ctx("--ctx", "1") == 1
    monkeypatch.setenv("LMLITE_CTX", "")  # as one that is not set
    assert n_ctx() == 3


def test_a_list_is_replaced_and_not_added_to(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text('cors-origin = ["http://a.example", "http://b.example"]\nalias = "x"\n')
    given = serve.parsed(["--config", str(file)])
    assert given.cors_origin == ["http://a.example", "http://b.example"]
    assert given.aliases == ["x"]
    monkeypatch.setenv("LMLITE_CORS_ORIGIN", "http://c.example,null")
    assert serve.parsed(["--config", str(file)]).cors_origin == ["http://c.example", "null"]
    assert serve.parsed(["--cors-origin", "http://d.example"]).cors_origin == ["http://d.example"]


def test_paths_in_the_file_start_at_its_folder(file: Path) -> None:
    file.write_text('model = ["a.gguf", "/b.gguf"]\npresets = "presets"\n')
    given = serve.parsed(["--config", str(file)])
    assert given.more_files == [f"{file.parent}/a.gguf", "/b.gguf"]
    assert given.presets == f"{file.parent}/presets"
    assert serve.parsed(["c.gguf", "--config", str(file)]).more_files is None


def test_the_folder_of_models_stays_that_of_all_commands(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('models = "m"\n')
    monkeypatch.delenv("LMLITE_MODELS")
    assert serve.parsed(["--config", str(file)]).folders == [f"{file.parent}/m"]
    monkeypatch.setenv("LMLITE_MODELS", "/elsewhere")
    assert serve.parsed(["--config", str(file)]).folders is None


def test_a_switch_can_be_turned_off_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("strict = true\n")
    assert serve.parsed(["--config", str(file)]).strict is True
    monkeypatch.setenv("LMLITE_STRICT", "0")
    assert serve.parsed(["--config", str(file)]).strict is False


def test_every_flag_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {flag.key for flag in (MODEL_FLAG, *SERVE_FLAGS, *limit_flags())} - {"models"}
    for key in keys:
        monkeypatch.setenv(f"LMLITE_{key.upper().replace('-', '_')}", "x")
    assert {setting.flag.key for setting in variables()} == keys


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("port = 99999", "port: must be from 0 to 65535"),
        ('max-body = "8T"', "max-body: must be a number of bytes, such as 300M or 2G"),
        ("sandbox = true", "sandbox: must be one of auto, on, off"),
        ("strict = 3", "strict: must be true or false"),
        ("port = [1, 2]", "port: must be a single value"),
        ("port = {a = 1}", "port: must be a text, a number, true or false, or for a flag that may "
         "be repeated a list of them"),
    ],
)  # fmt: skip
def test_a_wrong_value_in_the_file_is_named(file: Path, text: str, sentence: str) -> None:
    file.write_text(text)
    assert refusal("--config", str(file)) == f"{file}: {sentence}"


@pytest.mark.parametrize("key", ["prot", "max_body", "config"])
def test_an_unknown_key_is_named_with_those_that_there_are(file: Path, key: str) -> None:
    file.write_text(f"{key} = 1")
    message = refusal("--config", str(file))
    assert message.startswith(f"{file}: there is no setting '{key}'; the settings are alias, ")
    assert ", port, " in message


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    assert refusal("--config", str(file)).startswith(f"{file} cannot be read: ")
    file.write_text("port = ")
    assert refusal("--config", str(file)).startswith(f"{file} cannot be read: ")


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLITE_PORT", "x")
    assert refusal() == "the variable LMLITE_PORT: must be from 0 to 65535"


def test_the_manuals_file_is_served(file: Path) -> None:
    (text,) = [block.text for block in blocks() if block.mark == f"run: tests/cli/{file_name()}"]
    file.write_text(text)
    with RunningServer("--config", str(file), LMLITE_ALIAS="mine") as server:
        assert server.get("/v1/models").json["data"][0]["id"] == "mine"


def file_name() -> str:
    return Path(__file__).name


def test_a_service_gets_rights_to_the_paths_of_its_file(file: Path) -> None:
    file.write_text('api-key-file = "keys"\ncache-dir = "prompts"\nport = 8080\nmodel = "m.gguf"\n')
    done = subprocess.run(
        [sys.executable, "-m", "lmlite", "unit", "systemd", "--config", str(file)],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    folder = file.parent
    assert (
        f"lmlite serve {folder}/m.gguf --config {file} --api-key-file %d/keys "
        f"--cache-dir {folder}/prompts\n" in done.stdout
    )
    assert f"LoadCredential=keys:{folder}/keys\n" in done.stdout
    assert f"ReadWritePaths={folder}/prompts\n" in done.stdout
