"""Settings of a model and presets: from model.yaml, NAME.json and NAME.preset.json.

Each file may have lmlite's own keys ("ctx": 8192), LM Studio's fields ({"load": {"fields": [...]},
"operation": {"fields": [...]}}), or both. Keys that are not known are named, not refused.
"""

import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from lmlite.errors import BadRequest, SettingsError
from lmlite.messages import Load
from lmlite.server.front.wire import parse_json
from lmlite.server.models.defaults import COMMAND_LINE, Defaults
from lmlite.server.models.names import nearest
from lmlite.server.models.setting_keys import (
    CHECKS,
    INERT_KEYS,
    LM_STUDIO_KEYS,
    LOAD_KEYS,
    REASONING_FIELDS,
    REASONING_VARIABLES,
    SAMPLING_KEYS,
    UNCHECKED,
    gpu_layers_of,
)

MAX_BYTES = 1 << 20  # of a file
PRESET_ENDINGS = (".json", ".preset.json")
_PRESET_NAME = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")

Origin = Literal["model settings", "preset"]


@dataclass(frozen=True)
class Settings:
    """What settings files set. Empty or None: not set."""

    load: Mapping[str, Any] = field(default_factory=dict)  # by the names of fields of Load
    sampling: Mapping[str, float] = field(default_factory=dict)  # by their names in requests
    system_prompt: str | None = None  # "": none
    thinks: bool | None = None
    effort: str | None = None  # of reasoning
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    chat_template: str | None = None  # Jinja source
    unknown: tuple[str, ...] = ()  # what is not understood, as lines for the log


def read_settings(paths: Sequence[str]) -> Settings:
    """The settings of a model. Later files override earlier ones. Raises SettingsError."""
    return functools.reduce(_merged, map(_read, paths), Settings())


def read_preset(folder: Path, name: Any) -> Settings:
    """The settings of a preset: `name` is what a client sent. Raises BadRequest."""
    if type(name) is not str or not _PRESET_NAME.fullmatch(name):
        raise BadRequest("preset is the name of a preset, without a folder", param="preset")
    for ending in PRESET_ENDINGS:
        path = folder / f"{name}{ending}"
        try:
            stat = path.stat()
        except OSError:
            continue
        try:
            return _cached_preset(str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except SettingsError as err:
            message = f"the preset {name} cannot be used: {err}"
            raise BadRequest(message, param="preset") from None
    found = ", ".join(nearest(name, _preset_names(folder)))
    hint = f"; similar ones: {found}" if found else ""
    raise BadRequest(f"there is no preset {name}{hint}", param="preset")


def load_with(load: Load, settings: Settings) -> Load:
    """The load with what the settings set."""
    found = replace(load, **settings.load)
    return replace(
        found,
        chat_template=settings.chat_template or found.chat_template,
        n_batch=max(found.n_batch, found.n_parallel),
        uses_gpu=found.uses_gpu and found.n_gpu_layers != 0,
    )


def with_settings(defaults: Defaults, settings: Settings, origin: Origin) -> Defaults:
    """The defaults with what the settings set.

    The command line's sampling values override a model's settings, and a preset's override both.
    """
    found = {"max_tokens": settings.max_tokens, "stop": settings.stop, **settings.sampling}
    values: dict[str, Any] = {
        name: value
        for name, value in found.items()
        if value not in (None, ())
        and (origin == "preset" or defaults.origins.get(name) != COMMAND_LINE)
    }
    prompt, thinks = settings.system_prompt, settings.thinks
    return replace(
        defaults,
        params=replace(defaults.params, **values),
        origins={**defaults.origins, **dict.fromkeys(values, origin)},
        system_prompt=defaults.system_prompt if prompt is None else prompt,
        thinks=defaults.thinks if thinks is None else thinks,
        effort=settings.effort or defaults.effort,
    )


def _merged(first: Settings, second: Settings) -> Settings:
    return Settings(
        load={**first.load, **second.load},
        sampling={**first.sampling, **second.sampling},
        system_prompt=_last(first.system_prompt, second.system_prompt),
        thinks=_last(first.thinks, second.thinks),
        effort=_last(first.effort, second.effort),
        max_tokens=_last(first.max_tokens, second.max_tokens),
        stop=second.stop or first.stop,
        chat_template=_last(first.chat_template, second.chat_template),
        unknown=first.unknown + second.unknown,
    )


def _last(first: Any, second: Any) -> Any:
    return first if second is None else second


# ---- presets -------------------------------------------------------------------------------


@functools.lru_cache(64)
def _cached_preset(path: str, _mtime_ns: int, _n_bytes: int, _ino: int) -> Settings:
    """A preset without what only a model's own settings can set. Raises SettingsError."""
    found = _read(path)
    of_load = [key for key, (name, _) in LOAD_KEYS.items() if name in found.load]
    of_load += ["chat_template"] if found.chat_template else []
    lines = [f"{Path(path).name}: {key} is not for a preset, but for a model" for key in of_load]
    return replace(found, load={}, chat_template=None, unknown=(*found.unknown, *lines))


def _preset_names(folder: Path) -> list[str]:
    try:
        files = sorted(os.listdir(folder))
    except OSError:
        return []
    names = [name.removesuffix(".json").removesuffix(".preset") for name in files
             if name.endswith(".json")]  # fmt: skip
    return [name for name in dict.fromkeys(names) if _PRESET_NAME.fullmatch(name)]


# ---- one file ------------------------------------------------------------------------------


def _read(path: str) -> Settings:
    reader = _FileReader(Path(path))
    reader.read(reader.document())
    return reader.settings()


class _FileReader:
    """The values of one file so far."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._values: dict[str, Any] = {}  # by lmlite's own keys, checked
        self._unknown: list[str] = []

    def document(self) -> dict[str, Any]:
        """What the file contains. Raises SettingsError."""
        try:
            data = _bytes_of(self._path)
            if self._path.suffix.lower() == ".json":
                return parse_json(data.removeprefix(b"\xef\xbb\xbf"))  # a byte order mark
            # Imported here because few models have such a file, and it takes 7 ms.
            from lmlite.server.models.yaml_subset import read_yaml

            document = read_yaml(data.decode("utf-8"))
        except OSError as err:
            self._refuse(f"cannot be read: {err.strerror}")
        except UnicodeDecodeError:
            self._refuse("is not valid UTF-8")
        except ValueError as err:
            self._refuse(str(err))
        except BadRequest as err:
            self._refuse(err.message.replace("the body", "the file", 1))
        if document is None:
            return {}
        if type(document) is not dict:
            self._refuse("the file must be keys with values")
        return document

    def settings(self) -> Settings:
        values = self._values
        thinks, effort = values.get("thinks"), values.get("effort")
        return Settings(
            load={name: values[key] for key, (name, _) in LOAD_KEYS.items() if key in values},
            sampling={key: values[key] for key in SAMPLING_KEYS if key in values},
            system_prompt=values.get("system_prompt"),
            thinks=True if thinks is None and effort else thinks,
            effort=effort,
            max_tokens=values.get("max_tokens"),
            stop=values.get("stop", ()),
            chat_template=values.get("chat_template"),
            unknown=tuple(self._unknown),
        )

    def read(self, document: dict[str, Any]) -> None:
        """Takes the values of a document. Raises SettingsError."""
        config = self._object(document.get("config"), "config")
        items = [*document.items(), *config.items()]
        # Defaults of custom fields come first, so that the configuration overrides them.
        for key, value in sorted(items, key=lambda item: item[0] != "customFields"):
            match key:
                case "load" | "operation":
                    self._read_fields(value, key)
                case "customFields":
                    self._read_custom_fields(value)
                case _ if key not in INERT_KEYS:
                    self._set(key.replace("-", "_"), value, key)

    # ---- LM Studio's forms -----------------------------------------------------------------

    def _read_fields(self, value: Any, path: str) -> None:
        for each in self._list(self._object(value, path).get("fields"), f"{path}.fields"):
            key = self._object(each, f"an item of {path}.fields").get("key")
            if type(key) is not str:
                self._refuse(f"the key of an item of {path}.fields must be a text")
            self._read_field(key, each.get("value"))

    def _read_field(self, key: str, value: Any) -> None:
        domain, _, name = key.partition(".")
        own = LM_STUDIO_KEYS.get(name, key) if domain in ("llm", "embedding") else key
        if key.startswith("ext.virtualModel.customField.") and key.endswith(REASONING_FIELDS):
            own = "reasoning"
        if type(value) is dict and "checked" in value:
            if value["checked"] is not True:
                if own in UNCHECKED:
                    self._values[own] = UNCHECKED[own]
                return
            value = value.get("value")
        if own == "chat_template":
            self._read_template(key, value)
        elif own == "gpu_layers":
            try:
                n_layers = gpu_layers_of(value)
            except ValueError as err:
                self._note(f"{key} {err}")
            else:
                if n_layers is not None:
                    self._values[own] = n_layers
        else:
            self._set(own, value, key)

    def _read_template(self, key: str, value: Any) -> None:
        """{"type": "jinja", "jinjaPromptTemplate": {"template": TEXT}, "stopStrings": [...]}."""
        form = self._object(value, key)
        if form.get("type") != "jinja":
            self._note(f"{key} is not understood: its type is not jinja")
            return
        jinja = self._object(form.get("jinjaPromptTemplate"), f"{key}.jinjaPromptTemplate")
        self._set("chat_template", jinja.get("template"), key)
        if stops := form.get("stopStrings"):
            self._set("stop", stops, key)

    def _read_custom_fields(self, value: Any) -> None:
        """Fields whose default sets a variable of the template."""
        for each in self._list(value, "customFields"):
            item = self._object(each, "an item of customFields")
            name, default = item.get("key"), item.get("defaultValue")
            effects = self._list(item.get("effects"), f"the effects of {name}")
            variables = [effect.get("variable") for effect in effects if type(effect) is dict]
            if default is None:
                continue
            if len(variables) == 1 and variables[0] in REASONING_VARIABLES:
                self._set("reasoning", default, f"the default of {name}")
            else:
                self._note(f"the custom field {name} is not understood")

    # ---- values ----------------------------------------------------------------------------

    def _set(self, key: str, value: Any, spelled: str) -> None:
        """Checks and takes a value. `spelled` is the key as the file has it."""
        if ".speculativeDecoding." in key:  # not in LM_STUDIO_KEYS: when to draft is not a setting
            return
        check = CHECKS.get(key)
        if check is None:
            self._note(f"{spelled} is not understood")
            return
        if value is None:
            return
        try:
            checked = check(value)
        except ValueError as err:
            self._refuse(f"{spelled} {err}")
        if key == "reasoning":
            self._set_reasoning(checked)
        elif key == "chat_template" and "{" not in checked:
            self._values[key] = self._template_beside(checked, spelled)
        else:
            self._values[key] = checked

    def _set_reasoning(self, word: str) -> None:
        if word in ("on", "off", "none"):
            self._values["thinks"] = word == "on"
        else:
            self._values["effort"] = word

    def _template_beside(self, name: str, spelled: str) -> str:
        """The text of a file in the same folder: a file from elsewhere must not read any other."""
        if name != os.path.basename(name) or not name:
            self._refuse(f"{spelled} must be a template, or the name of a file beside this one")
        try:
            return _bytes_of(self._path.with_name(name)).decode("utf-8")
        except (OSError, ValueError) as err:
            reason = err.strerror if isinstance(err, OSError) else err
            self._refuse(f"{spelled} is {name}, which cannot be read: {reason}")

    def _object(self, value: Any, path: str) -> dict[str, Any]:
        """The value, which must be an object; an empty one if it is null."""
        if type(value) not in (dict, type(None)):
            self._refuse(f"{path} must be an object")
        return value or {}

    def _list(self, value: Any, path: str) -> list[Any]:
        """The value, which must be a list; an empty one if it is null."""
        if type(value) not in (list, type(None)):
            self._refuse(f"{path} must be a list")
        return value or []

    def _note(self, line: str) -> None:
        self._unknown.append(f"{self._path.name}: {line[:300]}")

    def _refuse(self, message: str) -> NoReturn:
        raise SettingsError(f"{self._path.name}: {message}")


def _bytes_of(path: Path) -> bytes:
    """The file's bytes. Raises OSError, and ValueError if there are too many."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    return data
