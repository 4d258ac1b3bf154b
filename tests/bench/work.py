"""What a scenario is given: how much to do, with which prompts, and where it counts it."""

import random
from dataclasses import dataclass, field, replace

from tests.bench import model
from tests.bench.client import Asked, Completion, Connection, Crowd, ask, at_once
from tests.bench.peers import Server, Setup

BIG = Setup(model.MODEL_PATH)  # for many clients
FEW = replace(BIG, n_parallel=4)  # for four at most, as lmlite serves if nothing is said
Values = dict[str, float]  # of each figure, by its key

# Each is one token of Qwen2's with the space before it, so that prompts have a known length.
WORDS = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government
number night point home water room mother area money story fact month lot right study book eye
job word business issue side kind head house service friend father power hour game line end
member law car city community name president team minute idea body information back parent face
others level office door health person art war history party result change morning reason
research girl guy moment air teacher force education
""".split()


@dataclass
class Work:
    """How much is done in a round, and with which prompts. Both sides get an equal one."""

    seed: str
    quick: bool = False
    n_prompt: int = 0  # tokens of all that was asked and answered, to compare the sides
    n_completion: int = 0
    _source: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._source = random.Random(self.seed)

    def n(self, whole: int, quick: int) -> int:
        """How many: of a whole run, or of a quick one."""
        return quick if self.quick else whole

    def prompt(self, n_words: int) -> str:
        """So many random words, and as many tokens of the large model."""
        return "".join(" " + self._source.choice(WORDS) for _ in range(n_words))

    def colour(self) -> tuple[int, int, int]:
        """A random one, for a picture that nobody has seen before."""
        red, green, blue = self._source.randbytes(3)
        return red, green, blue

    def count(self, *answers: Completion) -> None:
        """Notes what was really read and generated."""
        self.n_prompt += sum(answer.n_prompt for answer in answers)
        self.n_completion += sum(answer.n_completion for answer in answers)


def warm_up(server: Server) -> None:
    """The first request of a process pays for pages that are not in memory yet."""
    with Connection(server.url) as connection:
        connection.stream(ask(server.model, " warm up", 4))


def crowd(server: Server, work: Work, n_clients: int, requests: list[Asked]) -> Crowd:
    """Sends them all and counts them."""
    result = at_once(server.url, requests, n_clients)
    work.count(*result.answers)
    return result
