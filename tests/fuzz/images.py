"""Feeds thousands of broken image files to the check, and those it accepts to a real worker.

    make fuzz-images                         (or: python -m tests.fuzz.images --help)
    python -m tests.fuzz.images --only 42 --format png --keep 42.png      one mutant, to look at

A mutant is a small whole file with one to four things changed: bytes anywhere, fields of its head,
chunks or segments that are left out, doubled or cut, packed data that unpacks to something else.
Checksums and lengths are right again afterwards, or the check would see nothing else. A mutant
depends on the seed, the format and its number alone. Every death of the worker is a bound that the
check lacks; `--unchecked` shows what it is worth.
"""

import argparse
import random
import struct
import subprocess
import time
import zlib
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lmlite import frames
from lmlite.messages import Chat, ChatMessage, Failed, Finished, Image, Load, Ready, SamplingParams
from lmlite.server.api.chat.image_formats import ImageFault, checked_size
from lmlite.server.models.loading import EMBEDDED_MODEL
from lmlite.server.models.worker_process import WORKER_COMMAND, worker_environment
from tests.fuzz.gguf import Patience, events, send
from tests.support import projectors
from tests.support.image_files import (
    ALPHA_WEBP,
    BLUE_JPEG,
    GREY_JPEG,
    LOSSLESS_WEBP,
    LOSSY_WEBP,
    MOVING_WEBP,
    PNG_BEGIN,
    RED,
    RED_JPEG,
    bmp_of,
    chunk,
    gif_of,
    growing_codes,
    png,
    png_of,
    vp8l,
    vp8x,
    webp,
)

N_EMBD = 192  # of the embedded model
FINDS = "died", "hung"
EDGES = (0, 1, 2, 3, 7, 8, 9, 16, 127, 128, 255, 256, 8192, 8193, 65535, 1 << 24, (1 << 31) - 1,
         1 << 31, (1 << 32) - 1)  # fmt: skip

_NOISE = random.Random(5)
PNGS = (
    png(6, 5, RED),
    png_of(9, 4, b"\0\xff\x80" * 4, n_bits=1, colour=0),
    png_of(4, 3, b"".join(bytes((f, *_NOISE.randbytes(16))) for f in (1, 2, 4)), colour=6),
    png_of(5, 2, b"\0\0\1\2\3\4" * 2, colour=3, more=(chunk(b"PLTE", _NOISE.randbytes(15)),)),
    png_of(3, 2, b"\0" + bytes(6) + b"\3" + bytes(6), colour=4),
    png_of(8, 8, bytes(sum(n * (1 + 3 * w) for w, n in
                           ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)))),
           interlace=1, more=(chunk(b"tRNS", bytes(6)),)),
)  # fmt: skip
JPEGS = (RED_JPEG, BLUE_JPEG, GREY_JPEG)
WEBPS = (
    LOSSY_WEBP,
    LOSSLESS_WEBP,
    ALPHA_WEBP,
    MOVING_WEBP,
    webp((b"VP8L", vp8l(64, 64, RED, n_codes=256))),
    webp(vp8x(9, 7, flags=0x10), (b"ALPH", b"\0" + _NOISE.randbytes(63)), (b"VP8L", vp8l(9, 7))),
)
# What `gif_of` takes.
GIFS: tuple[dict[str, Any], ...] = (
    {"width": 12, "height": 9, "pixels": bytes(range(108))},
    {"width": 12, "height": 9, "pixels": bytes(20), "frame": (3, 2, 5, 4), "local": 0xC6},
    {"width": 28, "height": 15, "pixels": b"", "n_bits": 2, "packed": growing_codes(406)},
    {"width": 91, "height": 90, "pixels": b"", "n_bits": 2, "packed": growing_codes(8000)},
    {"width": 9, "height": 9, "pixels": bytes(81), "before": b"!\xf9\4\5\0\0\0\0!\xfe\1a\0"},
)
BMPS = (
    bmp_of(5, 4, _NOISE.randbytes(64)),
    bmp_of(5, -4, _NOISE.randbytes(64)),
    bmp_of(5, 4, _NOISE.randbytes(80), n_bits=32, packing=3, n_head=124),
    bmp_of(5, 4, _NOISE.randbytes(48), n_bits=16),
    bmp_of(5, 4, bytes(n % 7 for n in range(32)), n_bits=8, palette=_NOISE.randbytes(28)),
    bmp_of(9, 4, _NOISE.randbytes(32), n_bits=4, palette=_NOISE.randbytes(64)),
    bmp_of(9, 4, _NOISE.randbytes(16), n_bits=1, palette=_NOISE.randbytes(8)),
)


# ---- mutants -------------------------------------------------------------------------------


def mutant(seed: int, kind: str, number: int) -> bytes:
    """The mutant of this number."""
    source = random.Random(f"{seed} {kind} {number}")
    return _MUTATORS[kind](source)


def _mutant_png(source: random.Random) -> bytes:
    chunks = _png_chunks(source.choice(PNGS))
    for _ in range(source.randint(1, 3)):
        i = source.randrange(len(chunks))
        kind, body = chunks[i]
        match source.randrange(8):
            case 0 if kind == b"IHDR":
                place = source.choice((0, 4))
                edge = struct.pack(">I", source.choice(EDGES))
                body = body[:place] + edge + body[place + 4 :]
            case 1 if kind == b"IHDR":
                place = source.randrange(8, 13)
                body = body[:place] + bytes((source.choice((0, 1, 2, 3, 4, 6, 8, 16)),)) + body[
                    place + 1 :]  # fmt: skip
            case 2 if kind == b"IDAT":
                body = zlib.compress(_spoilt(source, _unpacked(body)), source.choice((0, 1, 9)))
            case 3:
                chunks.insert(i, chunks[source.randrange(len(chunks))])
                continue
            case 4 if len(chunks) > 1:
                del chunks[i]
                continue
            case 5:
                kind = source.choice(
                    (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"CgBI", b"abcd")
                )
            case _:
                body = _spoilt(source, body)
        chunks[i] = kind, body
    whole = PNG_BEGIN + b"".join(chunk(kind, body) for kind, body in chunks)
    return whole if source.random() < 0.9 else _spoilt(source, whole)


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], len(PNG_BEGIN)
    while place < len(data):
        (n,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + n]))
        place += 12 + n
    return chunks


def _unpacked(body: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(body, 1 << 16)
    except zlib.error:
        return body


def _mutant_jpeg(source: random.Random) -> bytes:
    """Heads and tables lie in the first three hundred bytes."""
    data = _damaged(source, source.choice(JPEGS), 300, ">H")
    return data if data.endswith(b"\xff\xd9") or source.random() < 0.2 else data + b"\xff\xd9"


def _mutant_webp(source: random.Random) -> bytes:
    chunks = _webp_chunks(source.choice(WEBPS))
    for _ in range(source.randint(1, 3)):
        i = source.randrange(len(chunks))
        kind, body = chunks[i]
        match source.randrange(8):
            case 0:
                chunks.insert(i, chunks[source.randrange(len(chunks))])
            case 1 if len(chunks) > 1:
                del chunks[i]
            case 2:
                kinds = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"abcd")
                chunks[i] = source.choice(kinds), body
            case 3:
                chunks[i] = kind, _spoilt(source, body)
            case _:
                chunks[i] = kind, _damaged(source, body, 30, "<H")
    whole = webp(*chunks)
    return whole if source.random() < 0.9 else _spoilt(source, whole)


def _webp_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, place = [], 12
    while place < len(data):
        (n,) = struct.unpack_from("<I", data, place + 4)
        chunks.append((data[place : place + 4], data[place + 8 : place + 8 + n]))
        place += 8 + n + n % 2
    return chunks


def _mutant_gif(source: random.Random) -> bytes:
    parts = dict(source.choice(GIFS))
    sides = (*EDGES[:9], 12, 28, 91, 8192, 65535)
    for _ in range(source.randint(0, 2)):
        match source.randrange(6):
            case 0:
                parts[source.choice(("width", "height"))] = source.choice(sides)
            case 1:
                parts["frame"] = tuple(source.choice(sides) for _ in range(4))
            case 2:
                parts["n_bits"] = source.randrange(14)
            case 3:
                parts[source.choice(("flags", "local"))] = source.randrange(256)
            case 4:
                parts["pixels"] = _spoilt(source, parts["pixels"])
            case _:
                parts["packed"] = _spoilt(source, parts.get("packed") or source.randbytes(40))
    whole = gif_of(**parts)
    return whole if source.random() < 0.5 else _damaged(source, whole, 30, "<H")


def _mutant_bmp(source: random.Random) -> bytes:
    return _damaged(source, source.choice(BMPS), 54, source.choice(("<H", "<I")))


def _damaged(source: random.Random, data: bytes, n_first: int, layout: str) -> bytes:
    """One to four changes, half of them in the first bytes; edges are written by the layout."""
    most = (1 << 8 * struct.calcsize(layout)) - 1
    for _ in range(source.randint(1, 4)):
        end = len(data) if source.random() < 0.5 else min(len(data), n_first)
        place = source.randrange(max(1, end))
        match source.randrange(6):
            case 0:
                edge = struct.pack(layout, source.choice(EDGES) & most)
                data = data[:place] + edge + data[place + len(edge) :]
            case 1:
                data = data[:place] + bytes((0xFF, source.randrange(256))) + data[place + 2 :]
            case 2:
                data = data[:place] + data[place + source.randint(1, 40) :]
            case 3:
                data = data[:place] + data[place : place + source.randint(1, 80)] + data[place:]
            case _:
                data = data[:place] + bytes((source.randrange(256),)) + data[place + 1 :]
    return data


def _spoilt(source: random.Random, data: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(source.randint(1, 4)):
        if not spoilt:
            break
        place = source.randrange(len(spoilt))
        match source.randrange(4):
            case 0:
                del spoilt[place : place + source.randint(1, 8)]
            case 1:
                spoilt[place:place] = source.randbytes(source.randint(1, 8))
            case _:
                spoilt[place] = source.randrange(256)
    return bytes(spoilt)


_MUTATORS = {"png": _mutant_png, "jpeg": _mutant_jpeg, "webp": _mutant_webp, "gif": _mutant_gif,
             "bmp": _mutant_bmp}  # fmt: skip
KINDS = tuple(_MUTATORS)


# ---- the worker ----------------------------------------------------------------------------


class SeeingWorker:
    """A worker that is asked about one picture after the other; another one when it died."""

    def __init__(self, mmproj: Path) -> None:
        self._mmproj = mmproj
        self._start()

    def ask(self, data: bytes) -> str:
        """What became of it; "died" when the worker did, "hung" when it had to be ended."""
        image = Image(data, 0, "image")
        request = Chat(1, (ChatMessage("user", "", images=(image,)),), SamplingParams(max_tokens=1))
        patience = Patience(self._process)
        try:
            with patience:
                send(self._process, request)
                for event in events(self._process):
                    if isinstance(event, Failed):
                        return "refused"
                    if isinstance(event, Finished):
                        return "seen"
        except (frames.FrameError, OSError):
            self.close()
            self._start()
            return "hung" if patience.verdict else "died"
        raise AssertionError("unreachable: events() ends with an error")

    def n_resident_bytes(self) -> int:
        """What the worker has taken at most."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) << 10

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            WORKER_COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=worker_environment(),
        )
        load = Load(str(EMBEDDED_MODEL), n_threads=1, mmproj_path=str(self._mmproj))
        send(self._process, load)
        for event in events(self._process):
            if isinstance(event, Ready):
                return


# ---- the run -------------------------------------------------------------------------------


def run(seed: int, kind: str, numbers: range, is_checked: bool = True) -> Counter[str]:
    """Tries the mutants and prints each that ended or held a worker. Totals by outcome."""
    totals: Counter[str] = Counter()
    with TemporaryDirectory() as folder:
        mmproj = Path(folder) / "mmproj.gguf"
        projectors.mlp(mmproj, N_EMBD)
        worker = SeeingWorker(mmproj)
        try:
            for number in numbers:
                data = mutant(seed, kind, number)
                try:
                    if is_checked:
                        checked_size(data)
                    outcome = f"{worker.ask(data)} by the worker"
                except ImageFault:
                    outcome = "refused"
                totals[outcome] += 1
                if outcome.startswith(FINDS):
                    print(f"seed {seed} {kind} number {number}: {outcome}", flush=True)
            totals["MiB at most"] = worker.n_resident_bytes() >> 20
        finally:
            worker.close()
    return totals


def main() -> int:
    """The command; 1 when a worker died or hung."""
    parser = argparse.ArgumentParser(description="Broken images against the check.")
    parser.add_argument("--count", type=int, default=20000, help="of each format")
    parser.add_argument("--first", type=int, default=0, help="the number to begin with")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--format", choices=KINDS, help="only this one")
    parser.add_argument("--only", type=int, help="the number of one mutant")
    parser.add_argument("--keep", help="write that mutant to a file instead")
    parser.add_argument("--unchecked", action="store_true", help="send it without the check")
    options = parser.parse_args()
    if options.keep:
        Path(options.keep).write_bytes(mutant(options.seed, options.format, options.only))
        return 0
    numbers = range(options.first, options.first + options.count)
    if options.only is not None:
        numbers = range(options.only, options.only + 1)
    n_finds = 0
    for kind in KINDS if options.format is None else (options.format,):
        begin_s = time.monotonic()
        totals = run(options.seed, kind, numbers, not options.unchecked)
        n_finds += sum(n for outcome, n in totals.items() if outcome.startswith(FINDS))
        told = ", ".join(f"{n:,} {outcome}" for outcome, n in sorted(totals.items()))
        print(f"seed {options.seed}: {len(numbers):,} {kind} mutants "
              f"in {time.monotonic() - begin_s:.0f} s: {told}", flush=True)  # fmt: skip
    return bool(n_finds)


if __name__ == "__main__":
    raise SystemExit(main())
