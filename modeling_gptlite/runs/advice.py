"""What would make the next run better, from the losses of this one.

print(advise(trainer.state.log_history))
"""

import shlex
from collections.abc import Sequence
from typing import Any


SHORT = 700_000  # tokens of a text that is too short to learn a language from
SMALL = 0.01  # nats per token: less than this is neither a rise nor a fall
WIDE = 0.15  # nats per token between training and validation loss
LATE = 0.75  # of the steps; what follows is the end of a run


def advise(
    log_history: list[dict[str, Any]], is_limited_by_text: bool = False, has_teachers: bool = False
) -> str | None:
    """One sentence on what would help, by the first criterion that holds; None after fewer than three evaluations.

    Args:
        is_limited_by_text: The run ended before its minutes, because more passes over the text would not help.

    1. The last validation loss is more than `SMALL` above the lowest: overfitting.
    2. It fell by more than `SMALL` in the last quarter of the steps: too few steps, unless the text was the limit.
    3. With teachers, the training loss is another one, and nothing follows from it.
    4. It is more than `WIDE` above the training loss: little text for the size of the model.
    5. Otherwise the model has learned what it can.
    """
    losses = [(row["step"], row["eval_loss"]) for row in log_history if "eval_loss" in row]
    training = [row["loss"] for row in log_history if "loss" in row]
    if len(losses) < 3 or not training:
        return None
    steps, last = losses[-1]
    best_step, best = min(losses, key=lambda pair: pair[1])
    before = [loss for step, loss in losses if step <= LATE * steps][-1:] or [losses[0][1]]
    gap = last - training[-1]
    if last > best + SMALL:
        return (
            f"the validation loss rose by {last - best:.2f} after step {best_step:,}, which is overfitting: more text, "
            "dropout or a smaller model would help, more steps would not"
        )
    if is_limited_by_text:
        return "the run ended before its minutes, because so little text is memorized: more text would help"
    if before[0] > last + SMALL:
        return "the validation loss still fell at the end: more time would help"
    if has_teachers:
        return "the validation loss no longer falls"
    if gap > WIDE:
        return (
            f"the validation loss no longer falls and is {gap:.2f} above the training loss: more text or dropout would "
            "help"
        )
    return "the validation loss no longer falls and is close to the training loss: a larger model would help"


def suggest_base(
    train_file: Sequence[str] | None, train_tokens: int, minutes: float | None, is_pretrained: bool
) -> str | None:
    """One sentence after some minutes from scratch on a short file: a pretrained model knows its language already."""
    if is_pretrained or train_file is None or minutes is None or train_tokens >= SHORT:
        return None
    files = " ".join(map(shlex.quote, train_file))
    return (
        "so little text teaches a new model little: a pretrained one would help far more, with "
        f"gptlite train --model_name_or_path auto --train_file {files} --minutes {minutes:g}"
    )
