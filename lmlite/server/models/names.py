"""What the name of a model file says: the model, its quantisation, its parts, its projector.

Only names are looked at, never files.
"""

import functools
import os
import re
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from lmlite.gguf.file import MAX_PARTS, PART_NAME

ENDING = ".gguf"
DEFAULT_QUANTISATION = "Q4_K_M"  # LM Studio's choice, too: small, and nearly as good as the others
N_NEAREST = 5  # names in an error message
N_CANDIDATES = 20  # names of an ambiguous one, in an error message
MAX_TYPED = 200  # characters of a client's name that are repeated and compared

# The part of a name that publishers write last, as in "gemma-3-4b-it-UD-Q4_K_XL".
_QUANTISATION = re.compile(
    r"(?P<model>.+?)[-._](?P<quantisation>(?:(?:UD|i1)-)?"
    r"(?:I?Q\d(?:_(?:\d|K|NL|XXS|XS|S|M|L|XL))*|TQ\d_\d|B?F16|F32|FP16|FP32|MXFP4(?:_MOE)?|NVFP4))",
    re.IGNORECASE | re.DOTALL,
)


class FileName(NamedTuple):
    """A model file's name, taken apart: "a-Q8_0-00001-of-00002.gguf"."""

    stem: str  # without the ending and the number of the part: "a-Q8_0"
    model: str  # the stem without the quantisation: "a"
    quantisation: str  # in upper case; "" if the name has none


def is_model_or_projector(name: str) -> bool:
    """Whether a file of this name is listed; a download in progress has another ending."""
    return name.casefold().endswith(ENDING)


def is_projector(name: str) -> bool:
    """Whether a file of this name is a projector (mmproj) and not a model."""
    return "mmproj" in name.casefold()


@functools.lru_cache(4096)  # each name is asked for six times in a scan
def parsed(path: str) -> FileName:
    """The parts of the file's name.

    >>> parsed("gemma-3-4b-it-UD-Q4_K_XL.gguf")
    FileName(stem='gemma-3-4b-it-UD-Q4_K_XL', model='gemma-3-4b-it', quantisation='UD-Q4_K_XL')
    """
    name = os.path.basename(path)
    split = _split(name)
    stem = split[1] if split else os.path.splitext(name)[0]
    match = _QUANTISATION.fullmatch(stem)
    if match is None:
        return FileName(stem, stem, "")
    return FileName(stem, match["model"], match["quantisation"].upper())


def part_paths(path: str) -> list[str]:
    """All files of the model, in order; only the path itself unless its name is that of a part.

    >>> part_paths("m/a-00002-of-00002.gguf")
    ['m/a-00001-of-00002.gguf', 'm/a-00002-of-00002.gguf']
    """
    folder, name = os.path.split(path)
    split = _split(name)
    if split is None:
        return [path]
    n_parts = int(split[3])
    names = (f"{split[1]}-{i:05}-of-{n_parts:05}{ENDING}" for i in range(1, n_parts + 1))
    return [os.path.join(folder, name) for name in names]


def first_part(path: str) -> str:
    """The path of the model that a file is a part of."""
    folder, name = os.path.split(path)
    split = _split(name)
    return os.path.join(folder, f"{split[1]}-00001-of-{split[3]}{ENDING}") if split else path


def _split(name: str) -> re.Match[str] | None:
    """The match of PART_NAME, if the numbers are possible."""
    match = PART_NAME.fullmatch(name)
    return match if match and 1 <= int(match[2]) <= int(match[3]) <= MAX_PARTS else None


def projector_for(model: str, models: Collection[str], projectors: Sequence[str]) -> str | None:
    """Which of a folder's projector files belongs to a model, out of all `models` there.

    A projector that names a model belongs to it: "mmproj-a-F16.gguf", "a-mmproj.gguf". One that
    names none belongs to the folder's only model. If several belong to a model and differ only in
    their quantisation, F16 is taken, else the first one.
    """
    owners = {path: _owner(path, models) for path in projectors}
    own = [path for path in projectors if owners[path] == model]
    if not own and {*models} == {model}:
        own = [path for path in projectors if owners[path] is None]
    if len({_subject(path) for path in own}) != 1:
        return None
    return min(own, key=lambda path: (parsed(path).quantisation != "F16", path))


def _owner(projector: str, models: Collection[str]) -> str | None:
    """The model that the projector's name begins with; the longest, as "a-2" begins with "a"."""
    subject = _subject(projector)
    fits = (
        model
        for model in models
        if subject == (name := model.casefold()) or subject.startswith((f"{name}-", f"{name}."))
    )
    return max(fits, key=len, default=None)


def _subject(projector: str) -> str:
    """What the name says besides "mmproj" and the quantisation; in lower case."""
    return parsed(projector).model.casefold().replace("mmproj", "").strip("-._")


def preference(quantisation: str, n_bytes: int) -> tuple[bool, bool, int]:
    """Sorts a model's files: Q4_K_M, then the smallest of 4 bits, then the smallest."""
    has_4_bits = re.search(r"Q4|FP4", quantisation) is not None
    return quantisation != DEFAULT_QUANTISATION, not has_4_bits, n_bytes


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known names most like this one, at most N_NEAREST; [] if none is like it."""
    return [*_nearest(name[:MAX_TYPED], tuple(known))]


@functools.lru_cache(16)  # with --any-name each request may have the same wrong name
def _nearest(name: str, known: tuple[str, ...]) -> list[str]:
    import difflib  # imported here because most servers never need it: 1 ms of every start

    # Publishers and quantisations are left out: they make names alike that are not.
    models: dict[str, list[str]] = {}
    for text in known:
        models.setdefault(_bare(text), []).append(text)
    wanted = _bare(name)
    found = difflib.get_close_matches(wanted, models, N_NEAREST)
    found += [text for text in models if wanted in text]
    return [text for model in dict.fromkeys(found) for text in models[model]][:N_NEAREST]


def _bare(name: str) -> str:
    return re.sub(r"^.*/|@.*$", "", name).casefold()
