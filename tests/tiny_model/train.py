"""Trains the embedded model, from nothing, and writes it as a GGUF file.

    make tiny-model                          (or: python -m tests.tiny_model.train --help)

A language model reads tokens and predicts, at each place, which token comes next. This one is a
Llama: six layers in which attention fetches from earlier places what matters here, and a small
network of its own works on what was fetched. Everything it can do, it learns from conversations
that `skills.py` and `tools.py` make up; only the answers count, since nobody needs a model that
guesses questions. Same seed, same machine: same model.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from tests.gguf_writer import Shape
from tests.tiny_model import corpus, export, tokenizer
from tests.tiny_model.tokenizer import Tokenizer
from tests.tiny_model.words import Source

SHAPE = Shape(n_layer=6, n_embd=192, n_head=6, n_head_kv=3, n_ff=512, n_ctx=2048)
N_LETTER_MERGES, N_SIGN_MERGES, N_TEXTS = 600, 60, 2500
TOKENS_PER_STEP = 4096
IS_FAST_IN_16_BITS = torch.backends.cpu.get_cpu_capability() == "AVX512"


class Course(NamedTuple):
    """A part of the training; the rates begin high in each and end at nothing."""

    n_steps: int
    rates: tuple[float, float]  # Muon's and AdamW's
    shares: dict[corpus.Skill, float]  # what comes more often than usual
    compounds: float  # the share of words that are two in one: each piece in new company
    n_alone: int = 0  # pools, of 2,000 conversations, without turns of other skills


COURSES = (
    Course(4400, (0.02, 0.004), {}, 0.0, n_alone=10),
    Course(1150, (0.012, 0.0024), corpus.HARDER, 0.2),
    Course(1300, (0.012, 0.0024), corpus.HARDEST, 0.3),
    Course(900, (0.012, 0.0024), corpus.LAST, 0.35),
    Course(480, (0.008, 0.0016), corpus.EVEN, 0.3),
    Course(300, (0.008, 0.0016), corpus.FINEST, 0.3),
    Course(320, (0.01, 0.002), corpus.LAST_OF_ALL, 0.3),
)


# ---- the model -----------------------------------------------------------------------------


class Attention(nn.Module):
    """Each place looks back at all earlier ones and takes a mean of what it finds there.

    What it looks for (query) is compared with what each place offers (key); the better they
    agree, the more of that place's value it takes. Several heads do this side by side, and two
    query heads share one head of keys and values, which halves the memory.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.n_head, self.n_head_kv = shape.n_head, shape.n_head_kv
        self.n_rot = shape.n_embd // shape.n_head
        self.q = nn.Linear(shape.n_embd, shape.n_embd, bias=False)
        self.k = nn.Linear(shape.n_embd, self.n_rot * shape.n_head_kv, bias=False)
        self.v = nn.Linear(shape.n_embd, self.n_rot * shape.n_head_kv, bias=False)
        self.output = nn.Linear(shape.n_embd, shape.n_embd, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """(batch, place, n_embd) -> the same shape."""
        n_batch, n_place, n_embd = x.shape

        def heads(projected: Tensor, n: int) -> Tensor:
            return projected.view(n_batch, n_place, n, self.n_rot).transpose(1, 2)

        q = rotated(heads(self.q(x), self.n_head), angles)
        k = rotated(heads(self.k(x), self.n_head_kv), angles)
        # In 32 bits: PyTorch's attention on a CPU is slower in 16.
        v = heads(self.v(x), self.n_head_kv).float()
        share = self.n_head // self.n_head_kv
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        found = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.output(found.transpose(1, 2).reshape(n_batch, n_place, n_embd))


def rotation_angles(n_place: int, n_rot: int) -> tuple[Tensor, Tensor]:
    """(cosines, sines) of rotary positions: each pair of numbers turns at its own speed.

    Queries and keys are turned by their place, so that their product depends on how far apart
    they are and not on where they are.
    """
    speeds = 10000.0 ** (-torch.arange(0, n_rot, 2) / n_rot)
    turns = torch.arange(n_place)[:, None] * speeds
    return turns.cos(), turns.sin()


def rotated(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """The first half of each head holds one number of every pair, the second half the other."""
    cos, sin = angles
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


class Layer(nn.Module):
    """Attention, then the network; each adds its result to the stream that runs through all."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attn_norm = nn.RMSNorm(shape.n_embd, eps=1e-5)
        self.attn = Attention(shape)
        self.ffn_norm = nn.RMSNorm(shape.n_embd, eps=1e-5)
        self.gate = nn.Linear(shape.n_embd, shape.n_ff, bias=False)
        self.up = nn.Linear(shape.n_embd, shape.n_ff, bias=False)
        self.down = nn.Linear(shape.n_ff, shape.n_embd, bias=False)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        """(batch, place, n_embd) -> the same shape."""
        x = x + self.attn(self.attn_norm(x), angles)
        y = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Tokens -> for each place, a vector that is compared with the embedding of each token."""

    def __init__(self, shape: Shape, vocabulary: Tokenizer) -> None:
        super().__init__()
        self.n_rot = shape.n_embd // shape.n_head
        self.embedding = nn.Embedding(len(vocabulary.tokens), shape.n_embd)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.n_layer))
        self.norm = nn.RMSNorm(shape.n_embd, eps=1e-5)
        self._begin(shape, vocabulary)

    def _begin(self, shape: Shape, vocabulary: Tokenizer) -> None:
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.5 * parameter.shape[1] ** -0.5)
        for layer in self.layers:  # what is added to the stream begins small: many add to it
            for matrix in (layer.attn.output.weight, layer.down.weight):
                nn.init.zeros_(matrix)
        with torch.no_grad():
            nn.init.normal_(self.embedding.weight, std=0.02)
            # A piece with a space in front begins as the piece plus "space": copying a word from
            # inside a sentence to behind a quote is then nothing that has to be learned.
            space = torch.randn(shape.n_embd) * 0.02
            for spaced, bare in vocabulary.twins():
                self.embedding.weight[spaced] = self.embedding.weight[bare] + space

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, place) -> (batch, place, n_embd)."""
        angles = rotation_angles(tokens.shape[1], self.n_rot)
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, angles)
        return self.norm(x)


# ---- training ------------------------------------------------------------------------------


class Muon(torch.optim.Optimizer):
    """Momentum whose steps turn all directions of a matrix alike, however weak their gradients.

    PyTorch's own computes in 16 bits, which takes most of the training on processors without.
    The method and its constants: https://kellerjordan.github.io/posts/muon/
    """

    def __init__(
        self, matrices: list[nn.Parameter], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(matrices, {"lr": lr})
        self._momentum, self._weight_decay = momentum, weight_decay

    @torch.no_grad()
    def step(self) -> None:
        """Moves every matrix."""
        for group in self.param_groups:
            for matrix in group["params"]:
                state = self.state[matrix]
                mean = state.setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - self._momentum)
                ahead = matrix.grad.lerp(mean, self._momentum)  # Nesterov's
                rate = group["lr"] * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.mul_(1 - group["lr"] * self._weight_decay)
                matrix.sub_(orthogonal(ahead), alpha=rate)


def orthogonal(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose rows (or columns) are of length 1 and at right angles.

    Newton and Schulz's iteration: each round brings all singular values closer to 1.
    """
    x = matrix / (matrix.norm() + 1e-7)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if is_tall else x


@dataclass
class Optimizers:
    """Muon for the matrices inside, AdamW for embeddings and norms."""

    muon: torch.optim.Optimizer
    adam: torch.optim.Optimizer

    def step(self, rate: float) -> None:
        """One step, at this part of the full speed."""
        for optimizer in (self.muon, self.adam):
            for group in optimizer.param_groups:
                group["lr"] = group["full"] * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def optimizers_of(
    matrices: list[nn.Parameter], others: list[nn.Parameter], muon_rate: float, adam_rate: float
) -> Optimizers:
    """The two optimizers with their full speeds."""
    muon = Muon(matrices, lr=muon_rate, momentum=0.95, weight_decay=0.05)
    adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for optimizer, full in ((muon, muon_rate), (adam, adam_rate)):
        for group in optimizer.param_groups:
            group["full"] = full
    return Optimizers(muon, adam)


def padded(batch: corpus.Batch) -> tuple[Tensor, Tensor]:
    """(tokens, mask), both (conversations, longest); what is added counts for nothing."""
    n = max(len(ids) for ids, _ in batch)
    tokens = torch.tensor([ids + [0] * (n - len(ids)) for ids, _ in batch])
    mask = torch.tensor([wanted + [False] * (n - len(wanted)) for _, wanted in batch])
    return tokens, mask


def loss_of(model: Llama, tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean surprise, in nats, at each token of an answer."""
    with torch.autocast("cpu", torch.bfloat16, enabled=IS_FAST_IN_16_BITS):
        states = model(tokens[:, :-1])
        wanted = mask[:, 1:]
        logits = states[wanted] @ model.embedding.weight.T
    return F.cross_entropy(logits.float(), tokens[:, 1:][wanted])


def speed(step: int, n_steps: int) -> float:
    """The learning rate's share of its full value: a short rise, then down to nothing."""
    warm_up = 50
    if step < warm_up:
        return (step + 1) / warm_up
    return max(0.0, 1 - (step - warm_up) / (n_steps - warm_up))


def train(
    model: Llama,
    data: Iterator[corpus.Batch],
    n_steps: int,
    rates: tuple[float, float],
) -> None:
    """Shows the model batch after batch and moves its weights towards the answers."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    optimizers = optimizers_of(matrices, others, *rates)
    begin, n_tokens, recent = time.monotonic(), 0, 0.0
    for step in range(n_steps):
        tokens, mask = padded(next(data))
        loss = loss_of(model, tokens, mask)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(speed(step, n_steps))
        n_tokens += tokens.numel()
        recent = loss.item() if not step else 0.95 * recent + 0.05 * loss.item()
        if step % 50 == 49:
            passed = time.monotonic() - begin
            print(f"step {step + 1} of {n_steps}: loss {recent:.4f}, "
                  f"{n_tokens / 1e6:.1f} M tokens, {n_tokens / passed:,.0f} tokens/s, "
                  f"{passed / 60:.1f} min", flush=True)  # fmt: skip


# ---- the command ---------------------------------------------------------------------------

REPOSITORY = Path(__file__).resolve().parents[2]
MODEL_PATH = REPOSITORY / "lmlite" / "models" / "tiny.gguf"
CARD = {
    "general.name": "tiny",
    "general.author": "lmlite",
    "general.license": "mit",
    "general.description": (
        "A small chat model for trying and testing lmlite, trained from nothing on synthetic "
        "conversations: it repeats, remembers, adds, counts, writes JSON, calls tools, thinks "
        "first and tells stories, and says so when it does not know."
    ),
}


def main() -> None:
    """Learns a vocabulary, trains in several courses, writes the file."""
    options = parsed()
    torch.manual_seed(options.seed)
    vocabulary = learned_vocabulary(options.seed) if options.after == 0 else None
    if vocabulary is None:
        kept = torch.load(course_path(options.after))
        vocabulary = Tokenizer([tuple(pair) for pair in kept["merges"]])
    model = Llama(SHAPE, vocabulary)
    if options.after:
        model.load_state_dict(kept["weights"])
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{n_parameters:,} parameters, {len(vocabulary.tokens):,} tokens", flush=True)
    for i, (course, n_steps) in enumerate(zip(COURSES, options.steps, strict=True), 1):
        if i > options.after:
            print(f"course {i} of {len(COURSES)}", flush=True)
            source = Source(options.seed + i, held_out=False, compounds=course.compounds)
            data = corpus.batches(
                source, vocabulary, TOKENS_PER_STEP, course.shares, course.n_alone
            )
            train(model, data, n_steps, course.rates)
            keep(model, vocabulary, course_path(i))
    export.export(options.output, model.state_dict(), SHAPE, vocabulary, CARD)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--steps", type=int, nargs=len(COURSES), metavar="N",
                        default=[course.n_steps for course in COURSES],
                        help="of each course (default: %(default)s)")  # fmt: skip
    parser.add_argument("--after", type=int, default=0, choices=range(len(COURSES)), metavar="N",
                        help="go on behind course N of an earlier run")  # fmt: skip
    parser.add_argument("--output", type=Path, default=MODEL_PATH, metavar="FILE.gguf",
                        help="(default: its place in the package)")  # fmt: skip
    return parser.parse_args()


def learned_vocabulary(seed: int) -> Tokenizer:
    """The tokens, from texts such as those of the training."""
    print("learning the vocabulary", flush=True)
    source, renderer = Source(seed, held_out=False), corpus.Renderer()
    texts = [corpus.plain(renderer.text(corpus.conversation(source))) for _ in range(N_TEXTS)]
    return tokenizer.learn(texts, N_LETTER_MERGES, N_SIGN_MERGES)


def course_path(number: int) -> Path:
    """Where a course leaves what it made."""
    return REPOSITORY / "native" / "build" / "tiny" / f"course-{number}.pt"


def keep(model: Llama, vocabulary: Tokenizer, path: Path) -> None:
    """A training takes hours; what ends it early costs one course."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": model.state_dict(), "merges": vocabulary.merges}, path)


if __name__ == "__main__":
    main()
