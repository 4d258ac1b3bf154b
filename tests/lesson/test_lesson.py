"""The lesson of `lmlite help how-it-works` leads to places that exist."""

import ast
import re

from tests import REPOSITORY
from tests.lesson import test_exercises

PAGE = (REPOSITORY / "lmlite/manual/how-it-works.md").read_text()
STOP = re.compile(
    r"^### (\d+)\. .+\n\n`(lmlite/.+\.py)`: `(\w+)`\n\n(?:.+\n)+\n<!-- run: sh -->\n", re.MULTILINE
)


def test_it_has_twelve_stops_each_with_a_place_a_question_and_a_command() -> None:
    stops = STOP.findall(PAGE)
    assert [int(number) for number, _, _ in stops] == list(range(1, 13))
    for _, file, name in stops:
        tree = ast.parse((REPOSITORY / file).read_text())
        defined = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        assert name in defined, file
    assert all("?" in part for part in PAGE.split("\n### ")[1:])


def test_each_exercise_has_an_answer_in_the_file_where_it_starts() -> None:
    exercises = re.findall(r"^\d\. \*\*An? (\w+)\*\*", PAGE, re.MULTILINE)
    answers = [name.split("_")[2] for name in dir(test_exercises) if name.startswith("test_a")]
    assert sorted(exercises) == sorted(answers)
