"""The table of reliability promises: each goal, its measured figure, and the tests that show it.

    make reliability                          (or: python -m tests.reliability --help)
    make reliability ARGS="F M2"              only these rows
    make reliability ARGS=--all               also the slow tier, with full counts: hours

Runs the tests and commands of each row. "in part": the row's counts are full only in the slow tier.
"not shown": the row was not run; the table says how to run it. The exit code is 1 if a row failed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import REPOSITORY

TIMES = "10"  # LMLITE_TIMES in the slow tier


@dataclass
class Row:
    """A promise."""

    number: str
    goal: str
    is_longer: bool  # whether the slow tier does more in its tests
    tests: list[str] = field(default_factory=list)  # file::function
    commands: list[str] = field(default_factory=list)  # of the slow tier: module, arguments


def read_rows(text: str) -> list[Row]:
    """The rows of promises.txt, which describes its format."""
    rows: list[Row] = []
    for line in text.splitlines():
        if line.startswith("    $ "):
            rows[-1].commands.append(line[6:])
        elif line.startswith("    "):
            rows[-1].tests.append(line[4:])
        elif line and not line.startswith("#"):
            number, goal = line.split(maxsplit=1)
            rows.append(Row(number.rstrip("+"), goal, number.endswith("+")))
    return rows


ROWS = read_rows(Path(__file__).with_name("promises.txt").read_text())


@dataclass
class Found:
    """The result of a row."""

    cases: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # reasons
    figures: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)  # commands that were not run

    def state(self, row: Row, is_slow: bool) -> str:
        if self.failed:
            return "FAILED"
        if not self.cases and not self.figures:
            return "not shown"
        is_part = self.skipped or self.left_out or (row.is_longer and not is_slow)
        return "in part" if is_part else "shown"


# ---- running ---------------------------------------------------------------------------------


def path_of(test: str) -> str:
    """The test's path in pytest's form."""
    module, _, function = test.partition("::")
    return f"tests/{module.replace('.', '/')}.py::{function}"


def run_tests(tests: Iterable[str], is_slow: bool) -> list[ET.Element]:
    """Runs these tests. Returns their cases from pytest's report."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", "-m", "long or not long", f"--junitxml={report}"]
        command += ["-o", "junit_family=xunit1"]  # the only format with properties of a test
        environment = os.environ | ({"LMLITE_TIMES": TIMES} if is_slow else {})
        subprocess.run(
            [*command, *map(path_of, tests)], cwd=REPOSITORY, env=environment, check=False
        )
        return list(ET.parse(report).iter("testcase"))


def add_cases(row: Row, found: Found, cases: Iterable[ET.Element]) -> None:
    """Adds the results of a row's tests."""
    for case in cases:
        name = case.get("name", "")
        module = case.get("classname", "").removeprefix("tests.")
        if f"{module}::{name.partition('[')[0]}" not in row.tests:
            continue
        if case.find("failure") is not None or case.find("error") is not None:
            found.failed.append(f"{module}::{name}")
        elif (skipped := case.find("skipped")) is not None:
            found.skipped.append(skipped.get("message", ""))
        else:
            found.cases += 1
        for each in case.iter("property"):
            text = each.get("value", "")
            if each.get("name") == row.number and text not in found.figures:
                found.figures.append(text)


def run_command(command: str, found: Found) -> None:
    """Runs a command: its last line is the figure, its exit code the verdict."""
    done = subprocess.run(
        [sys.executable, "-m", *command.split()], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    lines = done.stdout.strip().splitlines()
    found.figures.append(lines[-1] if lines else "it said nothing")
    if done.returncode:
        print(done.stdout)  # the list of failures
        found.failed.append(command)


def shown(row: Row, found: Found, is_slow: bool) -> str:
    """The row as text."""
    head = f"{row.number:4}{found.state(row, is_slow):10} "
    lines = [head + row.goal]
    if found.cases:
        lines.append("1 case" if found.cases == 1 else f"{found.cases} cases")
    lines += found.figures
    lines += [f"failed: {name}" for name in found.failed]
    lines += [f"left out: {reason}" for reason in dict.fromkeys(found.skipped)]
    lines += [f"not shown: python -m {command}" for command in found.left_out]
    lines += [f"pytest {path_of(test)}" for test in row.tests]
    lines += [f"python -m {command}" for command in row.commands if command not in found.left_out]
    indent = " " * len(head)
    return lines[0] + "".join(
        "\n" + textwrap.fill(line, 120, initial_indent=indent, subsequent_indent=indent + "  ",
                             break_long_words=False, break_on_hyphens=False)
        for line in lines[1:]
    )  # fmt: skip


def chosen(names: Sequence[str]) -> list[Row]:
    """The rows of these numbers or letters; all rows without a name."""
    rows = [row for row in ROWS if not names or row.number in names or row.number[0] in names]
    if not rows:
        raise SystemExit(f"there is no row {', '.join(names)}")
    return rows


def main() -> int:
    """Runs the command; returns 1 if a row failed."""
    parser = argparse.ArgumentParser(description="What is promised, and what shows it.")
    parser.add_argument("rows", nargs="*", help="numbers, or letters; all, if none")
    parser.add_argument("--all", action="store_true", help="the slow tier too")
    options = parser.parse_args()
    rows = chosen(options.rows)
    cases = run_tests(dict.fromkeys(test for row in rows for test in row.tests), options.all)
    states = []
    for row in rows:
        found = Found()
        add_cases(row, found, cases)
        for command in row.commands:
            if options.all:
                run_command(command, found)
            else:
                found.left_out.append(command)
        print(shown(row, found, options.all), flush=True)
        states.append(found.state(row, options.all))
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)))
    return int("FAILED" in states)


if __name__ == "__main__":
    raise SystemExit(main())
