"""The rules of the house: floors, imports, sizes, and a manual that tells the truth."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite import cli

REPOSITORY = Path(__file__).parent.parent
PACKAGE = REPOSITORY / "lmlite"
README = (REPOSITORY / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in (PACKAGE / "manual").glob("*.md")}
MODULES = sorted(PACKAGE.rglob("*.py"))

# A module imports from lower floors only.
FLOORS = [
    ["errors", "library", "allocator", "server.routes"],
    ["messages", "gguf_header", "server.limits", "server.keys", "server.systemd"],
    ["frames", "gguf_shape", "gguf_projector", "worker.mtmd"],
    ["gguf"],
    ["memory_estimate"],
    ["worker.capi", "worker.text", "worker.prefix", "worker.bridge_request", "worker.threads",
     "worker.truncation",
     "worker.breaker",
     "worker.meter", "worker.tool_words", "worker.call_grammar", "worker.triggers",
     "server.logs", "server.wire",
     "server.log_stream", "server.fields", "server.answers",
     "server.watchdog", "server.suspects", "server.restarts", "server.reply",
     "server.model_check", "worker.model_files",
     "worker.sandbox", "worker.template_limits", "worker.mappings",
     "server.machine_memory",
     "server.stored_responses", "server.image_formats", "server.gbnf", "server.patterns",
     "server.schema_parts", "server.schema_faults", "worker.number_grammar"],
    ["worker.llama", "worker.checkpoints", "worker.rearrangement", "server.worker_process",
     "server.open_requests",
     "server.schema_bounds", "server.schema_definitions", "server.schema_numbers",
     "worker.json_grammar", "worker.plain_tools", "server.sampling", "server.error_bodies",
     "server.gate", "server.chunked_body", "server.custom_tools", "server.content_parts",
     "server.tool_choice"],
    ["server.connection", "server.images", "server.supervisor", "worker.arranger",
     "server.schema_merging", "server.schema_texts"],
    ["worker.answer", "worker.embedder", "worker.media", "worker.samplers", "server.registry",
     "server.sender", "server.message_blocks", "server.schema_reader"],
    ["worker.chat_template", "worker.memory", "worker.sequence", "server.schemas",
     "server.guided_decoding"],
    ["worker.batcher", "server.answer_forms"],
    ["worker.logprobs", "server.chat_requests"],
    ["worker.engine", "worker.preparer", "server.openai_requests", "server.response_tools"],
    ["server.tally", "server.openai_replies", "server.dry_run", "server.input_items"],
    ["server.responses_requests"],
    ["server.metrics", "server.responses_replies", "server.messages_requests",
     "server.messages_replies", "server.tokenizer_api", "server.models_replies"],
    ["server.listener"],
    ["worker.__main__", "server.http"],
    ["flags"],
    ["cli"],
    ["__main__"],
]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 450


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if name.removeprefix("lmlite.") in LEVEL]
            yield from modules or [node.module]


def test_every_module_has_a_floor() -> None:
    names = {name_of(path) for path in MODULES if path.name != "__init__.py"}
    assert names == set(LEVEL)


def test_imports_point_down() -> None:
    wrong = [
        f"{name_of(path)} imports {target}"
        for path in MODULES
        if path.name != "__init__.py"
        for module in imported(path)
        if (target := module.removeprefix("lmlite.")) in LEVEL
        and LEVEL[target] >= LEVEL[name_of(path)]
    ]
    assert wrong == []


def test_server_and_worker_never_import_each_other() -> None:
    for path in MODULES:
        sides = {module.split(".")[1] for module in imported(path) if module.count(".") > 1}
        if path.parent.name in ("server", "worker"):
            assert not sides & ({"server", "worker"} - {path.parent.name}), path


def test_ctypes_appears_only_in_the_worker() -> None:
    users = {path.parent.name for path in MODULES if "ctypes" in set(imported(path))}
    assert users == {"worker"}


def test_nothing_is_imported_but_the_standard_library() -> None:
    allowed = sys.stdlib_module_names | {"lmlite"}
    foreign = {
        f"{name_of(path)}: {module}"
        for path in MODULES
        for module in imported(path)
        if module.split(".")[0] not in allowed
    }
    assert foreign == set()


def test_no_timeout_asks_the_clock_that_people_set() -> None:
    """It may jump by an hour. Only what is shown to people is told by it."""
    shown = {"server.http", "server.logs"}
    asking = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("time.time", "time.time_ns", "datetime.datetime.now")
    }
    assert asking == shown


def test_serving_loads_no_library_and_no_http_client() -> None:
    """What is native is the worker's; the client brings `email` and `ssl`, 6 MiB for nothing."""
    idle = {"ctypes", "http.client", "http.server", "email", "ssl"}
    check = f"import sys, lmlite.cli; print({idle} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", check], cwd=REPOSITORY, capture_output=True)
    assert done.stdout == b"set()\n"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_file_says_what_it_is_for_and_fits_a_readers_mind(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no docstring"
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            n_lines = (node.end_lineno or 0) - node.lineno + 1
            assert n_lines <= MAX_FUNCTION_LINES, f"{node.name} has {n_lines} lines"


def test_no_file_is_called_after_nothing() -> None:
    vague = {"utils", "util", "helpers", "common", "types", "base", "misc"}
    assert not vague & {path.stem for path in MODULES}


def tracked_files() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("needs the git checkout")
    return done.stdout.splitlines()


def test_the_manuals_file_tree_is_the_real_one() -> None:
    """Each line of the tree is an indented path and what it is for; folders end in a slash."""
    block = re.search(r"<!-- tree -->\n```\n(.*?)```", PAGES["files"], re.DOTALL)
    assert block is not None
    listed: set[str] = set()
    folders: list[str] = []
    for line in block[1].splitlines():
        indent = (len(line) - len(line.lstrip())) // 2
        for entry in re.split(r"  +", line.strip())[0].split(", "):
            folders = folders[:indent]
            if entry.endswith("/"):
                folders.append(entry)
            else:
                listed.add("".join(folders) + entry)
    assert listed == {name for name in tracked_files() if not name.endswith("__init__.py")}


@pytest.mark.parametrize("command", ["serve", "log stream"])
def test_the_manual_shows_the_help_text(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    parser = cli.parser()
    for word in command.split():
        (actions,) = [a for a in parser._actions if isinstance(a.choices, dict)]
        assert isinstance(actions.choices, dict)
        parser = actions.choices[word]
    block = re.search(rf"<!-- help {command} -->\n```\n(.*?)```", PAGES["flags"], re.DOTALL)
    assert block is not None
    assert block[1] == parser.format_help()


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.splitlines()) <= 250
    assert set(re.findall(r"\(lmlite/manual/([a-z-]+)\.md\)", README)) == PAGES.keys()


def test_help_prints_a_page_or_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "images"]) == 0
    assert capsys.readouterr().out == PAGES["images"]
    assert cli.main(["help"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed == {name: text.splitlines()[0].lstrip("# ") for name, text in PAGES.items()}


def test_help_for_what_has_no_page_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "../errors"]) == 2
    assert capsys.readouterr().err == (
        "lmlite: there is no page on ../errors; lmlite help lists the topics\n"
    )


def test_the_readme_names_every_make_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE):
        assert f"`make {target}" in README, target
