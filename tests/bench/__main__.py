"""Measures lmlite beside llama-server, in turn, and prints one table.

    make bench                            (or: python -m tests.bench --help)

Each scenario runs against one server and then the other, in each of the rounds: A B A B A B. A
server is started for it and ended after it, so only one of them lives at a time. Absolute
figures drift with the machine; what counts is the ratio of the medians.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests import REPOSITORY
from tests.bench import model, report
from tests.bench.client import BadReply
from tests.bench.peers import LlamaServer, Lmlite, NotMeasured, Others, Remote, Side, n_cores
from tests.bench.scenarios import SCENARIOS, Scenario
from tests.bench.work import Values, Work

BINARIES = REPOSITORY / "native" / "build" / "peer" / "bin"
FAULTS = (OSError, RuntimeError, BadReply)  # what a server can do to a scenario


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure lmlite beside another server."
    )
    command.add_argument("--rounds", type=int, default=3, metavar="N", help="(default: 3)")
    command.add_argument("--only", default="", metavar="TEXT",
                         help="scenarios whose name has this; several with | between")  # fmt: skip
    command.add_argument("--quick", action="store_true", help="fewer requests: a look, no figures")
    command.add_argument("--against", metavar="URL", help="a running server that has the same "
                         "model file, in place of llama-server")  # fmt: skip
    command.add_argument("--against-model", metavar="NAME", help="what that server calls the file "
                         "(default: the first that it lists)")  # fmt: skip
    command.add_argument("--against-file", type=Path, metavar="PYZ", help="lmlite in one file, in "
                         "place of llama-server")  # fmt: skip
    command.add_argument("--threads", type=int, metavar="N", help="of each server (default: one "
                         "for each core; lmlite may then use fewer)")  # fmt: skip
    command.add_argument("--json", type=Path, metavar="FILE", help="writes every value there")
    command.add_argument("--list", action="store_true", help="names the scenarios, and ends")
    return command


def chosen(only: str) -> list[Scenario]:
    """The scenarios with one of the texts in their name; a ValueError when there is none."""
    found = [s for s in SCENARIOS if any(text in s.name for text in only.split("|"))]
    if not found:
        raise ValueError(f"no scenario has {only!r} in its name")
    return found


# ---- measuring -----------------------------------------------------------------------------


def measured(
    scenario: Scenario, sides: Sequence[Side], options: argparse.Namespace, run_id: str
) -> report.Section:
    """All rounds of one scenario; the first side is ours."""
    section = report.Section(scenario.name, [report.Row(figure) for figure in scenario.figures])
    for i in range(1 if scenario.only_once else options.rounds):
        works = []
        for side in sides:
            work = Work(f"{run_id}/{scenario.name}/{i}", quick=options.quick)
            try:
                with Others() as others:
                    values = _one_run(scenario, side, work)
            except NotMeasured as err:
                if side is sides[0]:
                    section.remark(f"left out: {err}")
                    return section
                section.remark(f"{side.name} left out: {err}")
            except FAULTS as err:  # the next scenario still runs
                section.remark(f"{side.name} FAILED: {err}")
            else:
                section.add(side is sides[0], values)
                works.append(work)
                # What a remote server takes is, seen from here, somebody else's.
                if not options.against or side is sides[0]:
                    section.others.append(others.n_cores)
        counts = [(work.n_prompt, work.n_completion) for work in works]
        if len(set(counts)) > 1:
            section.remark(f"not the same work, (prompt, completion) tokens: {counts}")
    return section


def _one_run(scenario: Scenario, side: Side, work: Work) -> Values:
    began_s = time.perf_counter()
    try:
        return scenario.run(side, work)
    finally:
        elapsed_s = time.perf_counter() - began_s
        print(f"  {scenario.name}, {side.name}: {elapsed_s:.1f} s", file=sys.stderr, flush=True)


def library_limit(n_threads: int, quick: bool) -> dict[str, float]:
    """What llama-bench measures of the library alone: tokens/s of a prompt of 512, and of 64."""
    command = [
        str(BINARIES / "llama-bench"), "-m", str(model.MODEL_PATH), "-t", str(n_threads),
        "-p", "512", "-n", "64", "-r", "1" if quick else "3", "-o", "json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        f"pp{test['n_prompt']}" if test["n_prompt"] else f"tg{test['n_gen']}": test["avg_ts"]
        for test in json.loads(done.stdout)
    }


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    cpus = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in cpus if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cores": n_cores(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
    }


# ---- the command ---------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 1 when something could not be measured."""
    options = parser().parse_args(arguments)
    try:
        scenarios = chosen(options.only)
    except ValueError as err:
        parser().error(str(err))
    if options.list:
        print(*(scenario.name for scenario in scenarios), sep="\n")
        return 0
    log_folder, n_threads = model.FOLDER, options.threads or n_cores()
    try:
        model.made(model.llama_cpp() / model.VOCABULARY)
        ours = Lmlite(options.threads, log_folder)
        if options.against:
            theirs: Side = Remote(options.against, options.against_model)
        elif options.against_file:
            theirs = Lmlite(options.threads, log_folder, options.against_file)
        else:
            theirs = LlamaServer(BINARIES / "llama-server", n_threads, log_folder)
        return run(scenarios, [ours, theirs], options)
    except (OSError, BadReply) as err:
        print(f"bench: {err}; `make bench` builds all that is needed", file=sys.stderr)
        return 1


def _stop(_number: int, _frame: object) -> None:
    """A signal ends the servers too: they are stopped on the way out."""
    sys.exit(1)


def run(scenarios: list[Scenario], sides: list[Side], options: argparse.Namespace) -> int:
    """All scenarios, each printed when its rounds are over."""
    where, n_threads = machine(), options.threads or n_cores()
    print(f"{where['cpu']}, {where['cores']} cores, load {where['load']:.2f}; "
          f"{n_threads} threads, {options.rounds} rounds, medians")  # fmt: skip
    is_plain = not options.against and not options.against_file
    limit = library_limit(n_threads, options.quick) if is_plain else {}
    if limit:
        shown = ", ".join(f"{name} {report.number(value)}" for name, value in limit.items())
        print(f"llama-bench, the library alone: {shown} tokens/s")
    print(f"\n{report.heading(sides[0].name, sides[1].name)}", flush=True)
    run_id = str(time.time_ns())  # a server that keeps running must not know the prompts
    sections = []
    for scenario in scenarios:
        sections.append(measured(scenario, sides, options, run_id))
        print("\n".join(report.section_lines(sections[-1])), flush=True)
    print(f"\n{report.summary(sections)}")
    if options.json:
        found = {"machine": where, "sides": [side.name for side in sides], "threads":
                 n_threads, "rounds": options.rounds, "quick": options.quick,
                 "llama_bench": limit, "scenarios": [s.json() for s in sections]}  # fmt: skip
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return int(any("FAILED" in remark for s in sections for remark in s.remarks))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
