"""What every client asks, in its own words: tools, a form, and questions with one right answer.

The embedded model is small: these are questions of the kinds that it was taught.
"""

import base64
from typing import Any

from pydantic import BaseModel

from tests.support.image_files import RED, png

INTRODUCE = "Introduce yourself."
OSLO, TWO_CITIES = "What is the weather in Oslo?", "What is the weather in Oslo and in Rome?"
RESULT, TOLD = "rain, 4 degrees", "The result is rain, 4 degrees."
ANNA = "Anna is 12 years old. Answer as JSON with name and age."
COLOUR, RED_WORD = "What color is this image?", "Red."
RED_IMAGE = f"data:image/png;base64,{base64.b64encode(png(64, 48, RED)).decode()}"
THINK, SUM = "Think first: What is 12 + 9?", "21"

CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}},
                        "required": ["city"]}  # fmt: skip
WEATHER: dict[str, Any] = {"name": "get_weather", "description": "Get the weather in a city.",
                           "parameters": CITY}  # fmt: skip


class Person(BaseModel):
    """A form as simple as the model can fill it in."""

    name: str
    age: int


class Pet(BaseModel):
    """A part of Owner."""

    name: str
    lives: int | None


class Owner(BaseModel):
    """A form with forms in it: a list, a choice, and one that may be left out."""

    person: Person
    pets: list[Pet]
