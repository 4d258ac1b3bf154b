"""Runs chat templates, each a line of JSON on standard input, and prints the outcome of each.

It has its own process, because a hostile template may crash it. Arguments: the path of a model, and
how many seconds a template may take.
"""

import json
import sys
import time

from lmlite.errors import BadRequest
from lmlite.messages import ChatMessage, ChatOptions
from lmlite.worker.chat import renderer
from lmlite.worker.chat.bridge_request import request_of
from lmlite.worker.chat.renderer import TemplateError
from lmlite.worker.chat.template import ChatTemplate
from lmlite.worker.llama import capi
from lmlite.worker.llama.model import Model


def main() -> None:
    """Runs the command."""
    renderer.MAX_SECONDS = float(sys.argv[2])
    lib = capi.load()
    lib.llama_backend_init()
    model = Model(lib, sys.argv[1], vocab_only=True)
    request = request_of([ChatMessage("user", "Hello")], ChatOptions())
    for line in sys.stdin:
        began_s = time.monotonic()
        try:
            template = ChatTemplate(model, json.loads(line))
            outcome, text = "text", str(template._own.reply(request)["prompt"])
            template.close()
        except (TemplateError, BadRequest) as err:
            outcome, text = "refused", str(err)
        print(json.dumps([outcome, text, time.monotonic() - began_s]), flush=True)


if __name__ == "__main__":
    main()
