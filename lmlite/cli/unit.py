"""`lmlite unit`: prints a service file that runs this very program with these flags.

All paths in it are absolute, and the server runs as a user without rights. The files' formats are
those of systemd.service(5), OpenRC's service script guide and OpenWrt's procd.sh.
"""

import argparse
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from lmlite.cli import serve
from lmlite.cli.configuration import file_settings
from lmlite.cli.flags import MODEL_FLAG, SERVE_FLAGS, Commands, limit_flags

CACHES = "/var/cache"  # the service manager makes the service's own folder in it
HOMES = ("/home", "/root", "/run/user")  # what ProtectHome=yes hides from a service
PLAIN = re.compile(r"[\w+,./:=@^-]+", re.ASCII)  # a word that means itself in every file


class Option(NamedTuple):
    """An argument of `lmlite serve`."""

    name: str  # empty for the model
    value: str | None  # None for a switch
    kind: str = ""  # FILE, DIR or PATH if the value is a path


class Service(NamedTuple):
    """What a service file says."""

    program: list[str]  # the words before `serve`
    variables: dict[str, str]
    options: list[Option]

    def words(self) -> list[str]:
        """The command line."""
        words = [*self.program, "serve"]
        for name, value, _ in self.options:
            if value is not None and value.startswith("-"):
                words.append(f"{name}={value}")
            else:
                words += [name] if name else []
                words += [value] if value is not None else []
        return words

    def paths(self, *kinds: str) -> list[str]:
        """The values of options of these kinds."""
        return [opt.value for opt in self.options if opt.kind in kinds and opt.value is not None]

    def read(self) -> list[str]:
        """The files and folders that the server reads."""
        parts = [*self.program, self.variables.get("PYTHONPATH", "")]
        return [*filter(os.path.isabs, parts), *self.paths("FILE", "PATH")]


def add_to(commands: Commands) -> None:
    """Declares the command."""
    unit = commands.add_parser(
        "unit",
        help="print a service file for the system's service manager",
        usage="%(prog)s {systemd,openrc,procd} [MODEL.gguf] [FLAG ...]",
        description="Print a service file that runs `lmlite serve` with these arguments.",
    )
    unit.add_argument("manager", choices=("systemd", "openrc", "procd"))
    unit.add_argument("arguments", nargs=argparse.REMAINDER, help="as for `lmlite serve`")
    unit.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Prints the file. Standard error names the paths that the service's user cannot use."""
    # A wrong argument ends the process here, with code 2.
    serve.parsed(given.arguments, f"lmlite unit {given.manager}")
    service = Service(*_program(), list(_options(given.arguments)))
    writer = {"systemd": _systemd, "openrc": _openrc, "procd": _procd}[given.manager]
    text, read, written = writer(service)
    for sentence in (*_closed(read, "read", 4), *_closed(written, "write to", 2)):
        print(f"lmlite: {sentence}", file=sys.stderr)
    sys.stdout.buffer.write(os.fsencode(text))  # paths may hold any bytes
    sys.stdout.buffer.flush()
    return 0


def _program() -> tuple[list[str], dict[str, str]]:
    """The words that start this program from any folder, and the variables that it needs."""
    script = os.path.abspath(sys.argv[0])
    variables = {"XDG_CACHE_HOME": CACHES}  # a .pyz keeps its libraries there
    if os.path.basename(script) != "__main__.py":
        return [sys.executable, script], variables
    variables["PYTHONPATH"] = str(Path(__file__).parents[2])
    return [sys.executable, "-P", "-m", "lmlite"], variables


def _options(arguments: Sequence[str]) -> Iterator[Option]:
    """The arguments, which `lmlite serve` accepts, with whole names and absolute paths.

    Paths in a file of settings become arguments, too, so that the service gets rights to them.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("files", nargs="*")
    flags = {flag.key: flag for flag in (MODEL_FLAG, *SERVE_FLAGS, *limit_flags())}
    for key, flag in flags.items():
        if flag.values:
            parser.add_argument(*flag.name.split("/"), dest=key, action="append")
        else:
            parser.add_argument(flag.name, dest=key, action="append_const", const=None)
    given = vars(parser.parse_args(arguments))
    given["model"] = [*given.pop("files"), *(given["model"] or ())]
    for setting in file_settings(given["config"][-1]) if given["config"] else ():
        if setting.flag.is_path:
            given[setting.flag.key] = given[setting.flag.key] or setting.texts
    for key, flag in flags.items():
        kind = flag.values if flag.is_path else ""
        for value in given[key] or ():
            name = "" if flag is MODEL_FLAG else flag.name
            yield Option(name, os.path.abspath(value) if kind else value, kind)


def _closed(paths: list[str], verb: str, right: int) -> Iterator[str]:
    """A sentence for each path for which other users than its owner lack this right."""
    for path in map(Path, paths):
        for part in (*reversed(path.parents), path):
            try:
                mode = part.stat().st_mode
            except OSError as err:
                yield f"{part}: {err.strerror}"
                break
            wanted = (right if part == path else 0) | stat.S_ISDIR(mode)
            if mode & wanted != wanted:
                yield f"the service's user cannot {verb} {path}: {part} is closed to others"
                break


# ---- the files, each with the paths that its user reads and writes ----------------------------

File = tuple[str, list[str], list[str]]

_SYSTEMD = """\
# /etc/systemd/system/lmlite.service
[Unit]
Description=lmlite
After=network.target

[Service]
Type=notify
NotifyAccess=main
ExecStart=:{command}
{settings}
DynamicUser=yes
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=strict
TimeoutStartSec=10min
TimeoutStopSec=20s
Restart=on-failure

[Install]
WantedBy=multi-user.target
"""


def _systemd(service: Service) -> File:
    """The first process of systemd reads the key file and makes folders in /var/cache."""
    keys = [opt.value for opt in service.options if opt.name == "--api-key-file"][-1:]
    command = ("%d/keys" if word in keys else _systemd_word(word) for word in service.words())
    read = [path for path in service.read() if path not in keys]
    folders = service.paths("DIR")
    made = [path for path in folders if Path(path).is_relative_to(CACHES)]
    others = [path for path in folders if path not in made]
    in_home = any(Path(path).is_relative_to(home) for path in (*read, *others) for home in HOMES)
    settings = [
        *(f"Environment={_systemd_word(f'{name}={v}')}" for name, v in service.variables.items()),
        "CacheDirectory=lmlite",
        *(f"CacheDirectory={_systemd_word(os.path.relpath(path, CACHES))}" for path in made),
        *(f"ReadWritePaths={_systemd_word(path)}" for path in others),
        *(f"LoadCredential=keys:{path}".replace("%", "%%") for path in keys),
        f"ProtectHome={'read-only' if in_home else 'yes'}",
    ]
    text = _SYSTEMD.format(command=" ".join(command), settings="\n".join(settings))
    return text, read, others


def _systemd_word(word: str) -> str:
    """A word as systemd's files quote it."""
    if PLAIN.fullmatch(word):
        return word
    return '"' + "".join(map(_systemd_character, word)) + '"'


def _systemd_character(character: str) -> str:
    special = {"%": "%%", '"': '\\"', "\\": "\\\\"}
    if character.isprintable():
        return special.get(character, character)
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


_OPENRC = """\
#!/sbin/openrc-run
# /etc/init.d/lmlite

description=lmlite
supervisor=supervise-daemon
{variables}
command={program}
command_args={arguments}
command_user=nobody
error_log=/var/log/lmlite.log
respawn_delay=5
retry=TERM/20/KILL/5

depend() {{
	use net
	after firewall
}}

start_pre() {{
	checkpath --directory --mode 0700 --owner nobody {folders}
	checkpath --file --mode 0640 --owner nobody "$error_log"
}}
"""


def _openrc(service: Service) -> File:
    """OpenRC splits the values of its variables at spaces, expands patterns, then evaluates them.

    So each word that is not plain has a variable of its own, which only the last step reads.
    """
    lines = [f"export {name}={quote(value)}" for name, value in service.variables.items()]
    words = service.words()
    for index, word in enumerate(words):
        if not PLAIN.fullmatch(word):
            lines.append(f"word{index}={quote(word)}")
            words[index] = f'"$word{index}"'
    text = _OPENRC.format(
        variables="\n".join(lines),
        program=quote(words[0]),
        arguments=quote(" ".join(words[1:])),
        folders=_shell(_written(service)),
    )
    return text, service.read(), []


_PROCD = """\
#!/bin/sh /etc/rc.common
# /etc/init.d/lmlite

USE_PROCD=1
START=95
STOP=10

start_service() {{
	mkdir -p {folders}
	chown nobody {folders}
	procd_open_instance
	procd_set_param command {command}
	procd_set_param env {variables}
	procd_set_param user nobody
	procd_set_param no_new_privs 1
	procd_set_param stderr 1
	procd_set_param respawn
	procd_set_param term_timeout 20
	procd_close_instance
}}
"""


def _procd(service: Service) -> File:
    text = _PROCD.format(
        folders=_shell(_written(service)),
        command=_shell(service.words()),
        variables=_shell([f"{name}={value}" for name, value in service.variables.items()]),
    )
    return text, service.read(), []


def _written(service: Service) -> list[str]:
    return [f"{CACHES}/lmlite", *service.paths("DIR")]


def _shell(words: Sequence[str]) -> str:
    return " ".join(map(quote, words))
