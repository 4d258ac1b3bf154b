"""The words of the training text, and which of them training never sees.

A word is held out by its spelling alone (`is_held_out`), so training and checking agree about it
without a list: whatever the check uses, no training text contained. Half of the words are made up
from syllables. There is no end to those, so a model cannot learn them by heart: to repeat one, it
has to learn to copy.
"""

import hashlib
import random

NAMES = """Anna Ben Clara David Emma Felix Greta Henry Ida Jonas Karen Leo Maria Nina Oscar
Paula Quentin Rosa Simon Tina Ulrich Vera Walter Xenia Yusuf Zoe Alice Bob Carol Dan Eve Frank
Grace Hugo Iris Jack Kate Liam Mia Noah Olivia Peter Ruth Sam Tom Uma Victor Wendy Amir Bella
Carlos Diego Elena Fatima George Hana Ivan Julia Kenji Lucas Mehmet Nadia Omar Priya Raj Sofia
Thomas Lena Max Laura Paul Sarah John Mary Michael Linda James Susan Robert Chloe Ethan Ella
Adam Lily Mateo Aisha Chen Wei Yuki Ingrid Lars Astrid Pablo Marco Giulia Pierre Camille Tomas
Eva""".split()

CITIES = """Paris Rome London Berlin Madrid Vienna Prague Lisbon Dublin Oslo Athens Warsaw Tokyo
Delhi Cairo Lima Boston Chicago Denver Seattle Dallas Miami Toronto Sydney Moscow Istanbul
Mumbai Beijing Shanghai Seoul Bangkok Nairobi Lagos Munich Hamburg Zurich Geneva Milan Naples
Venice Porto Lyon Nice Oxford Bristol Leeds Glasgow Bergen Helsinki Stockholm Copenhagen
Amsterdam Brussels Ghent Kyoto Osaka Hanoi Manila Jakarta Perth Auckland Havana Bogota Santiago
Austin Houston Phoenix Atlanta Orlando Portland Detroit Montreal Vancouver Krakow Budapest Sofia
Riga Tallinn Vilnius""".split()

ANIMALS = """cat dog bird fish horse cow sheep goat mouse rabbit fox wolf bear lion tiger frog
duck hen owl bee ant snail turtle whale seal crab pig deer monkey camel zebra eagle swan
hedgehog otter badger squirrel donkey parrot lizard""".split()

FOODS = """apple bread cheese rice soup cake pasta pizza tea coffee milk honey butter egg salad
tomato potato onion carrot lemon orange banana cherry grape melon nut bean corn pepper salt
sugar yogurt biscuit plum peach pear mango garlic""".split()

OBJECTS = """table chair lamp book pen paper cup plate spoon knife bottle box bag key door
window mirror clock phone radio camera candle blanket pillow carpet hammer nail rope ladder
wheel bell drum flute guitar piano ball kite boat train car bicycle bridge tower castle garden
river mountain lake island forest desert stone sand star moon sun cloud rain snow wind storm
fire flower tree leaf grass root seed coat hat shoe glove ring coin map letter ticket stamp
basket bucket brush needle thread button lantern engine robot computer screen planet
rocket""".split()

COLOURS = "red blue green yellow white black orange purple pink brown grey silver".split()

ADJECTIVES = """small big old young new happy sad brave quiet loud kind clever lazy busy tired
hungry warm cold dark bright soft hard heavy light fast slow tall short round flat deep thin
strong weak gentle wild calm proud shy funny""".split()

VERBS = """open close find read write send play start stop delete move copy rename paint clean
build repair sell buy rent book order cancel check count lock unlock print scan share sort
update upload wash water feed pack track visit call draw charge load ship store test""".split()

THINGS = """price colour weight height length age size speed status score level name owner
address author title number date limit balance schedule menu rating capital population
temperature forecast distance history version summary email phone route stock order task file
report event user account room song movie device sensor package invoice message note alarm photo
playlist recipe""".split()

COMMON = """hello world yes no please thanks good morning evening night day week month year
house home room street school work job money water food friend mother father brother sister
child boy girl man woman people king queen doctor teacher game music song picture story question
answer number letter line page word name thing place way time hour minute summer winter spring
autumn north south east west left right up down one two three four five six seven eight nine ten
first second last next this that these those here there now then today tomorrow always never
very much many more most some any all every other same different long short high low full empty
easy free ready sure true false is are was were have has had do does did can could will would
must make take give get go come see know think want like love need help eat drink sleep run walk
swim fly sing dance talk speak hear smile laugh a an the but not of to in on at by for with from
about over under""".split()

FOREIGN = """café naïve Zürich señor São Malmö Łódź über façade crème Москва привет 東京 日本 你好
한국 ñandú élan 🙂 🚀 ☀ 21°C €5 œuvre Ångström""".split()

_ONSETS = """b c d f g h j k l m n p r s t v w z bl br ch cl cr dr fl fr gl gr pl pr sh sk sl sm
sn sp st th tr""".split()
_VOWELS = "a e i o u a e i o u ai ea ee ia oo ou".split()
_CODAS = (
    "b d g k l m n p r s t x ck ft ld ll lt mp nd ng nk nt rd rk rm rn rt sh sk ss st th".split()
)


ALL_WORDS = [*NAMES, *CITIES, *ANIMALS, *FOODS, *OBJECTS, *ADJECTIVES, *VERBS, *THINGS, *COMMON]


def is_held_out(text: str) -> bool:
    """Whether training never sees this text: one in eight, by its spelling, whatever its case."""
    # The number is a salt with which no colour, and enough of each list, is held out.
    return hashlib.blake2b(f"153 {text.lower()}".encode(), digest_size=1).digest()[0] % 8 == 0


class Source:
    """Draws words and numbers from one side of that line: for training, or for checking."""

    def __init__(self, seed: int | str, *, held_out: bool, compounds: float = 0.0) -> None:
        """`compounds` is the share of words that are two of the lists in one."""
        self.rng = random.Random(seed)
        self.held_out = held_out
        self.compounds = compounds

    def pick(self, texts: list[str] | tuple[str, ...]) -> str:
        """One of the texts on our side of the line."""
        while True:
            text = self.rng.choice(texts)
            if self.ours(text):
                return text

    def ours(self, text: str) -> bool:
        """Whether the text lies on our side of the line."""
        return is_held_out(text) == self.held_out

    def phrase(self, texts: list[str] | tuple[str, ...]) -> str:
        """One of the texts, wherever it lies: the wording of a question is no secret."""
        return self.rng.choice(texts)

    def chance(self, probability: float) -> bool:
        """True so often."""
        return self.rng.random() < probability

    def name(self) -> str:
        """A first name, now and then made up."""
        return self.invented().capitalize() if self.chance(0.25) else self.pick(NAMES)

    def city(self) -> str:
        """A city, now and then made up."""
        return self.invented().capitalize() if self.chance(0.25) else self.pick(CITIES)

    def noun(self) -> str:
        """A thing, an animal, or something to eat."""
        if self.compounds and self.chance(self.compounds):
            return self.compound()
        return self.pick(self.rng.choice((ANIMALS, FOODS, OBJECTS)))

    def known_word(self) -> str:
        """A word of the lists above."""
        lists = (NAMES, CITIES, ANIMALS, FOODS, OBJECTS, ADJECTIVES, VERBS, THINGS, COMMON, COMMON)
        return self.pick(self.rng.choice(lists))

    def compound(self) -> str:
        """Two words in one, whichever side of the line each is on: "moonorder".

        A word that is held out may be a token of its own, which training would never meet.
        """
        while True:
            word = self.rng.choice(ALL_WORDS).lower() + self.rng.choice(ALL_WORDS).lower()
            word = word.capitalize() if self.chance(0.2) else word
            if self.ours(word):
                return word

    def invented(self) -> str:
        """A word that never was, of one to three syllables."""
        while True:
            word = ""
            for _ in range(self.rng.choice((1, 2, 2, 2, 3))):
                word += self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS)
                word += self.rng.choice(_CODAS) if self.chance(0.45) else ""
            if len(word) > 2 and self.ours(word):
                return word

    def word(self) -> str:
        """Any word: known, invented, in capitals, of random letters, or from another alphabet."""
        if self.compounds and self.chance(self.compounds):
            return self.compound()
        kind = self.rng.random()
        if kind < 0.45:
            return self.known_word()
        if kind < 0.85:
            return self.invented().capitalize() if self.chance(0.2) else self.invented()
        if kind < 0.89:
            return self.invented().upper()[:5]
        if kind < 0.92:
            return str(self.rng.randrange(1000))
        if kind < 0.97:
            return "".join(self.rng.choices("abcdefghijklmnopqrstuvwxyz", k=self.rng.randint(2, 6)))
        return self.rng.choice(FOREIGN)

    def words(self, low: int, high: int) -> str:
        """So many words, with a space between them."""
        return " ".join(self.word() for _ in range(self.rng.randint(low, high)))

    def pair(self, low: int, high: int) -> tuple[int, int]:
        """Two numbers; whether they are held out does not depend on their order."""
        while True:
            a, b = self.rng.randint(low, high), self.rng.randint(low, high)
            if self.ours(f"{min(a, b)} and {max(a, b)}"):
                return a, b
