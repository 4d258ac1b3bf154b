"""What `lmlite serve` is told besides its command line: variables, and a file in TOML.

A flag wins over a variable, and a variable over the file. The texts of all three are read alike:
`--max-body 8M` is the variable LMLITE_MAX_BODY and the key max-body.
"""

import argparse
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from lmlite.cli.flags import MODEL_FLAG, SERVE_FLAGS, CommandError, Flag, limit_flags

FOLDER_OF_MODELS = "LMLITE_MODELS"  # the folder for all commands, which is less than --models
_SWITCH = {"true": True, "1": True, "yes": True, "on": True,
           "false": False, "0": False, "no": False, "off": False}  # fmt: skip


class Setting(NamedTuple):
    """The value of one flag."""

    flag: Flag
    origin: str  # how messages call it
    texts: list[str]

    def value(self) -> Any:
        """What argparse would make of it. Raises CommandError."""
        try:
            if self.flag.repeats:
                return [self.flag.read(text) for text in self.texts]
            if len(self.texts) != 1:
                raise argparse.ArgumentTypeError("must be a single value")
            if self.flag.values:
                return self.flag.read(self.texts[0])
            if (text := self.texts[0].lower()) not in _SWITCH:
                raise argparse.ArgumentTypeError("must be true or false")
            return _SWITCH[text]
        except argparse.ArgumentTypeError as err:
            raise CommandError(f"{self.origin}: {err}", 2) from None


def configured(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """The arguments as `parser` reads them, with variables and the file for what they leave out.

    The parser has the flags of `lmlite serve`. Raises CommandError.
    """
    given = parser.parse_args(arguments)
    of_variables = {setting.flag.key: setting for setting in variables()}
    path = given.config or (of_variables["config"].texts[0] if "config" in of_variables else None)
    known = {setting.flag.key: setting for setting in file_settings(path)} if path else {}
    if FOLDER_OF_MODELS in os.environ:
        known.pop("models", None)
    values = {s.flag.attribute: s.value() for s in (known | of_variables).values()}
    for name in [name for name in values if isinstance(values[name], list)]:
        if getattr(given, name) or (name == MODEL_FLAG.dest and given.files):
            del values[name]  # the parser would add to the list
    # The parser overwrites what the command line has, and keeps the others in place of defaults.
    return parser.parse_args(arguments, argparse.Namespace(**values)) if values else given


def variables() -> Iterator[Setting]:
    """The environment's settings. An empty variable is one that is not set."""
    for key, flag in _flags().items():
        name = f"LMLITE_{key.upper().replace('-', '_')}"
        if (text := os.environ.get(name)) and name != FOLDER_OF_MODELS:
            texts = text.split(",") if flag.repeats else [text]
            yield Setting(flag, f"the variable {name}", texts)


def file_settings(path: str) -> Iterator[Setting]:
    """A file's settings, with paths that are absolute. Raises CommandError."""
    import tomllib  # most servers have no file

    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except (OSError, ValueError) as err:
        raise CommandError(f"{path} cannot be read: {err}", 2) from None
    flags = _flags()
    for key, value in found.items():
        if key not in flags or key == "config":
            raise CommandError(f"{path}: there is no setting {key!r}; the settings are "
                               f"{', '.join(sorted(flags.keys() - {'config'}))}", 2)  # fmt: skip
        texts = [_text(path, key, each) for each in (value if type(value) is list else [value])]
        if flags[key].is_path:
            texts = [os.path.join(os.path.dirname(os.path.abspath(path)), text) for text in texts]
        yield Setting(flags[key], f"{path}: {key}", texts)


def _flags() -> dict[str, Flag]:
    return {flag.key: flag for flag in (MODEL_FLAG, *SERVE_FLAGS, *limit_flags())}


def _text(path: str, key: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise CommandError(f"{path}: {key}: must be a text, a number, true or false, or for a flag "
                           "that may be repeated a list of them", 2)  # fmt: skip
    return str(value)
