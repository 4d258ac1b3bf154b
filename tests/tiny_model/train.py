"""Trains the embedded model, from nothing, and writes it as a GGUF file.

    make tiny-model                          (or: python -m tests.tiny_model.train --help)

A language model reads tokens and predicts, at each place, which token comes next. This one is a
Llama: six layers in which attention fetches from earlier places what matters here, and a small
network of its own works on what was fetched. Everything it can do, it learns from conversations
that `skills.py` and `tools.py` make up; only the answers count, since nobody needs a model that
guesses questions. Same seed, same machine: same model.
"""

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from tests import REPOSITORY
from tests.support.gguf_writer import Shape
from tests.tiny_model import corpus, export, tokenizer
from tests.tiny_model.supply import Batch, batches
from tests.tiny_model.tokenizer import Tokenizer
from tests.tiny_model.words import Source

SHAPE = Shape(n_layer=6, n_embd=192, n_head=6, n_head_kv=3, n_ff=512, n_ctx=corpus.N_CTX)
N_LETTER_MERGES, N_SIGN_MERGES, N_TEXTS = 600, 60, 2500
MUON_RATE, ADAM_RATE = 0.02, 0.004
IS_FAST_IN_16_BITS = torch.backends.cpu.get_cpu_capability() == "AVX512"


class Plan(NamedTuple):
    """How long to train."""

    n_steps: int
    n_tokens: int  # of a step, about


# A GPU is done in minutes with what takes a processor days.
PLANS = {"cuda": Plan(6_000, 32_768), "cpu": Plan(9_000, 4096)}


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


def rotation_angles(n_place: int, n_rot: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(cosines, sines) of rotary positions: each pair of numbers turns at its own speed.

    Queries and keys are turned by their place, so that their product depends on how far apart
    they are and not on where they are.
    """
    speeds = 10000.0 ** (-torch.arange(0, n_rot, 2, device=device) / n_rot)
    turns = torch.arange(n_place, device=device)[:, None] * speeds
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
        angles = rotation_angles(tokens.shape[1], self.n_rot, tokens.device)
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
        """Moves every matrix; those of one shape are turned together."""
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[nn.Parameter]] = {}
            for matrix in group["params"]:
                alike.setdefault(tuple(matrix.shape), []).append(matrix)
            for (n_rows, n_columns), matrices in alike.items():
                gradients = torch.stack([matrix.grad for matrix in matrices])
                state = self.state[matrices[0]]
                mean = state.setdefault("mean", torch.zeros_like(gradients))
                mean.lerp_(gradients, 1 - self._momentum)
                ahead = gradients.lerp(mean, self._momentum)  # Nesterov's
                rate = group["lr"] * max(1.0, n_rows / n_columns) ** 0.5
                for matrix, turned in zip(matrices, orthogonal(ahead), strict=True):
                    matrix.mul_(1 - group["lr"] * self._weight_decay)
                    matrix.sub_(turned, alpha=rate)


def orthogonal(matrices: Tensor) -> Tensor:
    """About the nearest matrices whose rows (or columns) are of length 1 and at right angles.

    Newton and Schulz's iteration: each round brings all singular values closer to 1.
    (matrix, row, column) -> the same shape.
    """
    x = matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    is_tall = x.shape[1] > x.shape[2]
    x = x.mT if is_tall else x
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if is_tall else x


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


def loss_of(model: Llama, batch: Batch) -> Tensor:
    """The mean surprise, in nats, at each token of an answer."""
    with torch.autocast("cpu", torch.bfloat16, enabled=IS_FAST_IN_16_BITS):
        states = model(batch.tokens).flatten(0, 1).index_select(0, batch.places)
        logits = states @ model.embedding.weight.T
    surprise = F.cross_entropy(logits.float(), batch.wanted, reduction="none")
    return surprise @ batch.weights / batch.weights.sum()


def speed(step: int, n_steps: int) -> float:
    """The learning rate's share of its full value: a short rise, then down to nothing."""
    warm_up = 50
    if step < warm_up:
        return (step + 1) / warm_up
    return max(0.0, 1 - (step - warm_up) / (n_steps - warm_up))


def train(model: Llama, data: Iterator[Batch], n_steps: int) -> None:
    """Shows the model batch after batch and moves its weights towards the answers."""
    matrices = [p for p in model.layers.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    optimizers = optimizers_of(matrices, others, MUON_RATE, ADAM_RATE)
    begin, n_tokens, recent = time.monotonic(), 0, 0.0
    for step, batch in enumerate(islice(data, n_steps)):
        loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(speed(step, n_steps))
        n_tokens += batch.tokens.numel()
        if step % 50 == 49:  # a GPU is asked seldom: it runs ahead of this loop
            recent = 0.5 * recent + 0.5 * loss.item() if recent else loss.item()
            passed = time.monotonic() - begin
            print(f"step {step + 1} of {n_steps}: loss {recent:.4f}, "
                  f"{n_tokens / 1e6:.1f} M tokens, {n_tokens / passed:,.0f} tokens/s, "
                  f"{passed / 60:.1f} min", flush=True)  # fmt: skip


# ---- the command ---------------------------------------------------------------------------

MODEL_PATH = REPOSITORY / "lmlite" / "models" / "tiny.gguf"
KEPT_PATH = REPOSITORY / "native" / "build" / "tiny" / "trained.pt"  # for its eye
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
    """Learns a vocabulary, trains, writes the file."""
    options = parsed()
    device = repeatable_device()
    plan = PLANS[device.type]
    torch.manual_seed(options.seed)
    vocabulary = learned_vocabulary(options.seed)
    model = Llama(SHAPE, vocabulary).to(device)
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{n_parameters:,} parameters, {len(vocabulary.tokens):,} tokens, {device}", flush=True)
    data = batches(options.seed, vocabulary, plan.n_tokens, device)
    train(model, data, options.steps or plan.n_steps)
    weights = model.cpu().state_dict()
    KEPT_PATH.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"weights": weights, "merges": vocabulary.merges}, KEPT_PATH)
    export.export(options.output, weights, SHAPE, vocabulary, CARD)
    print(f"{options.output}: {options.output.stat().st_size:,} bytes")


def repeatable_device() -> torch.device:
    """A GPU where there is one, which then has to add in the same order each time."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what CUDA's products need for that
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads such here
    torch.set_float32_matmul_precision("high")  # products of 19 bits, added in 32
    return torch.device("cuda")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the embedded model.")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--steps", type=int, metavar="N",
                        help=" or ".join(f"{plan.n_steps:,} on {name}"
                                         for name, plan in PLANS.items()))  # fmt: skip
    parser.add_argument("--output", type=Path, default=MODEL_PATH, metavar="FILE.gguf",
                        help="(default: its place in the package)")  # fmt: skip
    return parser.parse_args()


def learned_vocabulary(seed: int) -> Tokenizer:
    """The tokens, from texts such as those of the training."""
    print("learning the vocabulary", flush=True)
    source, renderer = Source(seed, held_out=False), corpus.Renderer()
    texts = [corpus.plain(renderer.text(corpus.conversation(source))) for _ in range(N_TEXTS)]
    return tokenizer.learn(texts, N_LETTER_MERGES, N_SIGN_MERGES)


if __name__ == "__main__":
    main()
