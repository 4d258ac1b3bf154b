"""Loads and unloads models as the policy decides: the registry's lower half.

It has a thread of its own, the keeper, so that no two decisions overlap. A model's supervisor
exists while the model is loaded, is being loaded or is leaving.
"""

import contextlib
import threading
import time
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any

from lmlite.gguf.memory_estimate import DoesNotFit, Plan, in_words
from lmlite.server.logs import Level, Log
from lmlite.server.models import life
from lmlite.server.models.machine_memory import Bound
from lmlite.server.models.model_check import identities
from lmlite.server.models.policy import Load, Policy, Resident, Unload
from lmlite.server.models.served_model import ServedModel
from lmlite.server.models.supply import Supply

LOOK_S = 0.5  # between two looks at the memory while a model waits for it


class Keeper:
    """The models that have been asked for, and the thread that loads and unloads them."""

    def __init__(self, models: Sequence[ServedModel], log: Log, supply: Supply | None) -> None:
        """`models` are loaded already, and stay."""
        self._models = {model.key: model for model in models}  # those that have been asked for
        self._log, self._supply = log, supply
        self.n_loads = self.n_unloads = 0
        self._n_past_starts = 0  # workers of supervisors that are gone
        self._policy = Policy(lambda key: self._models[key].name)
        for model in models:
            self._policy.residents[model.key] = Resident(model.key, 0, ttl_s=None, stays=True)
        self._plans: dict[str, Plan] = {}  # of models that wait or are loaded
        self._asked: dict[str, Mapping[str, Any]] = {}  # changes of their Load, before the plan
        self._changed = threading.Condition(threading.RLock())  # guards all of the above
        self._is_closing = False
        self._looks_at_s = inf  # when the keeper looks again, unless it is notified
        self._thread = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def start(self) -> None:
        """Starts the thread. Without it no model is loaded, and none leaves."""
        self._thread.start()

    def stop(self) -> None:
        """Stops every worker. From now on none is started."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        for model in self.loaded():
            if (supervisor := model.supervisor) is not None:
                supervisor.stop()

    def loaded(self) -> list[ServedModel]:
        """The models that have a worker, or are about to."""
        with self._changed:
            return [model for model in self._models.values() if model.supervisor is not None]

    def _keep(self) -> None:
        while not self._is_closing:
            try:
                for action in self._decided():
                    if isinstance(action, Unload):
                        self._unload(action.resident)
                    else:
                        self._load(action.resident)
            except Exception as err:  # a mistake here, or no memory; all models need this thread
                self._log.line("error", f"the keeper of models: {type(err).__name__}: {err}")
                with self._changed:
                    self._changed.wait(LOOK_S)

    def _decided(self) -> list[Load | Unload]:
        """What to do now. If that is nothing, waits until there may be something."""
        with self._changed:
            self._let_failed_leave()
            now = time.monotonic()
            if self._policy.has_line:
                self._plan_again()
            n_free = self._n_free() if self._policy.has_line else 0.0
            actions = self._policy.decide(n_free, now)
            for action in actions:
                if isinstance(action, Load):
                    self._models[action.resident.key].plan = self._plans[action.resident.key]
            self._changed.notify_all()  # a ticket may have been admitted or refused
            if not actions:
                pause_s = self._pause_s(now)
                self._looks_at_s = inf if pause_s is None else now + pause_s
                self._changed.wait(pause_s)
            return actions

    def _pause_s(self, now_s: float) -> float | None:
        """Until the next time to live ends. Memory becomes free without notice."""
        looks = [self._policy.next_look_s(now_s), LOOK_S if self._policy.has_line else None]
        return min((look_s for look_s in looks if look_s is not None), default=None)

    def _plan_again(self) -> None:
        """Plans the next load anew if there is less memory than when it was planned."""
        head, bound = self._policy.line[0], self._bound()
        if bound is None or self._supply is None or head.key in self._policy.residents:
            return
        bound = bound._replace(n_bytes=bound.n_bytes + self._policy.n_evictable())
        if head.n_bytes <= bound.n_bytes:
            return
        with contextlib.suppress(DoesNotFit):  # then the policy refuses it
            plan = self._supply.plan(self._models[head.key], bound, self._asked[head.key])
            self._plans[head.key] = plan
            self._policy.estimate(head.key, plan.estimate.total)

    def _n_free(self) -> float:
        """Bytes that further models may take."""
        bound = self._bound()
        if bound is not None:
            return bound.n_bytes
        # The memory of a GPU is not known here, so only one model at a time is loaded by requests.
        return 1 - self._policy.n_evictable()

    def _bound(self) -> Bound | None:
        return self._supply.bound(self._holders()) if self._supply else None

    def _holders(self) -> list[ServedModel]:
        """The models whose memory is taken, also those that the keeper is about to load."""
        return [self._models[key] for key in self._policy.residents]

    def _let_failed_leave(self) -> None:
        """A model that cannot be loaded leaves, and is tried again once its file has changed."""
        for model in self.loaded():
            resident = self._policy.residents.get(model.key)
            if resident is None or resident.stays or not resident.is_idle:
                continue
            if isinstance(failed := model.life, life.Failed):
                model.failure = (failed.reason, list(identities(model.file)))
                self._policy.ask_to_leave(model.key)

    def _load(self, resident: Resident) -> None:
        assert self._supply is not None
        model, plan = self._models[resident.key], self._plans[resident.key]
        for note in plan.notes:
            self._log.line("warning", note)
        try:
            supervisor = self._supply.supervisor(model, plan)
            supervisor.start()
        except Exception as err:  # no threads or no memory; or a mistake, which ends no other load
            self._log.line("error", f"{model.name} could not be loaded: {err}")
            with self._changed:
                model.failure = (str(err), None)  # no fault of the files: it may be tried again
                self._policy.gone(model.key)
                self._changed.notify_all()
            return
        with self._changed:
            model.failure = None
            model.supervisor = supervisor
            self.n_loads += 1
            self._changed.notify_all()
            if self._is_closing:
                supervisor.stop()
        level: Level = "debug" if resident.stays else "info"  # who told it to load is told
        self._log.line(level, f"loading {model.name}, {in_words(resident.n_bytes)}")

    def _unload(self, resident: Resident) -> None:
        model = self._models[resident.key]
        supervisor = model.supervisor
        try:
            if supervisor is not None:
                supervisor.stop()
        finally:
            with self._changed:
                self._n_past_starts += supervisor.n_started if supervisor is not None else 0
                model.supervisor = None
                model.identifiers.clear()
                self.n_unloads += 1
                self._policy.gone(model.key)
                self._changed.notify_all()
        self._log.line("info", f"unloaded {model.name}")
