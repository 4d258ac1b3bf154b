"""`lmlite help`: the pages of the manual."""

import argparse
from importlib import resources

from lmlite.cli.flags import CommandError, Commands

FILES = ("fleet/alerts.yml", "fleet/dashboard.json")  # that pages refer to; they are not listed


def add_to(commands: Commands) -> None:
    """Declares the command."""
    manual = commands.add_parser(
        "help", help="read the manual", description="Print a page of the manual."
    )
    manual.add_argument("topic", nargs="?", help="the page (default: a list of all pages)")
    manual.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Prints a page, a page's file, or the list of all pages. Raises CommandError."""
    folder = resources.files("lmlite") / "manual"
    listed = [page for page in folder.iterdir() if page.is_file()]
    pages = {page.name.removesuffix(".md"): page.read_text("utf-8") for page in listed}
    if given.topic is None:
        titles = {topic: text.splitlines()[0].lstrip("# ") for topic, text in pages.items()}
        print(*(f"{topic:20}{titles[topic]}" for topic in sorted(titles)), sep="\n", flush=True)
    elif given.topic in pages:
        print(pages[given.topic], end="", flush=True)
    elif given.topic in FILES:
        print(folder.joinpath(given.topic).read_text("utf-8"), end="", flush=True)
    else:
        message = f"there is no page on {given.topic}; lmlite help lists the topics"
        raise CommandError(message, 2)
    return 0
