"""Models as the APIs list them, loaded or not, without a file or a worker."""

from types import SimpleNamespace
from typing import Any

from lmlite.messages import Load, ModelPart, Ready
from lmlite.server.models import life
from lmlite.server.models.defaults import NO_DEFAULTS
from tests.support.house import model_file

# Templates with a setting for thoughts.
SWITCH = "{% if enable_thinking %}<think>{% endif %}"
EFFORTS = "{{ reasoning_effort }}"


def listed_model(name: str = "m", n_ctx: int | None = 512, template: str = "", **file: Any) -> Any:
    """A model; n_ctx None: not loaded."""
    shown = {
        "n_tensor_bytes": 76_000_000,
        "n_params": 134_515_008,
        "n_ctx_train": 8192,
        "parts": (ModelPart("/m.gguf", 1, 1, 98_000_000, 1),),
    }
    about = {**vars(model_file("/m.gguf")), "chat_template": template, **shown, **file}
    ready = Ready(n_ctx or 0, 100, 64, 4, 1, 0, not about["embeds_only"])
    return SimpleNamespace(
        name=name,
        names=(name,),
        identifiers=[],
        file=SimpleNamespace(**about),
        entry=SimpleNamespace(publisher="acme"),
        sees=False,
        defaults=NO_DEFAULTS,
        plan=None,
        draft=None,
        state="loaded" if n_ctx else "not-loaded",
        ready=life.Ready(ready) if n_ctx else None,
        load=Load("/m.gguf", n_ctx=n_ctx) if n_ctx else None,
        wanted=Load("/m.gguf"),
    )
