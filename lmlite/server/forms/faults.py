"""What of a JSON schema cannot be held: an end of the reading, or a note of what is left out."""

from typing import NoReturn

MAX_NOTED = 20  # of one schema


class Unheld(Exception):
    """A part of a schema that no grammar holds: its path from the schema's root, and why."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} {why}")
        self.path, self.why = path, why


class Faults:
    """How a reader goes on when it meets a part that cannot be held."""

    def __init__(self, is_strict: bool) -> None:
        """Strict: the first such part ends the reading. Else it is noted and left out."""
        self.is_strict = is_strict
        self.noted: list[Unheld] = []

    def refuse(self, path: str, why: str) -> NoReturn:
        """Ends the reading of the value that this part belongs to."""
        raise Unheld(path, why)

    def drop(self, path: str, why: str) -> None:
        """Lets the value go on without this part. Raises Unheld where all has to be held."""
        if self.is_strict:
            self.refuse(path, why)
        self.note_path(path, why)

    def note_path(self, path: str, why: str) -> None:
        """Remembers a part that is left out."""
        self.note(Unheld(path, why))

    def note(self, unheld: Unheld) -> None:
        """Remembers it, once for each path."""
        is_new = all(unheld.path != other.path for other in self.noted)
        if is_new and len(self.noted) < MAX_NOTED:
            self.noted.append(unheld)
