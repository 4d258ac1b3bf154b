"""LlamaIndex: completions, chats, streams, a call of a Python function, a form.

In an environment of its own: `python -m tests.clients.llama_index_client URL MODEL`.
"""

import sys

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

from tests.clients.asked import ANNA, INTRODUCE, OSLO, RESULT, TOLD, Person


def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return RESULT if city == "Oslo" else "none"


def main(url: str, model: str) -> None:
    """Asks in each way; prints an answer."""
    llm = OpenAILike(model=model, api_base=f"{url}/v1", api_key="lm-studio", temperature=0,
                     is_chat_model=True, is_function_calling_model=True, max_retries=0,
                     should_use_structured_outputs=True, context_window=2048)  # fmt: skip
    asked = [ChatMessage(role="user", content=INTRODUCE)]
    whole = llm.chat(asked).message.content
    assert whole == "".join(part.delta or "" for part in llm.stream_chat(asked)) != ""
    assert llm.complete(INTRODUCE).text == whole
    tool = FunctionTool.from_defaults(get_weather)
    told = llm.predict_and_call([tool], user_msg=OSLO)
    assert RESULT in str(told) and RESULT in TOLD
    assert llm.as_structured_llm(Person).complete(ANNA).raw == Person(name="Anna", age=12)
    print(whole)


if __name__ == "__main__":
    main(*sys.argv[1:])
