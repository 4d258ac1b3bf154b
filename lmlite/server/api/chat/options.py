"""A chat's options for its template and for the form of the reply, from its request."""

import json

from lmlite.messages import ChatOptions, Json
from lmlite.server.api.chat.tools import MAX_TOLD_LEVELS, Choice, Tools
from lmlite.server.api.fields import Field
from lmlite.server.forms.bounds import n_values
from lmlite.server.models.defaults import EFFORTS, Defaults

MAX_KWARGS_BYTES = 16 << 10


def chat_options(
    body: Field,
    defaults: Defaults,
    tools: Tools,
    choice: Choice,
    *,
    form: Json | None,
    parallel: bool | None,
    effort: str | None,
    thinks: bool | None = None,
    kwargs: Field | None = None,
) -> ChatOptions:
    """The options of a chat. Raises BadRequest.

    `parallel`: whether a reply may have several calls; None leaves that to the template. `effort`
    is one of EFFORTS, and `thinks` turns reasoning on or off; None leaves it to the defaults.
    `kwargs` are more variables for the template.
    """
    variables = dict(kwargs.object().value) if kwargs is not None else {}
    wanted = variables.pop("enable_thinking", None)
    if kwargs is not None and type(wanted) not in (bool, type(None)):
        kwargs.refuse("enable_thinking is true or false")
    thinks = wanted if wanted is not None else thinks
    if effort is None and "reasoning_effort" not in variables:
        thinks = defaults.thinks if thinks is None else thinks
        effort = defaults.effort if thinks is not False else None
    if effort not in (None, "none"):
        variables["reasoning_effort"] = effort
    if kwargs is not None and not _is_small(variables):
        kwargs.refuse("chat_template_kwargs is too large")
    return ChatOptions(
        tools=tuple(tools.told),
        tool_choice=choice[0],
        tool_names=choice[1],
        parallel_tool_calls=parallel,
        json_schema=form,
        thinks=thinks is not False and effort != "none",
        template_kwargs=variables or None,
        separate_reasoning=defaults.separate_reasoning,
        stop_in_reasoning=body["stop_in_reasoning"].boolean(),
        tool_schemas=tuple(tools.schemas),
    )


def parse_effort(field: Field, words: str | None = None) -> str | None:
    """The reasoning effort; `words` are the field's name in an error. Raises BadRequest."""
    effort = field.string()
    if effort is not None and effort not in EFFORTS:
        field.refuse(f"{words or field.path} is one of {', '.join(EFFORTS)}")
    return effort


def _is_small(variables: Json) -> bool:
    try:
        n_values(variables, MAX_KWARGS_BYTES, MAX_TOLD_LEVELS)
    except ValueError:  # too large, or nested deeper than `json.dumps` can write
        return False
    return len(json.dumps(variables)) <= MAX_KWARGS_BYTES
