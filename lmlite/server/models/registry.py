"""The models of this server: which there are, who uses them, and which are loaded.

Requests hold a model with a lease. `policy.py` decides which models are loaded for them and which
leave; `keeper.py` carries that out.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmlite.errors import (
    BadRequest,
    MissingParameter,
    ModelFailed,
    ModelNotFound,
    Unavailable,
)
from lmlite.gguf.memory_estimate import DoesNotFit, in_words
from lmlite.server.logs import Log
from lmlite.server.models import life
from lmlite.server.models.catalog import CatalogEntry
from lmlite.server.models.downloads import Downloads
from lmlite.server.models.keeper import Keeper
from lmlite.server.models.model_check import identities
from lmlite.server.models.policy import Resident, Ticket
from lmlite.server.models.served_model import ServedModel
from lmlite.server.models.supervisor import Supervisor
from lmlite.server.models.supply import Supply

POLL_S = 0.1  # between two looks of somebody who waits for a model


class Lease:
    """One request's hold of a model, from its arrival to its end."""

    def __init__(self, registry: "Registry", model: ServedModel, ticket: Ticket) -> None:
        self._registry, self.model, self.ticket = registry, model, ticket

    def supervisor(self, timeout_s: float) -> Supervisor | None:
        """The model's supervisor, or None if there is no room for the model within timeout_s.

        It may still be loading the model, and accepts requests while it does. Raises ModelFailed
        if there will never be room, or the model's worker could not be started.
        """
        return self._registry.supervisor_for(self, timeout_s)

    def shortage(self) -> str:
        """Why there is no room: what the model needs, what is free, and what is in use."""
        return self._registry.shortage(self.ticket)


class Registry(Keeper):
    """The models of this server."""

    def __init__(
        self,
        models: Sequence[ServedModel] = (),
        log: Log | None = None,
        supply: Supply | None = None,
        *,
        is_jit: bool = True,
        ttl_s: float | None = None,
        takes_any_name: bool = False,
        may_manage: bool = True,
        downloads: Downloads | None = None,
        presets: Path | None = None,
    ) -> None:
        """`models` are loaded already, and stay. `supply` has all models that can be served.

        `is_jit`: whether a request loads its model. `ttl_s`: how long such a model stays after its
        last request, unless the request says otherwise. `takes_any_name`: whether unknown names
        mean the default model. `presets`: the folder of presets.
        """
        super().__init__(models, log or Log(), supply)
        self.is_jit, self.ttl_s, self._takes_any_name = is_jit, ttl_s, takes_any_name
        self.may_manage, self.downloads, self.presets = may_manage, downloads, presets

    # ---- which models there are ------------------------------------------------------------

    def models(self) -> list[ServedModel]:
        """All models, in the order in which `/v1/models` lists them."""
        if self._supply is None:
            return list(self._models.values())
        found = [self._known(model) for model in self._supply.models()]
        # The file of a loaded model may be away.
        return [*(model for model in self.loaded() if model not in found), *found]

    def broken(self) -> list[tuple[CatalogEntry, str]]:
        """The files that cannot be served, each with its fault."""
        return self._supply.broken() if self._supply else []

    def listed(self) -> list[ServedModel]:
        """What clients may ask for: all models, or those that are loaded if requests load none."""
        return self.models() if self.is_jit else self.loaded()

    @property
    def is_single(self) -> bool:
        """Whether there is only one model."""
        return len(self._models) == 1 if self._supply is None else self._supply.is_single

    def find(self, name: str | None) -> ServedModel:
        """The model with this name. Raises ModelNotFound.

        Without a name: the only model that is loaded, else the only one there is. Raises
        MissingParameter if there are several.
        """
        if not name:
            return self._default()
        try:
            return self._named(name)
        except ModelNotFound:
            if not self._takes_any_name:
                raise
            return self._default(among_several=True)

    def _named(self, name: str) -> ServedModel:
        for model in self.loaded():
            if model.is_named(name):
                return model
        if self._supply is None:
            known = ", ".join(name for model in self.models() for name in model.names)
            raise ModelNotFound(
                f"there is no model '{name}'; this server has: {known}", param="model"
            )
        return self._known(self._supply.find(name))

    def _default(self, *, among_several: bool = False) -> ServedModel:
        models = self.loaded()
        if len(models) != 1:
            models = self.models()
        if not models:
            raise ModelNotFound("this server has no model", param="model")
        if len(models) > 1 and not among_several:
            known = ", ".join(model.name for model in models)
            raise MissingParameter(f"model is missing; this server has: {known}", param="model")
        return models[0]

    def _known(self, model: ServedModel) -> ServedModel:
        """The object that is loaded, in place of a newer one of the same model."""
        known = self._models.get(model.key)
        return known if known is not None and self._policy.knows(model.key) else model

    def check_admission(self) -> None:
        """Raises Unavailable when any further request would be refused."""
        for model in self.loaded() if self.is_single else ():
            if (supervisor := model.supervisor) is not None:
                supervisor.check_admission()

    # ---- requests --------------------------------------------------------------------------

    @contextmanager
    def lease(
        self,
        model: ServedModel,
        ttl_s: float | None = None,
        *,
        stays: bool = False,
        changes: Mapping[str, Any] | None = None,
    ) -> Iterator[Lease]:
        """Holds the model until the `with` block ends; loads it if it is not loaded.

        `ttl_s`: how long it then stays after its last request; None: until its memory is needed.
        `stays`: it does not leave to make room. `changes`: values for fields of its Load. Raises
        ModelFailed or ModelNotFound.
        """
        with self._changed:
            model = self._known(model)
            resident = self._policy.residents.get(model.key)
            if resident is None and not (self.is_jit or stays):
                raise ModelNotFound(
                    f"'{model.name}' is not loaded, and this server loads models only when told to:"
                    f" lmlite load {model.name}",
                    param="model",
                )
            n_bytes = resident.n_bytes if resident else self._reckon(model, changes)
            ticket = Ticket(model.key, n_bytes, ttl_s, stays)
            self._models[model.key] = model
            self._policy.arrive(ticket, time.monotonic())
            if not ticket.is_admitted:
                self._check_queue(ticket)
                self._changed.notify_all()
        try:
            yield Lease(self, model, ticket)
        finally:
            with self._changed:
                self._policy.leave(ticket, time.monotonic())
                if self._has_work(model, ticket):
                    self._changed.notify_all()

    def _check_queue(self, ticket: Ticket) -> None:
        """Raises Unavailable if too many requests wait for the ticket's model already."""
        load = self._plans[ticket.key].load
        n_waiting = self._policy.n_waiting(ticket.key) - 1
        if n_waiting >= load.n_parallel + load.n_queue:
            self._policy.leave(ticket, time.monotonic())
            raise Unavailable(f"{n_waiting} requests are waiting already")

    def _has_work(self, model: ServedModel, ticket: Ticket) -> bool:
        """Whether the keeper has something to do after this ticket's end. Mostly it has not."""
        resident, now_s = ticket.resident, time.monotonic()
        return (
            resident is None
            or resident.is_ending
            or self._policy.has_line
            or isinstance(model.life, life.Failed)
            or (resident.is_idle and now_s + resident.left_s(now_s) < self._looks_at_s)
        )

    def has_room_for(self, model: ServedModel) -> bool:
        """Whether the model fits beside those that are loaded. Raises ModelFailed."""
        with self._changed:
            return self._reckon(model, None) <= self._n_free()

    def _reckon(self, model: ServedModel, changes: Mapping[str, Any] | None) -> int:
        """Plans the load of a model, unless others wait for it; returns its bytes.

        If no bound is known, each model counts as 1. Raises ModelFailed.
        """
        if self._supply is None or self._is_closing:
            raise Unavailable("the server is stopping")
        failure = None if changes else model.failure  # other settings may be right
        if failure is not None and failure[1] == identities(model.file):
            raise ModelFailed(f"the model is not available: {failure[0]}")
        bound = self._supply.bound(self._holders())
        if bound is not None:  # those that can leave do not count
            bound = bound._replace(n_bytes=bound.n_bytes + self._policy.n_evictable())
        if not self._policy.knows(model.key):
            try:
                self._plans[model.key] = self._supply.plan(model, bound, changes or {})
                self._asked[model.key] = changes or {}
            except DoesNotFit as err:
                raise ModelFailed(str(err)) from None
        return self._plans[model.key].estimate.total if bound is not None else 1

    def supervisor_for(self, lease: Lease, timeout_s: float) -> Supervisor | None:
        """See Lease.supervisor."""
        model, ticket = lease.model, lease.ticket
        with self._changed:
            self._changed.wait_for(
                lambda: ticket.refusal or self._has_ended(ticket) or self._supervisor(lease),
                timeout_s,
            )
            if ticket.refusal:
                raise ModelFailed(ticket.refusal)
            if self._has_ended(ticket):
                why = model.failure[0] if model.failure else "its worker could not be started"
                raise ModelFailed(f"the model is not available: {why}")
            supervisor = self._supervisor(lease)
            if supervisor is None and self._is_closing:
                raise Unavailable("the server is stopping")
            return supervisor

    def shortage(self, ticket: Ticket) -> str:
        """See Lease.shortage."""
        with self._changed:
            in_use = [r.key for r in self._policy.residents.values() if r.n_users]
            names = " and ".join(self._models[key].name for key in in_use) or "none"
            if (bound := self._bound()) is None:
                return f"{names} in use"
            return (
                f"it needs {in_words(ticket.n_bytes)} of memory, {in_words(max(0, bound.n_bytes))} "
                f"is free, and in use: {names}"
            )

    def _has_ended(self, ticket: Ticket) -> bool:
        """Whether the load that the ticket was admitted to has failed."""
        return ticket.is_admitted and self._policy.residents.get(ticket.key) is not ticket.resident

    def _supervisor(self, lease: Lease) -> Supervisor | None:
        return lease.model.supervisor if lease.ticket.is_admitted else None

    # ---- managing --------------------------------------------------------------------------

    def load(
        self,
        name: str,
        identifier: str | None = None,
        ttl_s: float | None = None,
        changes: Mapping[str, Any] | None = None,
        poll: Callable[[], object] = lambda: None,
    ) -> ServedModel:
        """Loads a model, which then stays, or has its time to live; returns once it is ready.

        `identifier`: a further name while it is loaded. `changes`: values for fields of its Load.
        `poll` is called now and then, and may raise to give up. Raises ApiError.
        """
        model = self.find(name)
        self._check_identifier(identifier, model)
        self._check_changes(model, changes or {})
        is_begun = model.supervisor is None
        with self.lease(model, ttl_s, stays=True, changes=changes) as lease:
            model = lease.model
            try:
                while (supervisor := lease.supervisor(POLL_S)) is None:
                    poll()
                while supervisor.ready is None:
                    supervisor.wait_until_settled(POLL_S)
                    if (error := life.refusal(supervisor.state)) is not None:
                        raise error
                    poll()
            except BaseException:
                if is_begun:
                    self._let_go(model)
                raise
            self._check_changes(model, changes or {})  # another request may have loaded it
            with self._changed:
                self._policy.keep(model.key, stays=True, ttl_s=ttl_s)
                self._changed.notify_all()
                if identifier and not model.is_named(identifier):
                    model.identifiers.append(identifier)
        return model

    def _let_go(self, model: ServedModel) -> None:
        """A load that has failed, or that nobody waits for any more, leaves nothing behind."""
        with self._changed:
            if model.ready is None:
                self._policy.ask_to_leave(model.key)
                self._changed.notify_all()

    def _check_identifier(self, identifier: str | None, model: ServedModel) -> None:
        for other in self.models() if identifier else ():
            if other is not model and other.is_named(str(identifier)):
                raise BadRequest(f"'{identifier}' is another model's name", param="identifier")

    def _check_changes(self, model: ServedModel, changes: Mapping[str, Any]) -> None:
        """A loaded model is not loaded a second time. Raises BadRequest if it would have to be."""
        plan, asked = self._plans.get(model.key), self._asked.get(model.key, {})
        if model.supervisor is None or plan is None:
            return
        for field, value in changes.items():
            if value not in (getattr(plan.load, field), asked.get(field)):
                raise BadRequest(
                    f"'{model.name}' is loaded with another {field}; unload it first", param=field
                )

    def unload(self, name: str, poll: Callable[[], object] = lambda: None) -> str:
        """Unloads a model once its answers have ended; returns its name when it is gone.

        `poll` is called now and then, and may raise to give up. Raises ModelNotFound if the model
        is not loaded.
        """
        model = self._named(name)
        if (supervisor := model.supervisor) is None:
            raise ModelNotFound(f"'{model.name}' is not loaded", param="model")
        with self._changed:
            self._policy.ask_to_leave(model.key)
            self._changed.notify_all()
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: model.supervisor is not supervisor, POLL_S):
                    return model.name
            poll()

    def n_open(self) -> int:
        """The number of requests that are running or waiting for a worker."""
        return sum(model.supervisor.n_open() for model in self.loaded() if model.supervisor)

    def n_worker_starts(self) -> int:
        """How many workers were started."""
        found = (model.supervisor.n_started for model in self.loaded() if model.supervisor)
        return self._n_past_starts + sum(found)

    def resident(self, model: ServedModel) -> Resident | None:
        """What the policy knows of a loaded model: its users, its time to live."""
        with self._changed:
            return self._policy.residents.get(model.key)

    def close(self) -> None:
        """Stops every worker and every download, for good."""
        if self.downloads is not None:
            self.downloads.close()
        self.stop()
