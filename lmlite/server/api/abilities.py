"""What a model can do, as its file tells: use tools, think, and how its thinking is set.

Read from the text of the chat template, because the model need not be loaded.
"""

from lmlite.server.models.served_model import ServedModel

_EFFORTS = ("low", "medium", "high")
_THOUGHTS = ("<think>", "reasoning_content")  # in templates that have no setting for thoughts


def uses_tools(model: ServedModel) -> bool:
    """Whether the template shows tools to the model."""
    return "tools" in template_of(model)


def reasoning_settings(model: ServedModel) -> tuple[str, ...]:
    """The values of LM Studio's `reasoning` that make a difference; none: it does not think."""
    template = template_of(model)
    switch = ("off", "on") if "enable_thinking" in template else ()
    efforts = _EFFORTS if "reasoning_effort" in template else ()
    always = ("on",) if any(word in template for word in _THOUGHTS) else ()
    return (*switch, *efforts) or always


def template_of(model: ServedModel) -> str:
    """The chat template that the model has, or would have if it were loaded; "" without one."""
    load = model.load or model.wanted
    return (load.chat_template if load else None) or model.file.chat_template or ""
