"""What steps cost: how many there were, how long they took, and how fast prompts are read.

Belongs to the engine thread. Times are seconds.
"""

from lmlite.messages import STEP_BOUNDS_S

MIN_MEASURED = 32  # tokens of a step that tells how fast prompts are read: fewer cost no less


class Meter:
    """Counts of all steps, and a moving average of the speed of the latest."""

    def __init__(self) -> None:
        self.n_steps = 0
        self.step_s = 0.0  # of all steps
        self.steps_within = [0] * len(STEP_BOUNDS_S)
        self.prompt_rate = 0.0  # tokens per second; 0 until the first prompt

    def note(self, n_tokens: int, elapsed_s: float) -> None:
        """Counts a step of so many tokens."""
        self.step_s += elapsed_s
        for i, bound_s in enumerate(STEP_BOUNDS_S):
            self.steps_within[i] += elapsed_s <= bound_s
        if n_tokens >= MIN_MEASURED:
            rate = n_tokens / max(elapsed_s, 1e-6)
            self.prompt_rate = (self.prompt_rate + rate) / 2 if self.prompt_rate else rate
