"""A shelf of models that do not exist: they have sizes, and workers without a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmlite.errors import ModelNotFound
from lmlite.gguf.memory_estimate import DoesNotFit, Estimate, Plan
from lmlite.messages import Load
from lmlite.server.logs import Log
from lmlite.server.models.catalog import CatalogEntry
from lmlite.server.models.defaults import NO_DEFAULTS
from lmlite.server.models.machine_memory import Bound
from lmlite.server.models.served_model import ServedModel
from lmlite.server.models.supervisor import Supervisor
from tests.support.house import FAKE_WORKER, model_file


class FakeShelf:
    """Models by name with their sizes in bytes, in a memory of n_bytes."""

    def __init__(self, sizes: Mapping[str, int], n_bytes: int, log: Log) -> None:
        self._sizes, self.n_bytes, self._log = sizes, n_bytes, log
        self.n_looks = 0  # at the memory
        self.before: Callable[[str], None] = lambda _: None  # runs before each load
        self.modes: dict[str, str] = {}  # of the fake worker, by model
        self.shrinks = False  # whether a model takes what there is, if that is less than its size
        self.others: dict[str, str] = {}  # other spellings -> names
        self._models = {
            name: ServedModel(
                name, model_file(f"/nowhere/{name}.gguf"), defaults=NO_DEFAULTS,
                wanted=Load(f"/nowhere/{name}.gguf"),
            )
            for name in sizes
        }  # fmt: skip
        self.supervisors: list[tuple[str, Supervisor]] = []  # in the order in which they were made

    def models(self) -> list[ServedModel]:
        return list(self._models.values())

    def broken(self) -> list[tuple[CatalogEntry, str]]:
        return []

    @property
    def is_single(self) -> bool:
        return len(self._models) == 1

    def find(self, name: str) -> ServedModel:
        name = self.others.get(name, name)
        if name not in self._models:
            raise ModelNotFound(f"there is no model '{name}'", param="model")
        return self._models[name]

    def bound(self, loaded: Sequence[ServedModel]) -> Bound:
        self.n_looks += 1
        n_taken = sum(self._sizes[model.name] for model in loaded)
        return Bound("the test allows", self.n_bytes - n_taken)

    def plan(self, model: ServedModel, bound: Bound | None, changes: Mapping[str, Any]) -> Plan:
        assert model.wanted is not None and bound is not None
        n_bytes = self._sizes[model.name]
        if self.shrinks:
            n_bytes = min(n_bytes, bound.n_bytes)
        if n_bytes > bound.n_bytes:
            raise DoesNotFit(f"{model.name} needs {n_bytes}, and {bound.because} {bound.n_bytes}")
        parts = Estimate(n_bytes, 0, 0, 0, 0, 0, 0, process=0)
        return Plan(replace(model.wanted, **changes), parts, bound.n_bytes)

    def supervisor(self, model: ServedModel, plan: Plan) -> Supervisor:
        self.before(model.name)
        command = (*FAKE_WORKER, self.modes.get(model.name, ""))
        made = Supervisor(plan.load, self._log, command)
        self.supervisors.append((model.name, made))
        return made

    def loads(self) -> list[str]:
        """The names of the models that were loaded, in order."""
        return [name for name, _ in self.supervisors]
