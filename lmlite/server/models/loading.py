"""Makes a served model from its options: checks its files and plans its memory.

Does not load the model: the supervisor does that once it is started.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import lmlite
from lmlite.errors import ModelFileError
from lmlite.gguf import memory_estimate
from lmlite.gguf.file import ModelFile, read_model_file
from lmlite.gguf.memory_estimate import Plan
from lmlite.gguf.projector import Projector, projector_beside, read_projector_file
from lmlite.messages import Load, RopeScaling
from lmlite.server.logs import Log, printable
from lmlite.server.models.defaults import Defaults
from lmlite.server.models.machine_memory import Bound, least_bound
from lmlite.server.models.registry import ServedModel
from lmlite.server.models.supervisor import WATCHDOG_S, Supervisor
from lmlite.server.models.worker_process import WorkerProcess

EMBEDDED_MODEL = Path(lmlite.__file__).parent / "models" / "tiny.gguf"
EMBEDDED_PROJECTOR = EMBEDDED_MODEL.with_name("tiny-mmproj.gguf")


@dataclass(frozen=True)
class ModelOptions:
    """The user's choices for one model."""

    load: Load  # `served_model` adds the values that come from the model's files
    defaults: Callable[[ModelFile, bool], Defaults]  # arguments: the file, whether it takes images
    aliases: Sequence[str] = ()  # names for clients; if empty, the file's name
    chat_template_path: str | None = None
    memory: int | None = None  # bytes that the worker may take; None: all that the machine has left
    watchdog_s: float = WATCHDOG_S


def served_model(
    options: ModelOptions, log: Log, prestarted: WorkerProcess | None = None
) -> ServedModel:
    """A checked model and its supervisor, which is not started and owns the prestarted worker.

    Raises ModelFileError or DoesNotFit; the caller then still owns the prestarted worker.
    """
    path = os.path.abspath(options.load.model_path)
    file = read_model_file(path)
    if file.pooling == "rank":
        raise ModelFileError(f"{Path(path).name} is a reranking model, which has no endpoint here")
    projector = projector_of(path, options.load.mmproj_path)
    load = replace(
        options.load,
        model_path=file.path,
        parts=file.parts,
        generates=not file.embeds_only,
        rope=scaled(options.load.rope, options.load.n_ctx, file.n_ctx_train),
        chat_template=_template(options.chat_template_path),
        mmproj_path=projector.path if projector else None,
    )
    bound = least_bound(options.memory, prestarted.pid if prestarted else None)
    plan = _planned(load, bound, file, projector)
    for note in plan.notes:
        log.line("warning", note)
    supervisor = Supervisor(
        plan.load,
        log,
        watchdog_s=options.watchdog_s,
        file=file,
        projector=projector,
        prestarted=prestarted,
    )
    name, *aliases = dict.fromkeys(options.aliases or [printable(Path(path).stem)])
    defaults = options.defaults(file, projector is not None)
    return ServedModel(name, file, supervisor, defaults, plan, tuple(aliases))


def projector_of(model_path: str, mmproj_path: str | None) -> Projector | None:
    """The projector at mmproj_path, else the one in the model's folder. Raises ModelFileError."""
    if mmproj_path is None and Path(model_path) == EMBEDDED_MODEL:
        mmproj_path = str(EMBEDDED_PROJECTOR)
    path = mmproj_path or projector_beside(model_path)
    return read_projector_file(str(Path(path).resolve())) if path else None


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


def _planned(load: Load, bound: Bound | None, file: ModelFile, projector: Projector | None) -> Plan:
    """Shrinks caches and context to the available memory. Raises DoesNotFit."""
    # This process loads no GPU driver, so it does not know how much memory a GPU has.
    if bound is None or load.uses_gpu:
        return memory_estimate.plan(file, load, None, projector=projector)
    return memory_estimate.plan(file, load, bound.n_bytes, bound.because, projector)
