"""Plans a fleet by simulation: what balancer, memory and --parallel do for many users.

    python -m tests.fleet                           (the table of `lmlite help fleet`: minutes)
    python -m tests.fleet --servers 10 --users 12   (fewer servers, with more users each)
    python -m tests.fleet --measure MODEL           (the times of a step, with a model of yours)

The times are those of a 0.5B on two cores; `step_times.py` has them. `--times` takes others.
"""

import argparse
import gc
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from tests.fleet.fleet import Bounded, Fleet, Outcome, Route, affinity, round_robin
from tests.fleet.server import Sizes
from tests.fleet.step_times import HALF_BILLION, StepTimes, measured
from tests.support.server_process import RunningServer

SETTLE_S = 60.0
DEFAULTS = Sizes()
# Each row changes one thing of the first.
PLANS: dict[str, tuple[Route, Sizes]] = {
    "affinity": (affinity, DEFAULTS),
    "affinity, at most 1.5 times the mean": (Bounded(1.5), DEFAULTS),
    "round robin": (round_robin, DEFAULTS),
    "affinity, `--checkpoint-memory 0`": (affinity, replace(DEFAULTS, n_parked_bytes=0)),
    "affinity, `--parallel 2`": (affinity, replace(DEFAULTS, n_parallel=2)),
    "affinity, `--parallel 8 --ctx 8192`": (affinity, Sizes(n_parallel=8, n_ctx=8192)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table in Markdown, or the times of a step."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fleet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--servers", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--users", type=int, default=6, help="for each server")
    parser.add_argument("--seconds", type=float, default=120,
                        help="for the most servers; fewer are simulated for longer")  # fmt: skip
    parser.add_argument("--price", type=float, default=0.05, help="of a server for an hour")
    parser.add_argument("--times", type=float, nargs=4, default=HALF_BILLION, help="of a step",
                        metavar=("BASE", "SEQUENCE", "PROMPT_TOKEN", "CELL"))  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--measure", metavar="MODEL", help="measure the times of a step")
    given = parser.parse_args(arguments)
    if given.measure:
        with RunningServer(given.measure, "--parallel", "4", "--ctx", "4096") as server:
            print(measured(server))
        return
    fleets = {
        (name, n): Fleet(n, StepTimes(*given.times), route, sizes, n_users_each=given.users,
                         seed=given.seed)
        for n in sorted(given.servers, reverse=True)
        for name, (route, sizes) in PLANS.items()
    }  # fmt: skip
    # What is in cycles lives as long as the run: to look for garbage among so many lists is idle.
    with ProcessPoolExecutor(os.cpu_count(), initializer=gc.disable) as pool:
        runs = {
            key: pool.submit(
                fleet.run, given.seconds * (max(given.servers) / fleet.n_servers) ** 0.5, SETTLE_S
            )
            for key, fleet in fleets.items()
        }
        outcomes = {key: run.result() for key, run in runs.items()}
    print(table(outcomes, given.servers, given.price))


def table(outcomes: dict[tuple[str, int], Outcome], servers: Sequence[int], price: float) -> str:
    """A row for each plan; for each number of servers the first token's p99, and the cost."""
    lines = [
        "| | in memory | busy | " + " | ".join(f"{n:,} servers" for n in servers) + " |",
        "| --- | --- | --- |" + " --- |" * len(servers),
    ]
    for name in PLANS:
        found = [outcomes[name, n] for n in servers]
        cells = [
            f"{each.first_p99_s:.1f} s, {each.cost(n, price):.2f}"
            for n, each in zip(servers, found, strict=True)
        ]
        shares = f"{found[-1].cached_share:.0%} | {found[-1].busy_share:.0%}"
        lines.append(f"| {name} | {shares} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
