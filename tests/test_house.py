"""The rules of the house: floors, imports, sizes, and a manual that tells the truth."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmlite.cli import command as cli
from lmlite.cli import manual
from tests import REPOSITORY

PACKAGE = REPOSITORY / "lmlite"
README = (REPOSITORY / "README.md").read_text()
PAGES = {path.stem: path.read_text() for path in (PACKAGE / "manual").glob("*.md")}
MODULES = sorted(PACKAGE.rglob("*.py"))

# A folder of code, and the entries of its README in reading order.
FOLDERS = sorted({path.parent for path in MODULES})
ENTRIES = re.compile(r"^- `([^`]+?)/?`: .+", re.MULTILINE)
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 460


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


NAMES = {f"lmlite.{name_of(path)}" for path in MODULES}


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it, by its full name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else node.module


def room_in(folder: Path, module: str) -> str | None:
    """Which entry of a folder a module belongs to, if any."""
    inside = module.removeprefix(".".join(folder.relative_to(REPOSITORY).parts) + ".")
    return inside.split(".")[0] if inside != module else None


@pytest.mark.parametrize("folder", FOLDERS, ids=str)
def test_a_folder_lists_its_entries_and_each_imports_only_what_is_listed_below_it(
    folder: Path,
) -> None:
    readme = (folder / "README.md").read_text()
    assert len(readme.splitlines()) <= 40
    listed = ENTRIES.findall(readme)
    present = {
        path.name for path in tracked(folder) if path.name not in ("__init__.py", "README.md")
    }
    assert set(listed) == present and len(listed) == len(present)
    rooms = [name.removesuffix(".py") for name in listed]
    upward = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in MODULES
        if path.is_relative_to(folder) and path.name != "__init__.py"
        for module in imported(path)
        if (target := room_in(folder, module)) in rooms
        and target != (own := path.relative_to(folder).with_suffix("").parts[0])
        and rooms.index(target) < rooms.index(own)
    ]
    assert upward == []


@pytest.mark.parametrize("readme", sorted((REPOSITORY / "tests").rglob("README.md")), ids=str)
def test_a_readme_of_the_tests_lists_its_folder(readme: Path) -> None:
    lines = [
        line.partition(":")[0] for line in readme.read_text().splitlines() if line[:3] == "- `"
    ]
    listed = [name.rstrip("/") for line in lines for name in re.findall(r"`([^`]+)`", line)]
    hidden = ("__init__.py", "README.md")
    assert sorted(listed) == sorted(
        path.name for path in tracked(readme.parent) if path.name not in hidden
    )


def test_server_and_worker_never_import_each_other() -> None:
    for path in MODULES:
        sides = {module.split(".")[1] for module in imported(path) if module.count(".") > 1}
        side = name_of(path).split(".")[0]
        if side in ("server", "worker"):
            assert not sides & ({"server", "worker"} - {side}), path


def test_ctypes_appears_only_in_the_worker() -> None:
    users = {name_of(path).split(".")[0] for path in MODULES if "ctypes" in set(imported(path))}
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


def test_no_timeout_uses_the_wall_clock() -> None:
    """It may jump by an hour. Only what is shown to people is told by it."""
    shown = {"cli.ps", "server.http", "server.logs", "server.front.handler",
             "server.api.ollama.routes", "server.models.downloads"}  # fmt: skip
    asking = {
        name_of(path)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("time.time", "time.time_ns", "datetime.datetime.now")
    }
    assert asking == shown


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        # `http.server` brings `email` and `ssl`: 2 MiB and 15 ms, which only serving needs.
        ("lmlite.cli.serve", {"ctypes", "http.client", "http.server", "email", "ssl"}),
        ("lmlite.server.http", {"lmlite.server.models.yaml_subset"}),
        ("lmlite.cli.command", {"lmlite.cli.serve", "lmlite.cli.client"}),
        ("lmlite", {"lmlite.child", "subprocess"}),  # `lmlite.start` is imported at its first use
        # What is native is the worker's. The others are for few models and for wrong names.
        ("lmlite.server.http", {"ctypes", "difflib", "lmlite.server.models.yaml_subset"}),
    ],
)
def test_nothing_is_loaded_before_it_is_needed(module: str, unwanted: set[str]) -> None:
    check = f"import sys, {module}; print({unwanted} & sys.modules.keys())"
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


def test_no_file_has_a_meaningless_name() -> None:
    vague = {"utils", "util", "helpers", "common", "types", "base", "misc"}
    assert not vague & {path.stem for path in MODULES}


def tracked(folder: Path) -> set[Path]:
    """The files and folders that a folder holds, without what was built."""
    inside = {REPOSITORY / name for name in tracked_files()}
    return {
        folder / path.relative_to(folder).parts[0] for path in inside if path.is_relative_to(folder)
    }


def tracked_files() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("needs the git checkout")
    return done.stdout.splitlines()


COMMANDS = ("serve", "log stream", "get", "ls", "ps", "load", "unload", "status", "import", "rm",
            "version", "chat", "rpc-server")  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
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


def test_the_manual_names_the_versions_of_the_programs_that_are_run() -> None:
    pins = (REPOSITORY / "Makefile").read_text()
    pins += (REPOSITORY / "tests" / "clients" / "javascript.py").read_text()
    page = (REPOSITORY / "lmlite" / "manual" / "programs.md").read_text()
    versions = re.findall(r"^\| [^|]+ \| ([\d.]+) \|", page, re.MULTILINE)
    assert len(versions) > 10
    assert [v for v in versions if not re.search(rf"[=@]{re.escape(v)}[\s\"]", pins)] == []


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.splitlines()) <= 250
    assert set(re.findall(r"\(lmlite/manual/([a-z-]+)\.md\)", README)) == PAGES.keys()


def test_help_prints_a_page_or_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "images"]) == 0
    assert capsys.readouterr().out == PAGES["images"]
    assert cli.main(["help"]) == 0
    listed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert listed == {name: text.splitlines()[0].lstrip("# ") for name, text in PAGES.items()}


def test_help_prints_the_files_of_a_page(capsys: pytest.CaptureFixture[str]) -> None:
    folder = PACKAGE / "manual"
    files = {str(path.relative_to(folder)) for path in folder.glob("*/*")}
    assert set(manual.FILES) == files
    for name in files:
        assert cli.main(["help", name]) == 0
        assert capsys.readouterr().out == (folder / name).read_text()


def test_help_for_what_has_no_page_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["help", "../errors"]) == 2
    assert capsys.readouterr().err == (
        "lmlite: there is no page on ../errors; lmlite help lists the topics\n"
    )


def test_the_readme_names_every_make_target() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE):
        assert f"`make {target}" in README, target
