"""Which models are loaded, which leave to make room, and who waits. Pure policy.

No threads, no clock: the registry calls it under its lock, tells it the time and the free memory,
asks for decisions after each change, and carries them out.

There is one line of tickets, in order of arrival. Nothing is loaded before the model of the first
one, the head, so small models do not keep a large one waiting. When a model is loaded, all tickets
that wait for it are admitted together.

"Somebody waits for a model" means that a ticket is admitted to it, also while it is still being
loaded. Such a model never leaves. If the head needs its memory, it *drains*: it takes no new
tickets, and leaves when those that it has have ended. New ones join the line and wait for its next
load.

Nobody starves, if answers, loads and unloads end:

- Busy models drain in the order of their last arrivals. One that drains gets no arrivals and the
  others only move back, so the first keeps its place until it is idle. The head therefore waits for
  tickets that were admitted before it became the head, and for unloads, and for nothing else.
- Each model ahead in the line is the head's once, so their number bounds the time in the line.
- Models that drain are chosen anew at each decision. If the head gives up, or room comes from
  elsewhere, they take tickets again, also those that have joined the line meanwhile.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from lmlite.gguf.memory_estimate import in_words


@dataclass(eq=False)
class Resident:
    """A model that holds memory: loaded, being loaded, or leaving."""

    key: str
    n_bytes: int
    ttl_s: float | None  # idle time after which it leaves; None: never by time
    stays: bool  # never leaves to make room
    n_users: int = 0  # tickets admitted to it
    last_used_s: float = 0.0  # when its last user left; while it has users, when the last one came
    is_leaving: bool = False  # told to unload; its memory is still held
    is_asked_to_leave: bool = False  # leaves when its users have ended

    @property
    def is_idle(self) -> bool:
        """Whether it may be told to leave now."""
        return self.n_users == 0 and not self.is_leaving

    @property
    def is_ending(self) -> bool:
        """Whether its memory comes free without another model's need of it."""
        return self.is_leaving or self.is_asked_to_leave

    def left_s(self, now_s: float) -> float:
        """Seconds until its time to live ends, if it is idle now and stays so."""
        return inf if self.ttl_s is None else self.last_used_s + self.ttl_s - now_s


@dataclass(eq=False)
class Ticket:
    """The hold of one request, or of one explicit load, on a model."""

    key: str
    n_bytes: int  # what the model takes once it is loaded, estimated
    ttl_s: float | None  # for a model that is loaded for this ticket
    stays: bool  # an explicit load
    resident: Resident | None = None  # what it was admitted to; kept when that is gone
    refusal: str | None = None  # why it can never be admitted, in a sentence

    @property
    def is_admitted(self) -> bool:
        """Whether the model is loaded, or being loaded, for this ticket."""
        return self.resident is not None


class Load(NamedTuple):
    """Start to load this model now."""

    resident: Resident


class Unload(NamedTuple):
    """Nobody uses this model: stop its worker, then call `gone`."""

    resident: Resident


@dataclass
class Policy:
    """The models that hold memory, and the line of tickets that wait for others."""

    name_of: Callable[[str], str] = str  # a model's name in refusals, by key
    residents: dict[str, Resident] = field(default_factory=dict)
    line: list[Ticket] = field(default_factory=list)
    draining: set[str] = field(default_factory=set)  # models with users that make room for the head

    def arrive(self, ticket: Ticket, now_s: float) -> None:
        """Admits the ticket if its model is there and takes new ones; else it joins the line."""
        self.line.append(ticket)
        if self._is_open(ticket.key):
            self._admit(ticket.key, now_s)

    def leave(self, ticket: Ticket, now_s: float) -> None:
        """The ticket has ended, in the line or admitted, also if its model is gone. Once each."""
        if ticket in self.line:
            self.line.remove(ticket)
        if (resident := ticket.resident) is not None:
            assert resident.n_users > 0
            resident.n_users -= 1
            # While others use it, the end of one changes nothing: the order in which models drain
            # would change, and models could take turns without ever becoming idle.
            if resident.n_users == 0:
                resident.last_used_s = now_s

    def decide(self, n_free: float, now_s: float) -> list[Load | Unload]:
        """What to do now. Call it after each change, and after `next_look_s`.

        n_free: bytes for further models; residents, also leaving ones, are already subtracted.
        Decisions count as done: what they load is resident, with its tickets admitted.
        """
        decisions: list[Load | Unload] = self._unload(self._overdue(now_s))
        self.draining = set()
        while self.line:
            head = self.line[0]
            if head.key not in self.residents:
                n_reachable = n_free + self.n_evictable()
                if head.n_bytes > n_reachable:
                    self.line.remove(head)
                    head.refusal = self._refusal(head, n_reachable)
                    continue
                if head.n_bytes > n_free:
                    decisions += self._make_room(head.n_bytes - n_free)
                    break
                n_free -= head.n_bytes
                resident = Resident(head.key, head.n_bytes, head.ttl_s, head.stays)
                self.residents[head.key] = resident
                decisions.append(Load(resident))
            if not self._is_open(head.key):
                break  # its next load follows when it is gone
            self._admit(head.key, now_s)
        for key in {ticket.key for ticket in self.line}:
            if self._is_open(key):
                self._admit(key, now_s)
        return decisions

    def estimate(self, key: str, n_bytes: int) -> None:
        """Those who wait for a model now wait for this many bytes."""
        for ticket in self.line:
            if ticket.key == key:
                ticket.n_bytes = n_bytes

    def gone(self, key: str) -> None:
        """The memory of a model that was unloaded, or has failed, is free again."""
        self.residents.pop(key, None)

    def ask_to_leave(self, key: str) -> None:
        """The model, if there, takes no new tickets, and leaves when its last user has left."""
        if key in self.residents:
            self.residents[key].is_asked_to_leave = True

    def keep(self, key: str, *, stays: bool, ttl_s: float | None) -> None:
        """A resident model was loaded explicitly, too: this decides from now on how it leaves."""
        self.residents[key].stays, self.residents[key].ttl_s = stays, ttl_s

    def next_look_s(self, now_s: float) -> float | None:
        """Seconds until the next time to live of an idle model ends. None: none will."""
        left_s = min((r.left_s(now_s) for r in self.residents.values() if r.is_idle), default=inf)
        return None if left_s == inf else max(0.0, left_s)

    @property
    def has_line(self) -> bool:
        """Whether somebody waits for memory."""
        return bool(self.line)

    def n_waiting(self, key: str) -> int:
        """How many tickets in the line are for this model."""
        return sum(ticket.key == key for ticket in self.line)

    def knows(self, key: str) -> bool:
        """Whether the model holds memory or is waited for."""
        return key in self.residents or any(ticket.key == key for ticket in self.line)

    def n_evictable(self) -> int:
        """Bytes of the residents that leave, or may be told to."""
        return sum(r.n_bytes for r in self.residents.values() if not r.stays or r.is_ending)

    def _is_open(self, key: str) -> bool:
        """Whether a model takes new tickets."""
        resident = self.residents.get(key)
        return resident is not None and not resident.is_ending and key not in self.draining

    def _admit(self, key: str, now_s: float) -> None:
        """Admits all tickets in the line that are for this resident."""
        resident = self.residents[key]
        for ticket in [ticket for ticket in self.line if ticket.key == key]:
            self.line.remove(ticket)
            ticket.resident = resident
            resident.n_users += 1
            resident.last_used_s = now_s
            if ticket.stays:
                self.keep(key, stays=True, ttl_s=ticket.ttl_s)

    def _overdue(self, now_s: float) -> list[Resident]:
        """The idle models that were asked to leave, or are idle for too long and not wanted."""
        wanted = {ticket.key for ticket in self.line}
        return [
            r
            for r in self.residents.values()
            if r.is_idle and (r.is_asked_to_leave or (r.left_s(now_s) <= 0 and r.key not in wanted))
        ]

    def _make_room(self, n_needed: float) -> list[Load | Unload]:
        """Unloads idle models and, if these do not suffice, lets busy ones drain. The least."""
        n_needed -= sum(r.n_bytes for r in self.residents.values() if r.is_ending)
        able = [r for r in self.residents.values() if not r.stays and not r.is_ending]
        victims: list[Resident] = []
        for resident in sorted(able, key=lambda r: (r.n_users > 0, r.last_used_s)):
            if n_needed > 0:
                victims.append(resident)
                n_needed -= resident.n_bytes
        for victim in [r for r in reversed(victims) if r.is_idle]:
            if n_needed + victim.n_bytes <= 0:  # a larger one makes enough room without it
                victims.remove(victim)
                n_needed += victim.n_bytes
        self.draining = {r.key for r in victims if r.n_users > 0}
        return self._unload([r for r in victims if r.is_idle])

    def _unload(self, residents: list[Resident]) -> list[Load | Unload]:
        for resident in residents:
            resident.is_leaving = True
        return [Unload(resident) for resident in residents]

    def _refusal(self, head: Ticket, n_reachable: float) -> str:
        kept = sorted(
            self.name_of(r.key) for r in self.residents.values() if r.stays and not r.is_ending
        )
        unload = f"unload {' or '.join(kept)}, or " if kept else ""
        return (
            f"{self.name_of(head.key)} needs {in_words(head.n_bytes)} of memory, and at most "
            f"{in_words(max(0, int(n_reachable)))} can be made free; {unload}use a smaller model"
        )
