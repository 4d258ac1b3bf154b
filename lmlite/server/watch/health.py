"""GET /health: whether the server answers, for load balancers; details for clients with a key."""

from lmlite.messages import Json
from lmlite.server.models import life
from lmlite.server.models.registry import Registry
from lmlite.server.models.served_model import ServedModel

_WORST_FIRST = ("degraded", "ready", "loading", "failed")


def health_of(registry: Registry) -> tuple[int, Json, Json]:
    """(HTTP status, what everybody may know, what a client with a key may know besides).

    With several models: `ready` as soon as one of them is, `idle` if none is loaded, because the
    next request loads one.
    """
    found = {model.name: _health_of_model(model) for model in registry.loaded()}
    if not found:
        return 200, {"status": "idle"}, {}
    if registry.is_single:
        public, details = next(iter(found.values()))
    else:
        states = [public["status"] for public, _ in found.values()]
        status = min(states, key=_WORST_FIRST.index)
        public = next(public for public, _ in found.values() if public["status"] == status)
        details = {"models": {name: public | more for name, (public, more) in found.items()}}
    return 200 if public["status"] in ("ready", "degraded") else 503, public, details


def _health_of_model(model: ServedModel) -> tuple[Json, Json]:
    public, details = _health_of_worker(model)
    supervisor = model.supervisor
    if supervisor is not None and supervisor.hosts is not None:
        details["hosts"] = supervisor.hosts.states
    return public, details


def _health_of_worker(model: ServedModel) -> tuple[Json, Json]:
    supervisor = model.supervisor
    match model.life:
        case life.Ready(loaded):
            # It serves, but the cause of its last worker's end may return.
            is_degraded = supervisor is not None and supervisor.has_recovered_lately
            details: Json = {"cpu": loaded.cpu} if loaded.cpu else {}
            if model.plan is not None:
                details["memory"] = model.memory()
            return {"status": "degraded" if is_degraded else "ready"}, details
        case life.Failed(reason):
            return {"status": "failed"}, {"reason": reason}
        case life.Loading(progress, reason):
            known = {"reason": reason} if reason else {}
            return {"status": "loading", "progress": round(progress, 3)}, known
    return {"status": "loading", "progress": 0.0}, {}
