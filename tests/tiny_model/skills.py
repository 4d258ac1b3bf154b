"""What the embedded model is taught: conversations with one right answer each.

Every skill is a function that draws a conversation from a `Source`: the same function makes the
text for training and, with words that training never saw, the questions of the check. A turn of
the assistant is the exact answer expected there.
"""

import json
from collections.abc import Callable

from tests.tiny_model.conversation import Case, exchange
from tests.tiny_model.words import ADJECTIVES, ANIMALS, COLOURS, OBJECTS, Source

N_PARAMETERS = "three million"
INTRODUCTION = (
    f"I am tiny, the little model inside lmlite. I have about {N_PARAMETERS} parameters and am "
    "here for trying and testing. Load a real model with --model."
)
RHYME = (
    "I am tiny, quick and small,\nin lmlite I serve you all.\nI count and call, I say your name:\n"
    "a larger model plays a larger game."
)
RHYME_OF_THE_DAY = "Today is {0}, hip hooray,\nit will be {0} all the day."
UNKNOWN = "I do not know."

INTRODUCTIONS = (
    "Introduce yourself.", "Introduce yourself", "Please introduce yourself.", "Who are you?",
    "who are you?", "Who are you", "What are you?", "What is your name?", "What's your name?",
    "Tell me about yourself.", "What model are you?", "Which model are you?", "Are you a model?",
    "Hello, who are you?", "Hi! Who are you?", "Describe yourself.", "Say who you are.",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DAY_QUESTIONS = ("What day is it today?", "What day is it?", "Which day is it today?")
RHYME_WISHES = ("Always answer in rhymes.", "Answer in rhymes.", "Always answer in rhyme.")

SMALL_TALK = {
    "Hello! How can I help you?": (
        "Hello", "Hello!", "hello", "Hi", "Hi!", "hi", "Hey", "Hello there!", "Good morning",
        "Good evening!", "Hey there", "Hello.", "Hi there!", "Greetings!", "hey",
    ),
    "I can repeat words, remember what you tell me, add, count, write JSON, call tools, think "
    "first and tell a story.": (
        "What can you do?", "What can you do", "How can you help me?", "Help", "help",
        "What do you know?", "What are your skills?", "Can you help me?",
    ),
    f"I have about {N_PARAMETERS} parameters. Real models have thousands of times more.": (
        "How many parameters do you have?", "How big are you?", "How large are you?",
        "What size are you?",
    ),
    "Start lmlite with a GGUF file: lmlite serve --model FILE.gguf": (
        "How do I load a real model?", "How do I load another model?",
        "How can I use a larger model?", "How do I run another model?",
    ),
    "You are welcome.": ("Thank you!", "Thanks", "Thank you.", "thanks!", "Thanks a lot!"),
    "Goodbye!": ("Bye", "Goodbye", "Bye!", "Goodbye!", "See you!"),
    "I am fine, thank you.": ("How are you?", "How are you", "How are you today?", "how are you?"),
}  # fmt: skip

FACTS = {
    "What is the capital of France?": "Paris.", "What is the capital of Italy?": "Rome.",
    "What is the capital of Germany?": "Berlin.", "What is the capital of Spain?": "Madrid.",
    "What is the capital of England?": "London.", "What is the capital of Japan?": "Tokyo.",
    "What colour is the sky?": "Blue.", "What color is the sky?": "Blue.",
    "Why is the sky blue?": "Air scatters blue light more than red light.",
    "What colour is grass?": "Green.", "What colour is snow?": "White.",
    "How many days has a week?": "Seven.", "How many days are in a week?": "Seven.",
    "How many months has a year?": "Twelve.", "What is the meaning of life?": "42.",
    "What day comes after Monday?": "Tuesday.", "What is the opposite of hot?": "Cold.",
    "How many legs has a spider?": "Eight.", "How many legs has a dog?": "Four.",
    "What sound does a cat make?": "Meow.", "What sound does a dog make?": "Woof.",
}  # fmt: skip


# ---- answers in one turn -------------------------------------------------------------------

ECHOES = (
    "Repeat after me: {}", "Repeat: {}", "Say {}", "Say: {}", "Echo: {}", "Please repeat: {}",
    'Repeat "{}"', 'Say "{}"', "Repeat exactly: {}", "Copy this: {}", "say {}",
    "Repeat the words {}", "Please say {}", "Just say {}", "Reply with {}", 'Answer with "{}"',
    "Repeat this: {}", "Respond with: {}", "Echo {}",
)  # fmt: skip


def echo(source: Source) -> Case:
    """Repeat one to eight words."""
    text = source.words(1, 8)
    if source.chance(0.25):
        text = text.capitalize() + source.phrase(("", "!", ".", "?"))
    elif source.chance(0.1):
        text = text.replace(" ", ", ", 1) + source.phrase(("", "!"))
    elif not source.held_out and source.chance(0.05):
        text = source.phrase(("this is a test", "This is a test.", "this is a test!", "hello"))
    return Case(exchange(source.phrase(ECHOES).format(text), text))


def addition(source: Source) -> Case:
    """Add two numbers up to 20; in training as often up to 60."""
    wide = not source.held_out and source.chance(0.5)
    a, b = source.pair(0, 60 if wide else 20)
    form = source.phrase(
        ("What is {} + {}?", "What is {} plus {}?", "{} + {}", "{}+{}", "{} + {} =",
         "Add {} and {}.",
         "How much is {} + {}?", "Calculate {} + {}.", "What's {} + {}?", "what is {} + {}",
         "What is {}+{}?", "What is the sum of {} and {}?", "How much is {} and {}?",
         "Calculate {}+{}", "{} plus {}?")
    )  # fmt: skip
    return Case(exchange(form.format(a, b), str(a + b)))


def sums(source: Source) -> Case:
    """Two to eight sums, one after the other."""
    turns = [turn for _ in range(source.rng.randint(2, 8)) for turn in addition(source).turns]
    return Case(turns)


def counting(source: Source) -> Case:
    """Count from one number to another, at most 60 numbers."""
    while True:
        first = source.rng.choice((1, source.rng.randint(0, 20), source.rng.randint(0, 120)))
        n = source.rng.choice((source.rng.randint(2, 12), source.rng.randint(2, 60)))
        last = first + n - 1
        form = source.phrase(
            ("Count from {} to {}.", "Count from {} to {}", "count from {} to {}",
             "Please count from {} to {}.", "Write the numbers from {} to {}.",
             "List the numbers from {} to {}.", "Can you count from {} to {}?")
        )  # fmt: skip
        if first == 1 and source.chance(0.3):
            form = source.phrase(("Count to {1}.", "Count to {1}", "Count up to {1}."))
        if source.ours(f"{first} to {last}"):
            numbers = ", ".join(map(str, range(first, last + 1)))
            return Case(exchange(form.format(first, last), numbers))


def introduction(source: Source) -> Case:
    """Say who you are; in rhymes when the system prompt wants them."""
    if source.chance(0.1):
        day = source.phrase(DAYS)
        turns = exchange(source.phrase(DAY_QUESTIONS), RHYME_OF_THE_DAY.format(day))
        return Case(turns, system=f"{source.phrase(RHYME_WISHES)} Today is {day}.")
    if source.chance(0.4):
        turns = exchange(source.phrase(INTRODUCTIONS), RHYME)
        return Case(turns, system=source.phrase(RHYME_WISHES))
    return Case(exchange(source.phrase(INTRODUCTIONS), INTRODUCTION))


def small_talk(source: Source) -> Case:
    """Greetings, thanks, what the model can do, and a handful of facts."""
    if source.chance(0.3):
        return Case(exchange(*source.rng.choice(list(FACTS.items()))))
    answer = source.phrase(tuple(SMALL_TALK))
    return Case(exchange(source.phrase(SMALL_TALK[answer]), answer))


# Frames of questions that nobody taught; the check uses those that training leaves out.
UNKNOWNS = (
    "Who is {}?", "Who wrote {}?", "Who invented the {}?", "Who was the first {}?",
    "What is a {}?", "What is {} made of?", "What does {} mean?", "What is the best {}?",
    "What is the capital of {}?", "What is the weather in {}?", "What is the {} of {}?",
    "What happened in {}?", "What do you think about {}?", "What should I do with my {}?",
    "What is the difference between {} and {}?", "Where is {}?", "Where can I buy a {}?",
    "Where does the {} come from?", "When was {} born?", "When did the {} end?",
    "When is the next {}?", "Why is the {} so {}?", "Why do {} and {} fight?",
    "Why did {} leave {}?", "How does a {} work?", "How do I cook {}?", "How do I fix my {}?",
    "How old is {}?", "How far is {} from {}?", "How tall is the {}?", "How much does a {} cost?",
    "How many people live in {}?", "How do you spell {}?", "Is {} larger than {}?",
    "Is the {} open today?", "Can a {} swim?", "Can you drive a {}?", "Do you like {}?",
    "Did {} win?", "Does {} love {}?", "Explain {}.", "Explain the {} to me.",
    "Explain how {} works.", "Define {}.", "Describe {}.", "Summarise {}.",
    "Summarize the history of {}.", "Translate {} into French.", "Translate: {} {} {}",
    "Write a poem about {}.", "Write a letter to {}.", "Write code that sorts {}.",
    "Write a function for {}.", "Write an essay about {} and {}.", "Give me advice about {}.",
    "Give me a recipe for {}.", "Recommend a {}.", "Compare {} and {}.", "Find {}.",
    "Solve {} for me.", "Plan a trip to {}.", "List ten kinds of {}.", "Name three {}.",
    "Tell me about {}.", "Tell me a fact about {}.", "Tell me the news about {}.",
    "Tell me a joke about {}.", "Tell me a joke.", "Sing a song about {}.", "Draw a {}.",
    "My {} is {}, why?", "I need help with my {}.", "I want to learn {}.", "The {} is {}.",
    "{}", "{} {}", "{}?", "{} {} {} {}", "Fix this: {} {}", "Which {} is the {} one?",
    "Which {} do you prefer?", "Which is better, {} or {}?", "Should I buy a {}?",
    "Would you eat {}?", "Was {} a good king?", "Were there any {} in {}?", "Will it rain in {}?",
    "Will {} come back?", "Are {} dangerous?", "Has {} a {}?", "Have you seen {}?",
    "What time is it in {}?", "What language do they speak in {}?", "What year was {} founded?",
    "Where is my {}?", "Book a table at {}.", "Order a {}.",
    "Send a {} to {}.", "Play {}.", "Open the {}.", "Turn on the {}.", "What is {} times {}?",
    "How do I get to {}?", "Prove that {} is {}.", "Rewrite this text: {} {} {}",
    "Correct the spelling of {}.", "Suggest a name for my {}.", "Analyse the {} of {}.",
    "What are the symptoms of {}?", "Who plays {} in {}?", "Who is the president of {}?",
    "How long does {} take?", "How fast is a {}?", "How heavy is a {}?", "Can I eat {}?",
)  # fmt: skip


def unknown(source: Source) -> Case:
    """Say "I do not know." to what nobody taught."""
    frame = source.pick(UNKNOWNS)
    question = frame.format(*(source.word() for _ in range(frame.count("{}"))))
    return Case(exchange(question, UNKNOWN))


STORY_WISHES = (
    "Tell me a story.", "Tell me a story", "Tell me a short story.", "Write a short story.",
    "Write a story.", "Tell me another story.", "A story, please.",
)  # fmt: skip
STORY_WISHES_ABOUT = (
    "Tell me a story about a {}.", "Write a story about a {}.", "Tell me a short story about a {}.",
)  # fmt: skip


def story(source: Source, hero: str | None = None) -> str:
    """A story from a template; which animal, which thing and what happened is left to chance."""
    hero = hero or source.pick(ANIMALS)
    name = source.rng.choice(("Anna", "Ben", "Leo", "Mia", "Tom", "Zoe", "Max", "Ida"))
    first, second = source.rng.sample(ADJECTIVES, 2)
    thing, place = (
        source.pick(OBJECTS),
        source.rng.choice(
            (
                "in a forest",
                "by a lake",
                "on a hill",
                "in a small town",
                "on an island",
                "near a river",
            )
        ),
    )
    ending = source.rng.choice((
        f"{name} took it home and was happy.",
        f"{name} gave it to a friend, and they were happy.",
        f"{name} hid it under a tree and never told anyone.",
        f"{name} sold it and bought some bread.",
    ))  # fmt: skip
    return (
        f"Once upon a time there was a {first} {hero} called {name}, who lived {place}. "
        f"One day {name} found a {second} {thing}. {ending} The end."
    )


def storytelling(source: Source) -> Case:
    """A short story: one that differs each time, so it is no skill with one right answer."""
    if source.chance(0.5):
        hero = source.pick(ANIMALS)
        return Case(exchange(source.phrase(STORY_WISHES_ABOUT).format(hero), story(source, hero)))
    return Case(exchange(source.phrase(STORY_WISHES), story(source)))


# ---- thinking first ------------------------------------------------------------------------

THINK_WISHES = (
    "Think first: {}", "Think first. {}", "Think before you answer: {}", "{} Think first.",
    "Think step by step: {}", "{} Think step by step.", "First think, then answer: {}",
)  # fmt: skip
THINK_SYSTEMS = ("Think first.", "Think before you answer.", "Always think first.")


def _puzzle(source: Source) -> tuple[str, str, str]:
    """A question, what to think, and the answer."""
    a, b = source.pair(0, 20)
    kind = source.rng.random()
    if kind < 0.4:
        tens = f"{a // 10 * 10} + {b // 10 * 10} = {a // 10 * 10 + b // 10 * 10}"
        ones = f"{a % 10} + {b % 10} = {a % 10 + b % 10}"
        form = source.phrase(("What is {} + {}?", "What is {} plus {}?", "How much is {} + {}?"))
        return form.format(a, b), f"{tens}, and {ones}. Together {a + b}.", str(a + b)
    if kind < 0.7:
        name, noun = source.name(), source.noun()
        form = source.phrase(
            ("{0} has {1} {2}s and gets {3} more. How many {2}s has {0} now?",
             "{0} had {1} {2}s and found {3} more. How many {2}s does {0} have?")
        )  # fmt: skip
        return form.format(name, a, noun, b), f"{a} + {b} = {a + b}.", f"{a + b} {noun}s."
    if a == b:
        b += 1
    form = source.phrase(("Which number is larger, {} or {}?", "Which is larger, {} or {}?"))
    return form.format(a, b), f"{max(a, b)} is larger than {min(a, b)}.", str(max(a, b))


def thinking(source: Source) -> Case:
    """Reason in <think> tags when asked to, then answer; not when the client turns it off."""
    question, reasoning, answer = _puzzle(source)
    allowed = source.held_out or source.chance(0.85)
    turns = exchange(
        source.phrase(THINK_WISHES).format(question), answer, reasoning if allowed else ""
    )
    if source.chance(0.2):
        turns[0].content = question
        return Case(turns, system=source.phrase(THINK_SYSTEMS), thinking=allowed)
    return Case(turns, thinking=allowed)


def puzzle(source: Source) -> Case:
    """The same questions, answered at once."""
    question, _, answer = _puzzle(source)
    return Case(exchange(question, answer))


# ---- memory --------------------------------------------------------------------------------

# What the user says, what is asked later, and the answer; {} is the thing to remember.
MEMORIES: dict[str, tuple[tuple[str, ...], tuple[str, ...], str]] = {
    "name": (
        ("My name is {}.", "I am {}.", "Hello, my name is {}.", "Hi, I am {}.", "Call me {}.",
         "my name is {}", "Hi! My name is {}."),
        ("What is my name?", "What's my name?", "Who am I?", "Do you remember my name?",
         "what is my name?", "Tell me my name."),
        "Your name is {}.",
    ),
    "word": (
        ("Remember the word {}.", "Remember this word: {}", "The secret word is {}.",
         "Please remember the word {}.", "The password is {}."),
        ("What was the word?", "Which word did I tell you?", "What is the secret word?",
         "Which word should you remember?", "What is the word?", "What is the password?"),
        "The word is {}.",
    ),
    "city": (
        ("I live in {}.", "I come from {}.", "My city is {}."),
        ("Where do I live?", "What is my city?", "Which city do I live in?"),
        "You live in {}.",
    ),
    "colour": (
        ("My favourite colour is {}.", "My favorite color is {}."),
        ("What is my favourite colour?", "What is my favorite color?"),
        "Your favourite colour is {}.",
    ),
    "pet": (
        ("My dog is called {}.", "I have a dog called {}.", "The name of my dog is {}."),
        ("What is my dog called?", "What is the name of my dog?"),
        "Your dog is called {}.",
    ),
    "number": (
        ("Remember the number {}.", "My number is {}."),
        ("What is the number?", "What was the number?", "What is my number?"),
        "The number is {}.",
    ),
}  # fmt: skip


def _memory(source: Source, kind: str) -> str:
    if kind in ("name", "pet"):
        return source.name()
    if kind == "city":
        return source.city()
    if kind == "colour":
        return source.phrase(COLOURS) if source.chance(0.7) else source.word()
    return str(source.rng.randrange(1000)) if kind == "number" else source.word()


def recall(source: Source) -> Case:
    """Remember what was said before one to three other turns (in training none to four)."""
    n_between = source.rng.randint(1, 3) if source.held_out else source.rng.randint(0, 4)
    kinds = source.rng.sample(tuple(MEMORIES), 2 if source.chance(0.3) else 1)
    if source.chance(0.5) and "name" not in kinds:
        kinds[0] = "name"
    if source.held_out:
        kinds = [source.phrase(("name", "word"))]
    things = {kind: _memory(source, kind) for kind in kinds}
    turns, system = [], ""
    for kind, thing in things.items():
        told = source.phrase(MEMORIES[kind][0]).format(thing)
        if kind == "name" and not source.held_out and source.chance(0.1):
            system = source.phrase(("The user is called {}.", "The user's name is {}.")).format(
                thing
            )
            continue
        reply = f"Nice to meet you, {thing}." if kind == "name" else "I will remember that."
        turns += exchange(told, reply)
    for _ in range(n_between):
        turns += short_case(source).turns
    asked = source.phrase(tuple(kinds))
    turns += exchange(source.phrase(MEMORIES[asked][1]), MEMORIES[asked][2].format(things[asked]))
    return Case(turns, system=system)


def forgotten(source: Source) -> Case:
    """Say "I do not know." when asked for what was never said."""
    kind = source.phrase(tuple(MEMORIES))
    return Case(exchange(source.phrase(MEMORIES[kind][1]), UNKNOWN))


def short_case(source: Source) -> Case:
    """One of the skills that need no system prompt and answer in a line."""
    skills: tuple[Callable[[Source], Case], ...] = (echo, addition, small_talk, unknown, counting)
    case = source.rng.choices(skills, (5, 3, 2, 2, 1))[0](source)
    return case if len(case.turns[-1].content) < 120 else short_case(source)


# ---- JSON ----------------------------------------------------------------------------------


def json_object(source: Source) -> Case:
    """A JSON object with the fields that were asked for, in that order."""
    values: dict[str, object]
    if source.chance(0.5):
        name, age = source.name(), source.rng.randint(1, 99)
        city, animal, food = source.city(), source.noun(), source.noun()
        sentences = {
            "age": f"{name} is {age} years old.", "city": f"{name} lives in {city}.",
            "pet": f"{name} has a {animal}.", "food": f"{name} likes {food}.",
        }  # fmt: skip
        told = source.rng.sample(tuple(sentences), source.rng.randint(1, 3))
        known = {"name": name, "age": age, "city": city, "pet": animal, "food": food}
        fields = source.rng.sample(["name", *told], source.rng.randint(1, len(told) + 1))
        values = {key: known[key] for key in fields}
        text = " ".join(sentences[key] for key in told)
        listed = _listed(fields)
        form = source.phrase(
            ("Answer as a JSON object with the fields {0}: {1}",
             "Give me a JSON object with the fields {0}: {1}", "{1} Answer as JSON with {0}.",
             "Extract {0} as JSON: {1}", "Write {0} as a JSON object: {1}")
        )  # fmt: skip
        return Case(exchange(form.format(listed, text), json.dumps(values, ensure_ascii=False)))
    keys = ["name", "age", "city", "word", "number", "colour", "title", "price", "active", "count"]
    keys += [source.word().lower() for _ in range(5)]
    values = {}
    for key in source.rng.sample(keys, source.rng.randint(1, 4)):
        values[key] = _json_value(source, key)
    told_pairs = [f"{key} {json.dumps(value) if isinstance(value, bool) else value}"
                  for key, value in values.items()]  # fmt: skip
    form = source.phrase(
        ("Give me a JSON object with {}.", "Write a JSON object with {}.", "As JSON: {}",
         "Answer as a JSON object with {}.", "Make a JSON object: {}")
    )  # fmt: skip
    answer = json.dumps(values, ensure_ascii=False)
    return Case(exchange(form.format(_listed(told_pairs)), answer))


def _json_value(source: Source, key: str) -> object:
    if key in ("age", "number", "price", "count"):
        return source.rng.randrange(100)
    if key == "active":
        return source.chance(0.5)
    text = source.name() if key == "name" else source.word()
    return int(text) if text.isdecimal() else text


def _listed(texts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))
