"""Makes served models from the files of the catalog: checks them, plans and supervises them.

Does not load a model: its supervisor does that once it is started.
"""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmlite
from lmlite.errors import ModelFileError, ModelNotFound
from lmlite.gguf import memory_estimate
from lmlite.gguf.adapter import read_adapter_file
from lmlite.gguf.file import ModelFile, read_model_file
from lmlite.gguf.memory_estimate import Plan
from lmlite.gguf.projector import read_projector_file
from lmlite.messages import Load, RopeScaling
from lmlite.server.logs import Log
from lmlite.server.models.catalog import Catalog, CatalogEntry
from lmlite.server.models.defaults import Defaults
from lmlite.server.models.hosts import Hosts
from lmlite.server.models.machine_memory import Bound, Share, least_bound
from lmlite.server.models.model_check import Identity, has_changed, path_identity
from lmlite.server.models.served_model import ServedModel
from lmlite.server.models.settings import load_with, read_settings, with_settings
from lmlite.server.models.supervisor import WATCHDOG_S, Supervisor
from lmlite.server.models.worker_process import WorkerProcess

EMBEDDED_MODEL = Path(lmlite.__file__).parent / "models" / "tiny.gguf"
EMBEDDED_PROJECTOR = EMBEDDED_MODEL.with_name("tiny-mmproj.gguf")


@dataclass(frozen=True)
class ModelOptions:
    """The user's choices for all models."""

    load: Load  # `Shelf` adds the values that come from a model's files
    defaults: Callable[[ModelFile, bool], Defaults]  # arguments: the file, whether it takes images
    chat_template_path: str | None = None
    loras: Sequence[tuple[str, float]] = ()  # files of adapters, and their scales
    memory: int | None = None  # bytes that the workers may take; None: all that the machine has
    watchdog_s: float = WATCHDOG_S
    idle_unload: float | None = None  # seconds after which a named model leaves; None: never


class Shelf:
    """The models that this server can serve, made from the catalog's files when asked for."""

    def __init__(
        self,
        catalog: Catalog,
        options: ModelOptions,
        log: Log,
        prestarted: WorkerProcess | None = None,
    ) -> None:
        """`prestarted`: a running process without a model, for the first model that is loaded."""
        self._catalog, self._options, self._log = catalog, options, log
        self._prestarted = prestarted
        # Each with the identities of its settings files.
        self._models: dict[CatalogEntry, tuple[ServedModel, list[Identity | None]]] = {}
        self._making = threading.Lock()  # guards the two above

    def models(self) -> list[ServedModel]:
        """All models that can be served, in the catalog's order."""
        found = [model for _, model in self._all() if isinstance(model, ServedModel)]
        for note in self._catalog.notes():
            self._log.line_once("warning", note)
        return found

    @property
    def is_single(self) -> bool:
        """Whether there is only one file."""
        return len(self._catalog.entries()) == 1

    def broken(self) -> list[tuple[CatalogEntry, str]]:
        """The files that cannot be served, each with its fault."""
        found = self._all(at_once=True)  # else a file that was just removed would be broken
        return [(entry, str(err)) for entry, err in found if isinstance(err, ModelFileError)]

    def _all(
        self, *, at_once: bool = False
    ) -> Iterator[tuple[CatalogEntry, ServedModel | ModelFileError]]:
        for entry in self._catalog.entries(at_once):
            found: ServedModel | ModelFileError
            try:
                found = self.model(entry)
            except ModelFileError as err:
                self._log.line_once("warning", f"{entry.name} is not served: {err}")
                found = err
            yield entry, found

    def named(self) -> list[ServedModel]:
        """Those that the command line names. Raises ModelFileError."""
        return [self.model(entry) for entry in self._catalog.entries() if entry.is_named]

    @property
    def sees(self) -> bool:
        """Whether any of the models may take images."""
        entries = self._catalog.entries()
        return bool(self._options.load.mmproj_path) or any(map(projector_path, entries))

    def find(self, name: str) -> ServedModel:
        """The model with this name. Raises ModelNotFound."""
        entry = self._catalog.find(name)
        try:
            return self.model(entry)
        except ModelFileError as err:
            raise ModelNotFound(f"'{entry.name}' cannot be served: {err}", param="model") from None

    def model(self, entry: CatalogEntry) -> ServedModel:
        """The model of a file. Raises ModelFileError."""
        file = self._catalog.read(entry)
        settings = [path_identity(path) for path in entry.settings_paths]
        with self._making:
            known, known_settings = self._models.get(entry, (None, []))
            if (
                known is None
                or known.file is not file
                or known_settings != settings
                or any(
                    has_changed(file)
                    for file in (known.projector, known.draft, *known.adapters)
                    if file is not None
                )
            ):
                known = self._made(entry, file)
                self._models[entry] = known, settings
            return known

    def _made(self, entry: CatalogEntry, file: ModelFile) -> ServedModel:
        options = self._options
        path = options.load.mmproj_path or projector_path(entry)
        projector = read_projector_file(os.path.realpath(path)) if path else None
        settings = read_settings(entry.settings_paths)
        for line in settings.unknown:
            self._log.line_once("warning", line)
        load = load_with(options.load, settings)
        draft = None if file.embeds_only else self._draft(entry, load.draft_path)
        adapters = tuple(
            read_adapter_file(os.path.realpath(path), file) for path, _ in options.loras
        )
        load = replace(
            load,
            model_path=file.path,
            parts=file.parts,
            generates=not file.embeds_only,
            ranker=file.ranker,
            rope=scaled(load.rope, load.n_ctx, file.n_ctx_train),
            chat_template=load.chat_template or _template(options.chat_template_path),
            mmproj_path=projector.path if projector else None,
            draft_path=draft.path if draft else None,
            draft_parts=draft.parts if draft else (),
            adapters=tuple(adapter.parts[0] for adapter in adapters),
            cache_dir=self._cache_dir(entry),
        )
        defaults = replace(
            options.defaults(file, projector is not None),
            scales=tuple(scale for _, scale in options.loras),
        )
        name, *aliases = entry.aliases or (entry.name,)
        return ServedModel(
            name,
            file,
            defaults=with_settings(defaults, settings, "model settings"),
            aliases=tuple(aliases),
            idle_s=options.idle_unload if entry.is_named else None,
            entry=entry,
            projector=projector,
            draft=draft,
            adapters=adapters,
            wanted=load,
        )

    def _draft(self, entry: CatalogEntry, name: str | None) -> ModelFile | None:
        """The draft model: the file of --draft, or what the model's settings call it.

        These name a file beside the model, or one of the models. Raises ModelFileError.
        """
        if name is None:
            return None
        path = Path(entry.path).with_name(os.path.basename(name))
        if name == self._options.load.draft_path:
            path = Path(name)
        elif os.path.basename(name) != name or not path.is_file():
            try:
                path = Path(self._catalog.find(name).path)
            except ModelNotFound as err:
                self._log.line_once("warning", f"{entry.name} has no draft model: {err}")
                return None
        return read_model_file(os.path.realpath(path))

    def _cache_dir(self, entry: CatalogEntry) -> str | None:
        """The model's own folder of checkpoints, if it is one of several models."""
        folder = self._options.load.cache_dir
        if folder is None or len(self._catalog.entries()) == 1:
            return folder
        digest = hashlib.blake2b(os.fsencode(entry.path), digest_size=8).hexdigest()
        return str(Path(folder) / digest)

    # ---- how to load a model ---------------------------------------------------------------

    def bound(self, loaded: Sequence[ServedModel]) -> Bound | None:
        """What one more model may take beside these. None: no bound is known."""
        # This process loads no GPU driver, so it does not know how much memory a GPU has.
        if _is_elsewhere(self._options.load) and self._options.memory is None:
            return None
        shares = [
            Share(model.plan.estimate.total, model.supervisor.pid if model.supervisor else None)
            for model in loaded
            if model.plan is not None
        ]
        prestarted = self._prestarted
        return least_bound(self._options.memory, prestarted.pid if prestarted else None, shares)

    def plan(self, model: ServedModel, bound: Bound | None, changes: Mapping[str, Any]) -> Plan:
        """Shrinks caches and context to the available memory. Raises DoesNotFit."""
        assert model.wanted is not None
        load = replace(model.wanted, **changes)
        if bound is None or _is_elsewhere(load):
            n_bytes, because = None, ""
        else:
            n_bytes, because = max(0, bound.n_bytes), bound.because
        parts = model.projector, model.draft
        return memory_estimate.plan(model.file, load, n_bytes, because, *parts)

    def supervisor(self, model: ServedModel, plan: Plan) -> Supervisor:
        """The model's supervisor, which is not started."""
        return Supervisor(
            plan.load,
            self._log,
            watchdog_s=self._options.watchdog_s,
            file=model.file,
            projector=model.projector,
            draft=model.draft,
            adapters=model.adapters,
            prestarted=self._take_prestarted(),
            hosts=Hosts(plan.load, plan.estimate) if plan.load.hosts else None,
        )

    def close(self) -> None:
        """Ends the prestarted worker if no model took it."""
        if (unused := self._take_prestarted()) is not None:
            unused.kill()
            unused.reap()

    def _take_prestarted(self) -> WorkerProcess | None:
        with self._making:
            prestarted, self._prestarted = self._prestarted, None
        return prestarted


def _is_elsewhere(load: Load) -> bool:
    """Whether most of a model takes no memory of this machine's own."""
    return load.uses_gpu or bool(load.hosts)


def projector_path(entry: CatalogEntry) -> str | None:
    """The path of the model's projector."""
    is_embedded = Path(entry.path) == EMBEDDED_MODEL
    return str(EMBEDDED_PROJECTOR) if is_embedded else entry.projector_path


def scaled(rope: RopeScaling, n_ctx: int | None, n_ctx_train: int) -> RopeScaling:
    """Fills in a missing freq_scale, just enough for n_ctx, if the kind is linear or yarn."""
    if rope.freq_scale is not None or rope.kind not in ("linear", "yarn"):
        return rope
    n_orig = rope.yarn_orig_ctx or n_ctx_train
    return replace(rope, freq_scale=min(1.0, n_orig / (n_ctx or n_orig)))


def _template(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ModelFileError(f"{path} cannot be read: {err}") from None
