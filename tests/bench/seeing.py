"""Scenarios: a model that sees, by an encoder with random weights as large as real ones."""

import base64
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

from tests.bench import model
from tests.bench.client import Connection, ask_chat
from tests.bench.peers import Side
from tests.bench.work import FEW, Values, Work, warm_up
from tests.support import projectors
from tests.support.image_files import png

MMPROJ_PATH = model.FOLDER / "random-mmproj.gguf"
SIZE = projectors.Size(n_embd=512, n_head=8, n_ff=2048, n_layer=24, side=336)  # 576 tokens


def made() -> Path:
    """The projector file; it takes half a minute when it is not there yet."""
    if not MMPROJ_PATH.is_file():
        print("making an encoder of random weights, once", file=sys.stderr)
        part = MMPROJ_PATH.with_suffix(".part")
        projectors.mlp(part, model.N_EMBD, SIZE)
        part.rename(MMPROJ_PATH)
    return MMPROJ_PATH


def same_picture(side: Side, work: Work) -> Values:
    """A question about a picture, the same again, and another one about the same picture."""
    firsts, agains, others = [], [], []
    with (
        side.serve(replace(FEW, mmproj_path=made())) as server,
        Connection(server.url) as connection,
    ):
        warm_up(server)
        for _ in range(work.n(3, 1)):
            url = f"data:image/png;base64,{base64.b64encode(png(640, 480, work.colour())).decode()}"
            image = {"type": "image_url", "image_url": {"url": url}}
            asked = [
                ask_chat(
                    server.model,
                    [{"role": "user", "content": [image, {"type": "text", "text": text}]}],
                    8,
                )
                for text in (work.prompt(12), work.prompt(12))
            ]
            first, again, other = answers = [connection.stream(asked[i]) for i in (0, 0, 1)]
            work.count(*answers)
            firsts.append(first.first_token_s)
            agains.append(again.first_token_s / first.first_token_s)
            others.append(other.first_token_s / first.first_token_s)
    return {"first": median(firsts), "again": median(agains), "other": median(others)}
