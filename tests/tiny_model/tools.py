"""Conversations in which the model calls tools: which one, with which arguments, and what then.

Two kinds of tools: families that every client tries first (the weather, the time, a message), and
tools that are made up from two words each time, so that the model learns to find the tool whose
name and description share words with the question, instead of learning names by heart.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tests.tiny_model.conversation import Case, Turn
from tests.tiny_model.skills import DAYS, addition, echo, introduction, recall, small_talk, unknown
from tests.tiny_model.words import OBJECTS, THINGS, VERBS, Source

Schema = dict[str, object]
Call = tuple[str, dict[str, object]]


@dataclass
class Tool:
    """A tool, and how to ask for it: `ask` gives a question and the arguments that it names."""

    name: str
    description: str
    parameters: dict[str, Schema]  # by name
    optional: tuple[str, ...]
    ask: Callable[[Source], tuple[str, dict[str, object]]]

    def definition(self, source: Source) -> dict[str, object]:
        """As clients send it, with the keys that their frameworks add."""
        return {"type": "function", "function": _dressed(source, self)}


def _dressed(source: Source, tool: Tool) -> Schema:
    """The schema in the manner of one of the common frameworks."""
    style = source.rng.randrange(4)
    properties = {}
    for name, schema in tool.parameters.items():
        extra: Schema = {"title": name.replace("_", " ").title()} if style == 1 else {}
        if style in (0, 2) and source.chance(0.5):
            extra["description"] = f"The {name.replace('_', ' ')}, as the user gave it"
        properties[name] = {**extra, **schema}
    required = [name for name in tool.parameters if name not in tool.optional]
    parameters: Schema = {"type": "object", "properties": properties, "required": required}
    if style == 1:  # a model class's schema
        parameters = {"properties": properties, "required": required,
                      "title": f"{tool.name}_args", "type": "object",
                      "additionalProperties": False}  # fmt: skip
    elif style == 2:
        parameters = {"additionalProperties": False, **parameters}
    elif style == 3:
        parameters = {"$schema": "http://json-schema.org/draft-07/schema#", **parameters}
    description = tool.description
    if source.chance(0.15):
        description += " Use this whenever the user asks for it, and only then; never guess."
    function: Schema = {"name": tool.name, "description": description, "parameters": parameters}
    if style in (1, 2):
        function["strict"] = True
    return function


# ---- families that everybody tries ---------------------------------------------------------

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
SUFFIXES = (".txt", ".md", ".json", ".py", ".csv")
UNITS = ("celsius", "fahrenheit")
LANGUAGES = ("French", "German", "Spanish", "Italian", "Dutch", "Polish", "Greek", "Latin")

# names; descriptions; (parameter names, kind) each; questions. A kind that ends in "?" is left
# out when the question does not name it.
Family = tuple[str, str, tuple[tuple[str, str], ...], str]
FAMILIES: tuple[Family, ...] = (
    ("get_weather weather get_current_weather weather_lookup fetch_weather",
     "Get the weather in a city.|Get the current weather.|The weather of a place.|"
     "Returns the current weather for a given location.",
     (("city location place", "city"),),
     "What is the weather in {0}?|What's the weather in {0}?|How is the weather in {0}?|"
     "Tell me the weather in {0}.|What is the weather like in {0}?|Weather in {0}?|"
     "What's the weather like in {0} today?|Is it raining in {0}?|How warm is it in {0}?"),
    ("get_weather get_temperature get_current_weather",
     "Get the weather in a city.|Get the temperature in a given location.",
     (("city location", "city"), ("unit units", "unit")),
     "What is the weather in {0} in {1}?|What is the temperature in {0} in {1}?|"
     "How warm is it in {0}, in {1}?"),
    ("get_time get_current_time current_time time_in",
     "Get the time in a city.|Returns the current time of a place.",
     (("city location timezone place", "city"),),
     "What time is it in {0}?|Tell me the time in {0}.|What's the time in {0}?|Time in {0}?"),
    ("add add_numbers sum calculate_sum", "Add two numbers.|The sum of two integers.",
     (("a x first", "int"), ("b y second", "int")),
     "Add {0} and {1}.|What is {0} + {1}?|What is {0} plus {1}?|Use the tool to add {0} and {1}."),
    ("multiply multiply_numbers product", "Multiply two numbers.|The product of two integers.",
     (("a x first", "int"), ("b y second", "int")),
     "Multiply {0} by {1}.|What is {0} * {1}?|What is {0} times {1}?|Multiply {0} and {1}."),
    ("search web_search search_web", "Search the web.|Find pages on the internet.",
     (("query q text", "text"),),
     "Search for {0}.|Search the web for {0}.|Look up {0}.|Find {0} on the web."),
    ("send_message send_email write_to", "Send a message to a person.|Send an email.",
     (("to recipient person", "name"), ("text message body", "text")),
     'Send {0} the message "{1}".|Tell {0}: {1}|Send a message to {0}: {1}|Write to {0}: {1}'),
    ("set_timer start_timer timer", "Set a timer.|Start a timer of some minutes.",
     (("minutes duration n_minutes", "int"),),
     "Set a timer for {0} minutes.|Start a timer of {0} minutes.|Timer: {0} minutes."),
    ("translate translate_text", "Translate text into a language.|Translate a text.",
     (("text phrase", "text"), ("language target to", "language")),
     'Translate "{0}" into {1}.|Translate {0} into {1}.|Say "{0}" in {1}.'),
    ("play_song play_music play", "Play a song.|Play music.",
     (("title song name", "text"),), "Play {0}.|Play the song {0}.|I want to hear {0}."),
    ("turn_on_light set_light switch_light", "Switch the light of a room on or off.",
     (("room place", "noun"), ("on state is_on", "bool")),
     "Turn the light in the {0} {1}.|Switch the light in the {0} {1}."),
    ("order_item buy order add_to_cart", "Order something.|Buy an item in a quantity.",
     (("item product name", "noun"), ("quantity amount count", "int")),
     "Order {1} {0}s.|Buy {1} {0}s.|I need {1} {0}s.|Please order {1} {0}s."),
    ("get_stock_price stock_price get_quote", "Get the price of a stock.",
     (("symbol ticker", "symbol"),),
     "What is the stock price of {0}?|What is the price of {0}?|Stock price of {0}?"),
    ("book_table reserve_table reserve", "Book a table in a restaurant.",
     (("name guest", "name"), ("people guests n_people", "int"), ("day date", "day?")),
     "Book a table for {1} people, name {0}.|Reserve a table for {0}, {1} people, on {2}.|"
     "Book a table for {1} on {2} for {0}."),
    ("create_event add_event schedule_event", "Create an event in the calendar.",
     (("title name", "noun"), ("day date", "day"), ("hour time", "int?")),
     "Create an event {0} on {1}.|Add the event {0} on {1} at {2}.|Schedule {0} for {1} at {2}."),
    ("get_population population", "Get how many people live in a city.",
     (("city place", "city"),), "How many people live in {0}?|What is the population of {0}?"),
    ("get_distance distance route", "Get the distance between two cities.",
     (("from start origin", "city"), ("to end destination", "city")),
     "How far is it from {0} to {1}?|What is the distance from {0} to {1}?"),
    ("read_file open_file load_file", "Read a file.|Returns what is in a file.",
     (("path file filename", "path"),),
     "Read the file {0}.|Open {0}.|What is in {0}?|Show me the file {0}."),
    ("get_user find_user lookup_user", "Find a user by name.|Look up a user.",
     (("name user username", "name"),), "Find the user {0}.|Look up the user {0}.|Who is {0}?"),
    ("set_temperature heat", "Set the temperature of a room in degrees.",
     (("degrees temperature value", "number"), ("room place", "noun?")),
     "Set the temperature to {0} degrees.|Heat the {1} to {0} degrees."),
    ("get_date today current_date", "Get the date of today.", (),
     "What is the date today?|What day is it?|What is today's date?"),
    ("roll_dice random_number roll", "Roll a dice.|Get a random number.", (),
     "Roll a dice.|Roll the dice.|Give me a random number."),
)  # fmt: skip


def _value(source: Source, kind: str) -> tuple[object, Schema, str]:
    """A value of a kind, the schema of its parameter, and the value as the question spells it."""
    if kind == "int":
        n = source.rng.randint(0, 99)
        return n, INTEGER, str(n)
    if kind == "number":
        x = source.rng.choice((source.rng.randint(5, 40), source.rng.randint(10, 60) / 2))
        return x, NUMBER, str(x)
    if kind == "bool":
        on = source.chance(0.5)
        return on, {"type": "boolean"}, "on" if on else "off"
    if kind == "unit":
        unit = source.phrase(UNITS)
        return unit, {"type": "string", "enum": list(UNITS)}, unit
    text = {
        "city": source.city, "name": source.name, "noun": source.noun,
        "text": lambda: source.words(1, 4), "language": lambda: source.phrase(LANGUAGES),
        "day": lambda: source.phrase(DAYS), "symbol": lambda: source.invented().upper()[:4],
        "path": lambda: source.word().lower() + source.phrase(SUFFIXES),
        "word": source.word,
    }[kind]()  # fmt: skip
    return text, STRING, text


def _family_tool(source: Source, family: Family) -> Tool:
    names, descriptions, slots, questions = family
    chosen = [(source.phrase(options.split()), kind) for options, kind in slots]

    def ask(source: Source) -> tuple[str, dict[str, object]]:
        form = source.phrase(questions.split("|"))
        texts, arguments = [], {}
        for i, (name, kind) in enumerate(chosen):
            value, _, text = _value(source, kind.rstrip("?"))
            texts.append(text)
            if "{" + str(i) + "}" in form:
                arguments[name] = value
        return form.format(*texts), arguments

    parameters = {name: _value(source, kind.rstrip("?"))[1] for name, kind in chosen}
    optional = tuple(name for name, kind in chosen if kind.endswith("?"))
    description = source.phrase(descriptions.split("|"))
    return Tool(
        _styled(source, source.phrase(names.split())), description, parameters, optional, ask
    )


def _styled(source: Source, name: str) -> str:
    if not source.chance(0.15):
        return name
    first, *others = name.split("_")
    return first + "".join(part.capitalize() for part in others)


# ---- tools that nobody has seen before -----------------------------------------------------


def _some_noun(source: Source) -> str:
    if source.compounds and source.chance(source.compounds):
        return source.compound().lower()
    lists = (THINGS, THINGS, OBJECTS)
    return source.invented() if source.chance(0.2) else source.pick(source.rng.choice(lists))


def _some_verb(source: Source) -> str:
    """In training as often any word at all: a name that begins anew has to be copied."""
    if source.compounds and source.chance(0.5):
        anything = (source.compound, source.invented, source.known_word)
        return source.rng.choice(anything)().lower()
    return source.pick(VERBS)


def _getter(source: Source) -> Tool:
    """get_X_Y: the X Y of something."""
    owner, thing, parameter = _some_noun(source), _some_noun(source), source.pick(THINGS)
    parameter = source.phrase(("name", "id", "item", owner, parameter, f"{owner}_name"))
    verb = source.phrase(("get", "find", "fetch", "lookup", "show"))
    name = source.phrase((f"{verb}_{owner}_{thing}", f"{verb}_{thing}", f"{owner}_{thing}"))
    description = source.phrase(
        (f"Get the {thing} of a {owner}.", f"Returns the {thing} of the {owner}.",
         f"{thing.capitalize()} of a {owner}.", "")
    )  # fmt: skip

    def ask(source: Source) -> tuple[str, dict[str, object]]:
        value = source.word()
        form = source.phrase(
            (f"What is the {thing} of {{}}?", f"Tell me the {thing} of {{}}.",
             f"Get the {thing} of the {owner} {{}}.", f"What is the {thing} of the {owner} {{}}?",
             f"Find the {thing} of {{}}.", f"Show me the {thing} of {{}}.")
        )  # fmt: skip
        return form.format(value), {parameter: value}

    return Tool(_styled(source, name), description, {parameter: STRING}, (), ask)


def _doer(source: Source) -> Tool:
    """verb_noun: do something with something."""
    verb, noun = _some_verb(source), _some_noun(source)
    parameter = source.phrase(("name", "item", "target", noun, f"{noun}_name", "value"))
    description = source.phrase(
        (f"{verb.capitalize()} a {noun}.", f"{verb.capitalize()} the {noun}.", "")
    )

    def ask(source: Source) -> tuple[str, dict[str, object]]:
        value = source.word()
        form = source.phrase(
            (f"{verb.capitalize()} the {noun} {{}}.", f"Please {verb} the {noun} {{}}.",
             f"{verb} the {noun} {{}}", f"Can you {verb} the {noun} {{}}?",
             f"I want to {verb} the {noun} {{}}.")
        )  # fmt: skip
        return form.format(value), {parameter: value}

    return Tool(_styled(source, f"{verb}_{noun}"), description, {parameter: STRING}, (), ask)


def _explicit(source: Source) -> Tool:
    """Any name and one to four typed parameters, which the question spells out."""
    name = f"{_some_verb(source)}_{_some_noun(source)}"
    kinds = {}
    for _ in range(source.rng.randint(1, 4)):
        kinds[_some_noun(source)] = source.phrase(("word", "word", "int", "name", "bool", "city"))
    description = source.phrase(("", f"{source.words(2, 5)}."))

    def ask(source: Source) -> tuple[str, dict[str, object]]:
        arguments, told = {}, []
        for parameter, kind in kinds.items():
            value, _, text = _value(source, kind)
            arguments[parameter] = value
            told.append(f"{parameter} {str(value).lower() if kind == 'bool' else text}")
        form = source.phrase(
            ("Call {} with {}.", "Use {} with {}.", "Use the tool {} with {}.", "{}: {}")
        )
        return form.format(name, source.phrase((", ", " and ")).join(told)), arguments

    parameters = {parameter: _value(source, kind)[1] for parameter, kind in kinds.items()}
    return Tool(name, description, parameters, (), ask)


def _tool(source: Source) -> Tool:
    kind = source.rng.random()
    if kind < 0.5:
        return _family_tool(source, source.rng.choice(FAMILIES))
    return source.rng.choices((_getter, _doer, _explicit), (2, 2, 1.2))[0](source)


# Words that say nothing of what a tool is for.
SMALL = {"get", "the", "a", "of", "in", "is", "find", "set", "an", "to", "show", "fetch"}


def _toolbox(source: Source) -> list[Tool]:
    """One to five tools that no question confuses: their names and descriptions share no word."""
    tools: list[Tool] = []
    seen: set[str] = set()
    for _ in range(source.rng.randint(1, 5)):
        tool = _tool(source)
        text = f"{tool.name}_{tool.description}".lower().replace(".", "").replace(" ", "_")
        words = set(text.split("_")) - SMALL  # "" too: one without a description is enough
        if not words & seen:
            tools.append(tool)
            seen |= words
    return tools


# ---- conversations -------------------------------------------------------------------------


def _result(source: Source) -> str:
    n, m = source.rng.randint(0, 40), source.rng.randint(0, 99)
    sky = source.phrase(("sunny", "cloudy", "rainy", "windy", "clear", "cold", "warm"))
    return source.phrase(
        (source.words(1, 6), source.words(1, 3), str(n), f"{sky}, {n} degrees",
         f"{n} degrees and {sky}",
         f"{n}°C, {sky}", f"{n}:{m:02}", "ok", "done", f"{sky.capitalize()}, {n}°C.",
         f'{{"temperature": {n}, "condition": "{sky}"}}',
         f'{{"{source.word().lower()}": "{source.word()}"}}',
         f'{{"result": {m}}}', f'{{"price": {n}.{m:02}, "name": "{source.name()}"}}')
    )  # fmt: skip


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _after(results: list[str]) -> list[Turn]:
    """The results, and what the model makes of them."""
    turns = [Turn("tool", result) for result in results]
    if len(results) == 1:
        return [*turns, Turn("assistant", _sentence(f"The result is {results[0]}"))]
    return [*turns, Turn("assistant", _sentence(f"The results are {' and '.join(results)}"))]


def call(source: Source) -> Case:
    """Call the right one of one to five tools with the right arguments."""
    tools = _toolbox(source)
    tool = source.rng.choice(tools)
    question, arguments = tool.ask(source)
    case = Case(
        [Turn("user", question), Turn("assistant", calls=[(tool.name, arguments)])],
        tools=[each.definition(source) for each in tools],
    )
    if source.chance(0.15):
        case.system = source.phrase(SYSTEMS)
    return case


def many_calls(source: Source) -> Case:
    """Three to eight questions in a row: the tools, which are long to read, are read once."""
    tools = _toolbox(source)
    case = Case([], tools=[each.definition(source) for each in tools])
    for _ in range(source.rng.randint(3, 8)):
        tool = source.rng.choice(tools)
        question, arguments = tool.ask(source)
        case.turns += [Turn("user", question), Turn("assistant", calls=[(tool.name, arguments)])]
    return case


def call_result(source: Source) -> Case:
    """Use what the tool returned."""
    case = call(source)
    case.turns += _after([_result(source)])
    return case


def two_calls(source: Source) -> Case:
    """Two calls at once, when two things were asked."""
    tools = _toolbox(source)
    first, second = source.rng.choice(tools), source.rng.choice(tools)
    (question, arguments), (question2, arguments2) = first.ask(source), second.ask(source)
    joined = f"{question} {question2}"
    if source.chance(0.3):
        joined = f"{question} And {question2[0].lower()}{question2[1:]}"
    if source.chance(0.6) and len(arguments) == 1:
        [(parameter, value)] = arguments.items()
        if question.count(str(value)) == 1 and " " not in str(value):
            other = _like(source, value)
            second, arguments2 = first, {parameter: other}
            link = source.phrase(("and", "and", "and in" if f" in {value}" in question else "and"))
            joined = question.replace(str(value), f"{value} {link} {other}")
    calls = [(first.name, arguments), (second.name, arguments2)]
    return Case(
        [Turn("user", joined), Turn("assistant", calls=calls)],
        tools=[each.definition(source) for each in tools],
    )


def _like(source: Source, value: object) -> object:
    if isinstance(value, int | float):
        return source.rng.randint(0, 99)
    return source.city() if str(value).istitle() else source.word()


def two_results(source: Source) -> Case:
    """The results of both calls, in their order."""
    case = two_calls(source)
    case.turns += _after([_result(source), _result(source)])
    return case


def chain(source: Source) -> Case:
    """One question after the other, each answered with a tool."""
    tools = _toolbox(source)
    case = Case([], tools=[each.definition(source) for each in tools])
    for _ in range(source.rng.randint(2, 3)):
        tool = source.rng.choice(tools)
        question, arguments = tool.ask(source)
        case.turns += [Turn("user", question), Turn("assistant", calls=[(tool.name, arguments)])]
        case.turns += _after([_result(source)])
    return case


def no_call(source: Source) -> Case:
    """Answer without a tool when none of them fits."""
    tools = [tool for tool in _toolbox(source) if "add" not in tool.name and "sum" not in tool.name]
    skill = source.rng.choices(
        (echo, introduction, small_talk, unknown, recall, addition), (3, 1, 2, 1, 1, 1)
    )[0]
    case = skill(source)
    case.tools = [tool.definition(source) for tool in tools]
    return case


SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "Use the tools.",
    "You are an assistant that can call tools.", "Be brief.", "Be helpful and concise.",
    "Use the given tools to answer the questions of the user.",
)  # fmt: skip
