"""What the registry needs from a source of models: the list, and how to load each."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lmlite.gguf.memory_estimate import Plan
from lmlite.server.models.catalog import CatalogEntry
from lmlite.server.models.machine_memory import Bound
from lmlite.server.models.served_model import ServedModel
from lmlite.server.models.supervisor import Supervisor


class Supply(Protocol):
    """Where models come from."""

    def models(self) -> list[ServedModel]:
        """All that can be served, in the order of `/v1/models`."""

    @property
    def is_single(self) -> bool:
        """Whether there is only one file."""

    def broken(self) -> list[tuple[CatalogEntry, str]]:
        """The files that cannot be served, each with its fault."""

    def find(self, name: str) -> ServedModel:
        """The model with this name. Raises ModelNotFound."""

    def bound(self, loaded: Sequence[ServedModel]) -> Bound | None:
        """What one more model may take beside these; None: no bound is known."""

    def plan(self, model: ServedModel, bound: Bound | None, changes: Mapping[str, Any]) -> Plan:
        """How to load a model. Raises DoesNotFit."""

    def supervisor(self, model: ServedModel, plan: Plan) -> Supervisor:
        """The model's supervisor, which is not started."""
