"""The models of this server, and their names."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from lmlite.errors import ModelNotFound
from lmlite.gguf.file import ModelFile
from lmlite.gguf.memory_estimate import Plan
from lmlite.server.logs import printable
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults
from lmlite.server.models.machine_memory import held_by
from lmlite.server.models.supervisor import Supervisor


@dataclass(frozen=True)
class ServedModel:
    """A model file with its names, its supervisor, and its defaults for requests."""

    name: str  # in replies and in the log
    file: ModelFile
    supervisor: Supervisor
    defaults: Defaults = NO_DEFAULTS
    plan: Plan | None = None
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All its names for clients."""
        return (self.name, *self.aliases)

    def memory(self) -> dict[str, object]:
        """The worker's memory in bytes: estimated, allowed and held now. None: unknown."""
        assert self.plan is not None
        estimate, pid = self.plan.estimate, self.supervisor.pid
        held = held_by(pid) if pid is not None else None
        return {
            "estimated": asdict(estimate) | {"total": estimate.total},
            "allowed": self.plan.n_allowed,
            "held": held._asdict() if held else None,
        }

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        return self.defaults.takes_images


class Registry:
    """The models of this server."""

    def __init__(self, models: list[ServedModel]) -> None:
        self._models = models

    def models(self) -> list[ServedModel]:
        """All models, in the order in which `/v1/models` lists them."""
        return list(self._models)

    def find(self, name: str | None) -> ServedModel:
        """The model with this name or file name; without a name, the first one.

        Raises ModelNotFound.
        """
        for model in self._models:
            if not name or name in (*model.names, printable(Path(model.file.path).name)):
                return model
        known = ", ".join(name for model in self._models for name in model.names)
        raise ModelNotFound(f"there is no model '{name}'; this server has: {known}", param="model")

    @contextmanager
    def acquire(self, name: str | None) -> Iterator[ServedModel]:
        """The model for one request, until the `with` block ends. Raises ModelNotFound."""
        yield self.find(name)

    def close(self) -> None:
        """Stops every worker."""
        for model in self._models:
            model.supervisor.stop()
