"""Hostile chat templates: what they reach, and how long they occupy a worker."""

import json
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage, ChatOptions
from lmlite.worker.chat import renderer
from lmlite.worker.chat.bridge_request import request_of
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama.context import Context
from lmlite.worker.llama.model import Model
from tests import REPOSITORY
from tests.conftest import DEFAULT_MODEL
from tests.served.test_faults import SLACK
from tests.support.process_figures import percentile

# Ways from a value to the rest of a Python interpreter, which llama.cpp's Jinja does not have.
ROOTS = [
    "''",
    "[]",
    "{}",
    "0",
    "messages",
    "messages[0]",
    "range",
    "raise_exception",
    "namespace()",
    "self",
    "loop",
    "cycler",
    "joiner",
    "lipsum",
    "request",
    "config",
]
WAYS = (
    ".__class__",
    ".__class__.__mro__[1].__subclasses__()",
    ".__init__.__globals__",
    "['__class__']",
    "|attr('__class__')",
    ".__globals__['os'].popen('id').read()",
    "._module",
    ".format.__self__",
    ".mro()",
    ".__builtins__.open('/etc/passwd').read()",
)
OTHERS = [
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.environ }}",
    "{% from 'os' import environ %}{{ environ }}",
    "{% extends '/etc/passwd' %}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ '%s%s%n' % (1, 2) }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ open('/etc/passwd').read() }}",
    "{{ eval('1') }}",
    "{{ __import__('os').environ }}",
    "{{ get_flashed_messages() }}",
    "{{ [1, 2, 3][99999999999] }}",
    "{{ 1 / 0 }}",
    "{{ 1 % 0 }}",
    "{{ 1 // 0 }}",
    "{{ -1 ** 0.5 }}",
    "{{ messages[-9223372036854775808] }}",
    "{{ 'abc'[::0] }}",
    "{{ 'abc'[9999999999:-9999999999] }}",
    "{{ strftime_now('%n%n%s' * 100) }}",
    "{{ 9223372036854775807 + 1 }}",
    "{{ 1e999 }}",
    "{{ none.x.y.z }}",
    "{% if %}",
    "{% for",
    "{{",
    "}}",
    "{% endfor %}",
    "{# never closed",
    "{% set x = x %}{{ x }}",
    "{%%}",
    "{{ ''|unknown }}",
    "{{ unknown() }}",
    "{{ ''.unknown() }}",
    "{% unknown %}",
    "{{ a.b.c }}",
    "{{ raise_exception('no') }}",
    "{{ raise_exception(messages) }}",
    "{{ '' | join(0) }}",
    "{% call f() %}{% endcall %}",
    "{{ 5 | tojson(indent=-1) }}",
    "{{ messages | sort(attribute=0) }}",
]
# Templates that never end, or take far too long.
BOMBS = (
    "{% for i in range(1000000000) %}{% endfor %}",
    "{{ 'x' * 1000000000 }}",
    "{% for i in range(30000) %}{% for j in range(30000) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{% for i in range(100000) %}{{ messages|tojson * 10000 }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ messages.append(messages) }}{{ messages|tojson }}",
    "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "{% if 1 %}" * 100_000,
)  # fmt: skip
HARMLESS = [f"{{{{ {root}{way} }}}}" for root in ROOTS for way in WAYS] + OTHERS
FOREIGN = ("<class", "<built-in", "<function", "object at 0x", "root:", "uid=", "PATH")
MAX_SECONDS = 2.0


class Probe:
    """A process that runs templates. It is replaced when it dies."""

    def __init__(self) -> None:
        self._start()

    def __call__(self, source: str) -> tuple[str, str, float]:
        """(outcome, text or refusal, seconds) of a template."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(source) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if line:
            outcome, text, took_s = json.loads(line)
            return outcome, text, took_s
        code = self._process.wait()
        self._start()
        return f"died of signal {-code}", "", 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _start(self) -> None:
        arguments = ("-m", "tests.support.template_probe", str(DEFAULT_MODEL), str(MAX_SECONDS))
        self._process = subprocess.Popen(
            [sys.executable, *arguments], cwd=REPOSITORY, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip


@contextmanager
def probing() -> Iterator[Probe]:
    probe = Probe()
    try:
        yield probe
    finally:
        probe.close()


def test_a_template_reaches_only_its_conversation(figure: Callable[[str, str], None]) -> None:
    assert len(HARMLESS) >= 200
    outcomes, times_s = Counter[str](), []
    with probing() as probe:
        for source in HARMLESS:
            outcome, text, took_s = probe(source)
            assert outcome in ("text", "refused"), source
            assert not any(word in text.replace(source, "") for word in FOREIGN), (source, text)
            outcomes[outcome] += 1
            times_s.append(took_s)
    p99_s = percentile(times_s, 0.99)
    figure("B12", f"{outcomes['text']} wrote some text, {outcomes['refused']} were refused; "
                  f"p99 {p99_s * 1000:.1f} ms")  # fmt: skip
    assert p99_s <= 0.1 * SLACK


def test_a_template_that_takes_too_long_is_refused_and_its_worker_lives_on() -> None:
    loops = "{% for i in range(9000) %}{% for j in range(9000) %}{% endfor %}{% endfor %}"
    with probing() as probe:
        pid = probe.pid
        outcome, words, _ = probe("{% if messages[0].content == 'Hello' %}" + loops + "{% endif %}")
        assert (outcome, words) == (
            "refused",
            "the chat template refuses the messages: the template takes more time than it may",
        )
        assert probe("{{ messages[0].content }}")[:2] == ("text", "Hello")
        assert probe.pid == pid


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates may take no more than a megabyte."""
    monkeypatch.setattr(renderer, "MAX_BYTES", 1 << 20)


def test_while_a_template_is_bounded_other_threads_are_not(
    default_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    template = ChatTemplate(default_model, "{{ messages[0].content }}")
    request = request_of([ChatMessage("user", "Hi")], ChatOptions())
    address_space = resource.getrlimit(resource.RLIMIT_AS)

    def make_contexts() -> None:
        for _ in range(5):
            assert resource.getrlimit(resource.RLIMIT_AS) == address_space
            Context(default_model, n_ctx=8192, n_batch=512, n_seq_max=1, n_threads=1).close()

    with ThreadPoolExecutor() as pool:
        others = pool.submit(make_contexts)
        while not others.done():
            assert template._own.reply(request)["prompt"] == "Hi"
    others.result()
    template.close()


def test_a_template_that_takes_too_much_memory_is_refused(
    default_model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = ChatTemplate(default_model, "{{ messages[0].content ~ 'x' * 50000 }}")
    request = request_of([ChatMessage("user", "Hi")], ChatOptions())
    assert template._own.reply(request)["prompt"] == "Hi" + "x" * 50_000
    with monkeypatch.context() as patched:
        small(patched)
        with pytest.raises(BadRequest, match="the template takes more memory than it is allowed"):
            template._own.reply(request)
    assert template._own.reply(request)["prompt"] == "Hi" + "x" * 50_000
    template.close()


@pytest.mark.long
def test_a_template_without_an_end_is_refused_or_ends_its_worker(
    figure: Callable[[str, str], None],
) -> None:
    found: dict[str, Any] = {}
    with probing() as probe:
        for source in BOMBS:
            found[source[:40]] = probe(source)[0]
    assert set(found.values()) <= {"refused", "died of signal 11", "died of signal 14"}, found
    n_refused = list(found.values()).count("refused")
    figure("B12", f"without an end: {n_refused} refused, {len(found) - n_refused} ended a worker")
