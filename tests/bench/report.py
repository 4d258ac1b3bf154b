"""Values of several rounds -> medians, ratios, verdicts, a table and JSON.

Pure: knows no server and no clock.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.scenarios import Figure

NAME_WIDTH, VALUE_WIDTH = 38, 13
DISTURBED_CORES = 0.1  # from here on, others are worth a remark


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """ours / theirs, where both are known: ratio(51.0, 50.0) == 1.02."""
    return None if ours is None or not theirs else ours / theirs


def median(values: Sequence[float]) -> float | None:
    """The middle value, or None of none."""
    return statistics.median(values) if values else None


@dataclass
class Row:
    """One figure, with a value for each round and side."""

    figure: Figure
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        return ratio(median(self.ours), median(self.theirs))

    @property
    def verdict(self) -> str:
        """MISSED: not what was to be reached. behind: reached, but the other side is better."""
        figure = self.figure
        judged = self.ratio if figure.of_ratio else median(self.ours)
        if figure.target is not None and judged is not None and self._is_worse(judged):
            return "MISSED"
        shown = None if self.ratio is None else round(self.ratio, 2)
        if shown is None or shown == 1.0:
            return ""
        return "behind" if (shown < 1.0) == figure.more_is_better else ""

    def _is_worse(self, judged: float) -> bool:
        target = self.figure.target
        assert target is not None
        return judged < target if self.figure.more_is_better else judged > target

    def json(self) -> dict[str, Any]:
        """For machines: every value, and what follows from them."""
        return {
            "figure": self.figure.name,
            "more_is_better": self.figure.more_is_better,
            "ours": self.ours,
            "theirs": self.theirs,
            "median_ours": median(self.ours),
            "median_theirs": median(self.theirs),
            "ratio": self.ratio,
            "target": self.figure.target,
            "target_is_of": "ratio" if self.figure.of_ratio else "ours",
            "verdict": self.verdict,
        }


@dataclass
class Section:
    """One scenario: its rows, and remarks where something is to be known about them."""

    name: str
    rows: list[Row]
    remarks: list[str] = field(default_factory=list)
    others: list[float] = field(default_factory=list)  # cores that other processes took, each run

    def add(self, is_ours: bool, values: dict[str, float]) -> None:
        """The values of one round and side, by the keys of the figures."""
        for row in self.rows:
            if row.figure.key in values:
                side = row.ours if is_ours else row.theirs
                side.append(values[row.figure.key])

    def remark(self, text: str) -> None:
        """Says something once, however many rounds repeat it."""
        if text not in self.remarks:
            self.remarks.append(text)

    def json(self) -> dict[str, Any]:
        """For machines."""
        rows = [row.json() for row in self.rows]
        return {
            "scenario": self.name,
            "rows": rows,
            "remarks": self.remarks,
            "cores_of_others": self.others,
        }


# ---- the table -----------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three digits or so: 1676, 51.2, 2.05, 0.151; a dash for nothing."""
    if value is None:
        return "-"
    for bound, n_digits in ((99.95, 0), (9.995, 1), (0.9995, 2)):
        if abs(value) >= bound:
            return f"{value:.{n_digits}f}"
    return f"{value:.3f}"


def target(figure: Figure) -> str:
    """As the table shows it: ">= 0.98x", "<= 0.35"."""
    if figure.target is None:
        return ""
    sign = ">=" if figure.more_is_better else "<="
    return f"{sign} {figure.target:g}{'x' if figure.of_ratio else ''}"


def heading(ours: str, theirs: str) -> str:
    """The first line of the table."""
    values = f"{ours:>{VALUE_WIDTH}}  {theirs:>{VALUE_WIDTH}}"
    return f"{'':{NAME_WIDTH}}{values}  {'ratio':>6}  target"


def section_lines(section: Section) -> Iterable[str]:
    """One scenario as lines of the table."""
    yield section.name
    for row in section.rows:
        values = [number(median(row.ours)), number(median(row.theirs))]
        shown = "-" if row.ratio is None else f"{row.ratio:.2f}"
        line = f"  {row.figure.name:{NAME_WIDTH - 2}}" + "  ".join(
            f"{value:>{VALUE_WIDTH}}" for value in values
        )
        line += f"  {shown:>6}  {target(row.figure):9}  {row.verdict}"
        yield line.rstrip()
    yield from (f"  {text}" for text in section.remarks)
    if max(section.others, default=0.0) >= DISTURBED_CORES:
        yield f"  not quiet: other processes took up to {max(section.others):.2f} cores"


def summary(sections: Iterable[Section]) -> str:
    """The last line: how many targets there are, and which were missed."""
    rows = [(section, row) for section in sections for row in section.rows]
    judged = [row for _, row in rows if row.figure.target is not None and row.ours]
    missed = [f"{s.name}: {r.figure.name}" for s, r in rows if r.verdict == "MISSED"]
    behind = [f"{s.name}: {r.figure.name}" for s, r in rows if r.verdict == "behind"]
    lines = [f"{len(judged) - len(missed)} of {len(judged)} targets reached"]
    lines += [f"  MISSED  {name}" for name in missed]
    lines += [f"  behind  {name}" for name in behind]
    return "\n".join(lines)
