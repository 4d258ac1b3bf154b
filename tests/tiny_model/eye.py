"""Trains the eye of the embedded model, alone, and writes it as the GGUF file beside the model's.

    make tiny-model                          (or: python -m tests.tiny_model.eye --help)

The language model reads a picture as sixteen tokens (`pictures.py`). The eye cuts an image into
sixteen patches, and a small transformer, in which every patch looks at all others, makes of each
a vector that lies where the embedding of the token lies that stands in this place.

It gets there in two steps. It is trained to tell the token: its last layer gives a share for each
token that pictures are made of, 1 for the right one and 0 for all others. In the file, the last
layer gives so much of each token's embedding. So the language model takes no part in the training,
and when that was trained again, only the file is to be written again: `--keep`.

Told the answers alone, it learns slowly, for they do not say where to look. So while it trains,
a second head asks each patch how many shapes have their middle in it, and which shape that is.
"""

import argparse
import io
import math
import multiprocessing
import time
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from PIL import Image as Pillow
from torch import Tensor, nn

from lmlite.worker import media
from lmlite.worker.llama import capi
from lmlite.worker.llama.model import Model
from tests.support.gguf_writer import TENSOR_F16, TENSOR_F32, Value, write_gguf
from tests.support.gguf_writer import Tensor as Stored
from tests.tiny_model import corpus, drawing, export, pictures, train
from tests.tiny_model.conversation import Picture
from tests.tiny_model.tokenizer import Tokenizer
from tests.tiny_model.words import Source

SIDE, PATCH = 112, 28  # pixels
N_ACROSS = SIDE // PATCH
N_PLACE = N_ACROSS**2
N_LAYER, N_EMBD, N_HEAD, N_FF, N_HIDDEN = 4, 128, 4, 256, 256
EPSILON = 1e-5
MUON_RATE, ADAM_RATE = 0.02, 0.002
KEPT_PATH = train.KEPT_PATH.with_name("eye.pt")
PROJECTOR_PATH = train.MODEL_PATH.with_name("tiny-mmproj.gguf")
CARD = {
    "general.name": "tiny's eye",
    "general.author": "lmlite",
    "general.license": "mit",
    "general.description": (
        "Lets the model tiny see one to four circles, squares or triangles, and their colour. "
        "Trained from nothing on drawings."
    ),
}


class Plan(NamedTuple):
    """How long to train."""

    n_pictures: int
    n_steps: int


PER_STEP, N_UNSEEN = 128, 2000  # pictures
PLANS = {"cuda": Plan(40_000, 4500), "cpu": Plan(40_000, 3500)}


# ---- what it sees --------------------------------------------------------------------------

PADDING = (122, 116, 104)  # what llama.cpp puts beside an image that is no square


class View(NamedTuple):
    """A picture as the eye sees it."""

    picture: Picture
    pixels: bytes  # SIDE x SIDE x 3
    middles: list[int]  # the patch in which each shape has its middle


def square(image: Pillow.Image) -> Pillow.Image:
    """The image as large as the eye needs it, made in the very way of libmtmd.

    That is `img_tool::resize` of mtmd-image.cpp, which itself takes over what Pillow does.
    """
    if image.size == (SIDE, SIDE):
        return image
    scale = torch.tensor(float(SIDE)) / max(image.size)  # in 32 bits, or the sides may differ by 1
    width, height = (min(SIDE, math.ceil(float(scale * each))) for each in image.size)
    whole = Pillow.new("RGB", (SIDE, SIDE), PADDING)
    resized = image.resize((width, height), Pillow.Resampling.BICUBIC)
    whole.paste(resized, ((SIDE - width) // 2, (SIDE - height) // 2))
    return whole


def worn(image: Pillow.Image, rng: Random) -> Pillow.Image:
    """The image as it may be when it has come around: resized once before, saved as a JPEG."""
    if rng.random() < 0.3 and min(image.size) >= drawing.SIDES[0]:
        scale = rng.uniform(0.6, 1.3)
        ways = (Pillow.Resampling.NEAREST, Pillow.Resampling.BILINEAR, Pillow.Resampling.LANCZOS)
        width, height = (round(scale * each) for each in image.size)
        image = image.resize((width, height), rng.choice(ways))
    if rng.random() < 0.5:
        saved = io.BytesIO()
        image.save(saved, "JPEG", quality=rng.randint(35, 95))
        image = Pillow.open(saved)
    return image


def view(seed: int) -> View:
    """One picture, drawn at random and worn."""
    source = Source(seed, held_out=False)
    picture = pictures.drawn(source)
    image = drawing.paint(picture, source.rng)
    seen = Pillow.frombytes("RGB", (image.width, image.height), image.rgb)
    pixels = square(worn(seen, source.rng)).tobytes()
    return View(picture, pixels, [_patch_of(image, x, y) for x, y, _ in image.places])


def _patch_of(image: drawing.Image, x: float, y: float) -> int:
    """The number of the patch in which a point of the image comes to lie."""
    longer = max(image.width, image.height)
    column = (x + (longer - image.width) / 2) / longer * N_ACROSS
    row = (y + (longer - image.height) / 2) / longer * N_ACROSS
    return min(N_ACROSS - 1, int(row)) * N_ACROSS + min(N_ACROSS - 1, int(column))


class Views(NamedTuple):
    """Many pictures."""

    shown: list[Picture]
    pixels: Tensor  # (picture, 3, SIDE, SIDE), bytes
    middles: Tensor  # (picture, place): how many shapes have their middle there


def views(first: int, n: int) -> Views:
    """So many, the first from this seed; all processors draw."""
    shown: list[Picture] = []
    pixels = torch.empty(n, 3, SIDE, SIDE, dtype=torch.uint8)
    middles = torch.zeros(n, N_PLACE)
    with multiprocessing.Pool() as pool:
        for i, seen in enumerate(pool.imap(view, range(first, first + n), chunksize=100)):
            shown.append(seen.picture)
            flat = torch.frombuffer(bytearray(seen.pixels), dtype=torch.uint8)
            pixels[i] = flat.view(SIDE, SIDE, 3).permute(2, 0, 1)
            for place in seen.middles:
                middles[i, place] += 1
    return Views(shown, pixels, middles)


def normalized(pixels: Tensor) -> Tensor:
    """Bytes -> from -1 to 1, as the file's mean and deviation say."""
    return (pixels.float() / 255 - 0.5) / 0.5


# ---- the eye -------------------------------------------------------------------------------


class Attention(nn.Module):
    """Every patch looks at every other one, and at itself."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(N_EMBD, N_EMBD, bias=False)
        self.k = nn.Linear(N_EMBD, N_EMBD, bias=False)
        self.v = nn.Linear(N_EMBD, N_EMBD, bias=False)
        self.output = nn.Linear(N_EMBD, N_EMBD, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(image, place, N_EMBD) -> the same shape."""
        n_image, n_place, _ = x.shape

        def heads(projected: Tensor) -> Tensor:
            return projected.view(n_image, n_place, N_HEAD, -1).transpose(1, 2)

        found = F.scaled_dot_product_attention(heads(self.q(x)), heads(self.k(x)), heads(self.v(x)))
        return self.output(found.transpose(1, 2).reshape(n_image, n_place, N_EMBD))


class Layer(nn.Module):
    """As in `train.py`, but for the norms and the bend, which are those of LLaVA's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(N_EMBD, eps=EPSILON, bias=False)
        self.attn = Attention()
        self.ffn_norm = nn.LayerNorm(N_EMBD, eps=EPSILON, bias=False)
        self.up = nn.Linear(N_EMBD, N_FF, bias=False)
        self.down = nn.Linear(N_FF, N_EMBD, bias=False)
        for matrix in (self.attn.output.weight, self.down.weight):
            nn.init.zeros_(matrix)

    def forward(self, x: Tensor) -> Tensor:
        """(image, place, N_EMBD) -> the same shape."""
        x = x + self.attn(self.attn_norm(x))
        return x + self.down(bent(self.up(self.ffn_norm(x))))


def bent(x: Tensor) -> Tensor:
    """GELU, as ggml computes it."""
    return F.gelu(x, approximate="tanh")


class Eye(nn.Module):
    """Pixels -> for each place, a share of each token that pictures are made of."""

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.patch = nn.Linear(3 * PATCH * PATCH, N_EMBD)
        self.position = nn.Parameter(torch.randn(N_PLACE, N_EMBD) * 0.02)
        self.layers = nn.ModuleList(Layer() for _ in range(N_LAYER))
        self.norm = nn.LayerNorm(N_EMBD, eps=EPSILON, bias=False)
        self.hidden = nn.Linear(N_EMBD, N_HIDDEN)
        self.shares = nn.Linear(N_HIDDEN, n_tokens)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(image, 3, SIDE, SIDE) -> the shares, and what each place knows before the last layer."""
        cut = pixels.reshape(-1, 3, N_ACROSS, PATCH, N_ACROSS, PATCH).permute(0, 2, 4, 1, 3, 5)
        x = self.patch(cut.reshape(-1, N_PLACE, 3 * PATCH * PATCH)) + self.position
        *first, last = self.layers
        for layer in first:
            x = layer(x)
        return self.shares(bent(self.hidden(self.norm(last(x))))), x


# ---- training ------------------------------------------------------------------------------


class Goals(NamedTuple):
    """What the eye has to tell, in numbers."""

    tokens: list[int]  # those that pictures are made of
    places: Tensor  # (picture, place): which of them stands there
    shapes: Tensor  # (picture): which shape, or -1


def goals_of(shown: list[Picture], vocabulary: Tokenizer) -> Goals:
    """The right answers for these pictures."""
    ids = {each: corpus.picture_tokens(vocabulary, each.words) for each in set(shown)}
    tokens = sorted({token for written in ids.values() for token in written})
    number = {token: i for i, token in enumerate(tokens)}
    places = torch.tensor([[number[token] for token in ids[each]] for each in shown])
    kinds = [pictures.SHAPES.index(each.shape) if each.shape else -1 for each in shown]
    return Goals(tokens, places, torch.tensor(kinds))


def moved(seen: Views, goals: Goals, device: torch.device) -> tuple[Tensor, Tensor, Goals]:
    """Pixels, middles and goals, to where the eye is."""
    there = Goals(goals.tokens, goals.places.to(device), goals.shapes.to(device))
    return seen.pixels.to(device), seen.middles.to(device), there


def turned(pixels: Tensor, middles: Tensor) -> tuple[Tensor, Tensor]:
    """The same pictures in one of eight positions: what they show stays what it is."""
    way = int(torch.randint(8, ()))
    grid = middles.view(-1, N_ACROSS, N_ACROSS)
    if way & 1:
        pixels, grid = pixels.flip(2), grid.flip(1)
    if way & 2:
        pixels, grid = pixels.flip(3), grid.flip(2)
    if way & 4:
        pixels, grid = pixels.transpose(2, 3), grid.transpose(1, 2)
    return pixels, grid.reshape(-1, N_PLACE)


def loss_of(eye: Eye, guide: nn.Linear, pixels: Tensor, middles: Tensor, goals: Goals) -> Tensor:
    """How far shares are from 1 and 0, and what the patches do not know of their middles."""
    shares, known = eye(pixels)
    exact = F.one_hot(goals.places, len(goals.tokens)).float()
    likely = F.cross_entropy((10 * shares).flatten(0, 1), goals.places.flatten())
    told = likely + 10 * F.mse_loss(shares, exact)
    n_middles, kinds = guide(known).split((1, len(pictures.SHAPES)), -1)
    guided = F.mse_loss(n_middles[..., 0], middles) * N_PLACE / 3
    has_one = (middles > 0) & (goals.shapes[:, None] >= 0)
    wanted = goals.shapes[:, None].expand(-1, N_PLACE)[has_one]
    return told + guided + F.cross_entropy(kinds[has_one], wanted)


def train_eye(eye: Eye, seen: Views, goals: Goals, n_steps: int) -> None:
    """Shows it the pictures again and again, turned and a little noisy."""
    device = eye.position.device
    all_pixels, all_middles, goals = moved(seen, goals, device)
    guide = nn.Linear(N_EMBD, 1 + len(pictures.SHAPES)).to(device)
    matrices = [p for p in eye.layers.parameters() if p.dim() == 2]
    matrices += [eye.patch.weight, eye.hidden.weight]
    everything = [*eye.parameters(), *guide.parameters()]
    others = [p for p in everything if not any(p is matrix for matrix in matrices)]
    optimizers = train.optimizers_of(matrices, others, MUON_RATE, ADAM_RATE)
    begin, recent = time.monotonic(), 0.0
    for step in range(n_steps):
        chosen = torch.randint(len(seen.shown), (PER_STEP,)).to(device)
        bytes_, middles = turned(all_pixels[chosen], all_middles[chosen])
        pixels = normalized(bytes_)
        noisy = PER_STEP // 4
        pixels[:noisy] += (
            torch.randn_like(pixels[:noisy]) * torch.rand(noisy, 1, 1, 1).to(device) * 0.1
        )
        asked = Goals(goals.tokens, goals.places[chosen], goals.shapes[chosen])
        loss = loss_of(eye, guide, pixels, middles, asked)
        loss.backward()
        nn.utils.clip_grad_norm_(everything, 1.0)
        optimizers.step(train.speed(step, n_steps))
        if step % 100 == 99:
            recent = 0.5 * recent + 0.5 * loss.item() if recent else loss.item()
            passed = (time.monotonic() - begin) / 60
            print(f"step {step + 1} of {n_steps}: loss {recent:.3f}, {passed:.1f} min", flush=True)


@torch.no_grad()
def measured(eye: Eye, seen: Views, goals: Goals) -> str:
    """How often the number, the colour, the shape, and all of them are right."""
    pixels, _, goals = moved(seen, goals, eye.position.device)
    shares = torch.cat([eye(normalized(part))[0] for part in pixels.split(250)])
    hits = (shares.argmax(2) == goals.places).split(pictures.PLACES, 1)
    right = torch.stack([hit.all(1) for hit in hits])
    words = zip(("number", "colour", "shape", "all"), [*right, right.all(0)], strict=True)
    return ", ".join(f"{word} {hit.float().mean():.1%}" for word, hit in words)


# ---- the file ------------------------------------------------------------------------------

NAMES = {"attn_norm": "ln1", "attn.q": "attn_q", "attn.k": "attn_k", "attn.v": "attn_v",
         "attn.output": "attn_out", "ffn_norm": "ln2", "up": "ffn_up",
         "down": "ffn_down"}  # fmt: skip


def export_eye(path: Path, eye: Eye, tokens: list[int], embeddings: Tensor) -> None:
    """Writes the file, in which shares of tokens have become shares of their embeddings."""
    weights = eye.state_dict()
    meant = embeddings[tokens].float()  # (token, n_embd of the language model)
    metadata: dict[str, Value] = {
        "general.architecture": "clip",
        "general.file_type": export.FILE_TYPE_Q8_0,
        **CARD,
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": True,
        "clip.vision.image_size": SIDE,
        "clip.vision.patch_size": PATCH,
        "clip.vision.embedding_length": N_EMBD,
        "clip.vision.feed_forward_length": N_FF,
        "clip.vision.projection_dim": meant.shape[1],
        "clip.vision.block_count": N_LAYER + 1,
        "clip.vision.attention.head_count": N_HEAD,
        "clip.vision.attention.layer_norm_epsilon": EPSILON,
        "clip.vision.image_mean": [0.5, 0.5, 0.5],
        "clip.vision.image_std": [0.5, 0.5, 0.5],
    }
    kernels = weights["patch.weight"].view(N_EMBD, 3, PATCH, PATCH)
    tensors = [
        _stored("v.patch_embd.weight", kernels, TENSOR_F16),
        _stored("v.patch_embd.bias", weights["patch.bias"]),
        _stored("v.position_embd.weight", weights["position"]),
        _stored("v.post_ln.weight", weights["norm.weight"]),
        export.quantized("mm.0.weight", weights["hidden.weight"]),
        _stored("mm.0.bias", weights["hidden.bias"]),
        export.quantized("mm.2.weight", meant.T @ weights["shares.weight"]),
        _stored("mm.2.bias", meant.T @ weights["shares.bias"]),
    ]
    # LLaVA does not run its last layer, which has to be there all the same.
    for place, layer in enumerate([*range(N_LAYER), N_LAYER - 1]):
        for ours, theirs in NAMES.items():
            name, matrix = (
                f"v.blk.{place}.{theirs}.weight",
                weights[f"layers.{layer}.{ours}.weight"],
            )
            is_norm = matrix.dim() == 1
            tensors.append(_stored(name, matrix) if is_norm else export.quantized(name, matrix))
    write_gguf(path, metadata, tensors)


def _stored(name: str, weights: Tensor, kind: int = TENSOR_F32) -> Stored:
    numbers = weights.half() if kind == TENSOR_F16 else weights.float()
    return Stored(name, list(weights.shape)[::-1], numbers.contiguous().numpy().tobytes(), kind)


@torch.no_grad()
def difference(path: Path, eye: Eye, goals: Goals, embeddings: Tensor) -> float:
    """How far libmtmd's vectors, of the file, are from those of PyTorch, at most, in 20 images."""
    lib = capi.load()
    lib.llama_backend_init()
    model = Model(lib, str(train.MODEL_PATH))
    theirs = media.MediaEncoder(model, str(path), n_threads=1, max_bytes=0)
    furthest = 0.0
    for seed in range(20):
        source = Source(seed, held_out=True)
        image = drawing.paint(pictures.drawn(source), source.rng)
        picture = theirs.read(drawing.png(image))
        ((_, chunk),) = picture.chunks
        found = torch.tensor(list(theirs._embeddings(chunk))).view(N_PLACE, -1)
        seen = square(Pillow.frombytes("RGB", (image.width, image.height), image.rgb))
        flat = torch.frombuffer(bytearray(seen.tobytes()), dtype=torch.uint8)
        shares, _ = eye(normalized(flat.view(1, SIDE, SIDE, 3).permute(0, 3, 1, 2)))
        expected = shares[0] @ embeddings[goals.tokens]
        furthest = max(furthest, (found - expected).abs().max().item())
    theirs.close()
    model.close()
    return furthest


# ---- the command ---------------------------------------------------------------------------


def learn(eye: Eye, plan: Plan, seed: int, vocabulary: Tokenizer) -> None:
    """Draws, trains, and leaves what was learned for `--keep`."""
    print(f"{sum(p.numel() for p in eye.parameters()):,} parameters", flush=True)
    print(f"drawing {plan.n_pictures:,} pictures", flush=True)
    seen = views(seed * 1_000_000, plan.n_pictures)
    train_eye(eye, seen, goals_of(seen.shown, vocabulary), plan.n_steps)
    KEPT_PATH.parent.mkdir(parents=True, exist_ok=True)
    torch.save(eye.state_dict(), KEPT_PATH)


def main() -> None:
    """Draws, trains, measures on pictures that it never saw, and writes the file."""
    options = parsed()
    device = train.repeatable_device()
    plan = PLANS[device.type]
    plan = plan._replace(n_steps=options.steps or plan.n_steps)
    torch.manual_seed(options.seed)
    model = torch.load(train.KEPT_PATH)
    vocabulary = Tokenizer([(a, b) for a, b in model["merges"]])
    unseen = views((options.seed + 1) * 1_000_000 - N_UNSEEN, N_UNSEEN)
    goals = goals_of(unseen.shown, vocabulary)
    eye = Eye(len(goals.tokens)).to(device)
    if options.keep:
        eye.load_state_dict(torch.load(KEPT_PATH, map_location=device))
    else:
        learn(eye, plan, options.seed, vocabulary)
    print(f"on pictures that it never saw: {measured(eye, unseen, goals)}", flush=True)
    embeddings = model["weights"]["embedding.weight"]
    eye.cpu()
    export_eye(options.output, eye, goals.tokens, embeddings)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")
    furthest = difference(options.output, eye, goals, embeddings)
    print(f"in libmtmd no number is further off than {furthest:.3f}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the eye of the embedded model.")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--steps", type=int, metavar="N",
                        help=" or ".join(f"{plan.n_steps:,} on {name}"
                                         for name, plan in PLANS.items()))  # fmt: skip
    parser.add_argument("--output", type=Path, default=PROJECTOR_PATH, metavar="FILE.gguf",
                        help="(default: its place in the package)")  # fmt: skip
    parser.add_argument("--keep", action="store_true",
                        help="do not train: write again what the last run learned")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    main()
