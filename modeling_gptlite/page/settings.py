"""What a visitor can set, on both pages: the table of settings, and the prompts to start from."""

from dataclasses import dataclass

from ..decoding import SAMPLING


@dataclass(frozen=True)
class Setting:
    """A slider. `info` may contain `{units}`: characters or tokens."""

    label: str
    low: float
    high: float
    step: float
    value: float
    info: str


SETTINGS = {
    "temperature": Setting(
        "Temperature", 0.1, 2, 0.05, SAMPLING["temperature"], "Lower: safer. Higher: more surprising."
    ),
    "top_k": Setting("Top-k", 0, 100, 1, SAMPLING["top_k"], "Sample from the k likeliest {units}; 0: from all."),
    "top_p": Setting("Top-p", 0.05, 1, 0.05, 1, "Sample from the likeliest {units} that add up to p."),
    "length": Setting("Length", 10, 1000, 10, 300, "Number of {units} to write."),
}
PROMPT_INFO = "Shift + Enter starts writing."
SEED_INFO = "The same seed gives the same text."
KEEP_SEED_INFO = "Otherwise Write takes a new one."
SEEDS = 1_000_000
FIRST_SEED = 1
# Offered after the prompt of the run's samples, as far as the vocabulary allows.
PROMPTS = ("ROMEO:", "JULIET:\n", "To be, or not to be", "Once upon a time", "The ", "\n")
MOST_PROMPTS = 4
