"""The table of `make reliability` is complete, and reports a run correctly."""

import ast
import xml.etree.ElementTree as ET
from importlib.util import find_spec

import pytest

from tests import REPOSITORY
from tests.reliability import __main__ as reliability
from tests.reliability.__main__ import ROWS, Found, Row

NUMBERS = [f"{letter}{number}" for letter, n_rows in
           (("L", 8), ("F", 22), ("B", 12), ("M", 7), ("R", 4), ("S", 1))
           for number in range(1, n_rows + 1)]  # fmt: skip


def functions(file: str) -> set[str]:
    tree = ast.parse((REPOSITORY / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_row_is_there_once_and_has_something_that_shows_it() -> None:
    assert [row.number for row in ROWS] == NUMBERS
    assert all(row.tests and row.goal for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=NUMBERS)
def test_every_test_and_command_of_a_row_exists(row: Row) -> None:
    for test in row.tests:
        file, _, function = reliability.path_of(test).partition("::")
        assert function in functions(file), test
    for command in row.commands:
        assert find_spec(command.split()[0]) is not None, command


REPORT = """
<testsuite>
  <testcase classname="tests.test_a" name="test_one[x]">
    <properties><property name="F1" value="1 ms"/><property name="F2" value="2 ms"/></properties>
  </testcase>
  <testcase classname="tests.test_a" name="test_one[y]">
    <properties><property name="F1" value="1 ms"/></properties>
  </testcase>
  <testcase classname="tests.test_a" name="test_two"><skipped message="no model"/></testcase>
  <testcase classname="tests.test_a" name="test_three"><failure/></testcase>
  <testcase classname="tests.test_b" name="test_one"><failure/></testcase>
</testsuite>
"""


def found(row: Row, is_slow: bool = False) -> tuple[str, Found]:
    made = Found()
    reliability.add_cases(row, made, ET.fromstring(REPORT).iter("testcase"))
    return made.state(row, is_slow), made


def test_a_row_reports_its_own_tests_and_each_figure_once() -> None:
    state, made = found(Row("F1", "goal", False, ["test_a::test_one"]))
    assert (state, made.cases, made.figures) == ("shown", 2, ["1 ms"])


def test_a_row_with_a_skipped_test_is_shown_in_part_and_says_why() -> None:
    row = Row("F1", "goal", False, ["test_a::test_one", "test_a::test_two"])
    state, made = found(row)
    assert state == "in part"
    assert "left out: no model" in reliability.shown(row, made, False)


def test_a_row_that_does_more_in_the_slow_tier_is_complete_only_there() -> None:
    row = Row("F1", "goal", True, ["test_a::test_one"])
    assert (found(row)[0], found(row, is_slow=True)[0]) == ("in part", "shown")


def test_a_row_with_one_failure_has_failed() -> None:
    row = Row("F1", "goal", False, ["test_a::test_one", "test_a::test_three"])
    state, made = found(row)
    assert state == "FAILED"
    assert "failed: test_a::test_three" in reliability.shown(row, made, False)


def test_a_row_that_was_not_run_says_how_to_run_it() -> None:
    row = Row("S1", "goal", False, ["test_a::test_two"], ["tests.reliability.soak --minutes 60"])
    state, made = found(row)
    made.left_out.append(row.commands[0])
    assert state == "not shown"
    assert "not shown: python -m tests.reliability.soak --minutes 60" in reliability.shown(
        row, made, False
    )


def test_a_command_passes_by_its_exit_code_and_is_quoted_by_its_last_line() -> None:
    made = Found()
    reliability.run_command("tests.reliability.__main__ Z9", made)
    assert (made.failed, made.figures) == (["tests.reliability.__main__ Z9"], ["it said nothing"])
