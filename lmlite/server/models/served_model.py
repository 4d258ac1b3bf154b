"""A model that this server can serve: its names, its files, its defaults, and its supervisor."""

from collections import deque
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from lmlite import messages
from lmlite.errors import Unavailable
from lmlite.gguf.adapter import AdapterFile
from lmlite.gguf.file import ModelFile
from lmlite.gguf.memory_estimate import Plan
from lmlite.gguf.projector import Projector
from lmlite.messages import Load, Scales
from lmlite.server.logs import printable
from lmlite.server.models import life
from lmlite.server.models.catalog import CatalogEntry
from lmlite.server.models.defaults import NO_DEFAULTS, Defaults
from lmlite.server.models.machine_memory import held_by
from lmlite.server.models.model_check import Identity
from lmlite.server.models.supervisor import Supervisor


@dataclass(eq=False)
class ServedModel:
    """A model file with its names and its defaults for requests.

    It is loaded while it has a supervisor. The registry alone changes it.
    """

    name: str  # in replies and in the log
    file: ModelFile
    supervisor: Supervisor | None = None
    defaults: Defaults = NO_DEFAULTS
    plan: Plan | None = None  # of the last load
    aliases: tuple[str, ...] = ()
    idle_s: float | None = None  # how long it stays loaded without requests; None: as others do
    entry: CatalogEntry | None = None
    projector: Projector | None = None
    draft: ModelFile | None = None  # a small model that proposes tokens to this one
    adapters: tuple[AdapterFile, ...] = ()
    wanted: Load | None = None  # how to load it, before it is fitted to the memory
    # Further names while it is loaded; clients give them, so only the last ones count.
    identifiers: deque[str] = field(default_factory=lambda: deque(maxlen=16))
    # Why the last load failed, and the files that failed; None if it was no fault of theirs.
    failure: tuple[str, list[Identity | None] | None] | None = None

    @property
    def key(self) -> str:
        """Tells it from other models, also after its file has changed."""
        return self.file.path

    @property
    def names(self) -> tuple[str, ...]:
        """All its names for clients."""
        return (self.name, *self.aliases, *self.identifiers)

    def is_named(self, name: str) -> bool:
        """Whether the name, or the name of the file, is one of this model's."""
        return name in (*self.names, printable(Path(self.file.path).name))

    def set_scales(self, scales: Scales) -> None:
        """Sets the scales of its adapters for requests that give none."""
        self.defaults = replace(self.defaults, scales=scales)

    @property
    def sees(self) -> bool:
        """Whether the model takes images."""
        return self.defaults.takes_images

    @property
    def ready(self) -> life.Ready | None:
        """The state of its worker while that takes requests, else None."""
        supervisor = self.supervisor
        return supervisor.ready if supervisor else None

    def described(self) -> messages.Ready:
        """The worker's description of the model. Raises Unavailable if no worker is ready."""
        supervisor = self.supervisor
        if supervisor is None:
            raise Unavailable(f"'{self.name}' is not loaded; a request for it loads it")
        return supervisor.loaded()

    @property
    def life(self) -> life.State:
        """The state of its worker."""
        supervisor = self.supervisor
        return supervisor.state if supervisor else life.Unloaded()

    @property
    def state(self) -> str:
        """The state in LM Studio's words, which has two more for what lies between them."""
        match self.life:
            case life.Ready():
                return "loaded"
            case life.Loading():
                return "loading"
            case life.Unloading():
                return "unloading"
        return "not-loaded"

    @property
    def load(self) -> Load | None:
        """How the model is loaded, after it was fitted to the memory; None: it is not loaded."""
        supervisor = self.supervisor
        return supervisor.load if supervisor else None

    def memory(self) -> dict[str, object]:
        """The worker's memory in bytes: estimated, allowed and held now. None: unknown."""
        assert self.plan is not None
        supervisor = self.supervisor
        estimate, pid = self.plan.estimate, supervisor.pid if supervisor else None
        held = held_by(pid) if pid is not None else None
        return {
            "estimated": asdict(estimate) | {"total": estimate.total},
            "allowed": self.plan.n_allowed,
            "held": held._asdict() if held else None,
        }
