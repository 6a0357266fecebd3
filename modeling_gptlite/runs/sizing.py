"""`--preset auto`: the size of the model and the settings that suit a text, the minutes and the machine.

chosen = choose(lambda size: (1400, 1_003_854))  # {"model_overrides": {"hidden_size": 128, ...}, "optimizer": ...}

Time is counted in steps, whose speed is measured, so that one table serves every machine. `benchmarks/tuning.md` says
how the table was found.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import SchedulerType

from ..training.arguments import ArgumentError, CausalLMTrainingArguments, check_arguments
from ..training.checkpointing import Checkpoints
from .arguments import ModelArguments
from .budget import MOST_STEPS
from .build import read_overrides
from .recipes import override


AUTO = "auto"
BASE = "modern-1m"  # the smallest size, and the architecture of all
BATCH = 12
OPTIMIZER: dict[str, Any] = {
    "optimizer": "muon",
    "learning_rate": 6e-3,
    "muon_learning_rate": 0.014,
    "muon_momentum_warmup": 1.0,
    "weight_decay": 0.0,
    "lr_scheduler_type": "linear",
}
PIECES = {"short_context": 64, "short_context_fraction": 0.6}


def _fields(width: int, layers: int, heads: int, context: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
    }


@dataclass(frozen=True)
class Size:
    """A row of the table.

    Attributes:
        text: How many tokens of it a model of this size needs; a shorter one it learns by heart, also with dropout.
        first: Its loss on a large text after n steps is about `first - slope * log(n)`.
        slope: See `first`.
        dropout: The rates of dropout, by the number of passes over the text from which each applies.
        fields: Of the configuration.
    """

    text: int
    first: float
    slope: float
    dropout: dict[int, float]
    fields: dict[str, int]

    def loss(self, steps: float) -> float:
        """The loss to expect on a large text."""
        return self.first - self.slope * math.log(steps)

    @property
    def tokens_per_step(self) -> int:
        """With the batch of the table."""
        return BATCH * self.fields["max_position_embeddings"]


SIZES = (
    Size(0, 1.556, 0.0633, {3: 0.1, 20: 0.2}, _fields(width=128, layers=4, heads=4, context=128)),
    Size(2_700_000, 1.830, 0.1050, {3: 0.1, 20: 0.2}, _fields(width=192, layers=6, heads=6, context=128)),
    Size(1_000_000, 2.039, 0.1568, {2: 0.1, 5: 0.2}, _fields(width=384, layers=6, heads=6, context=256)),
)
SLOWER = 1.5  # on CPUs, a step takes at least so many times as long as one of the size before: 2.1 to 6.9 times
SHORT = 700_000  # a text of fewer tokens is learned by heart in more passes, also with dropout
PASSES_OF_SHORT, LEAST_STEPS = 5, 100


def is_auto(args: ModelArguments, minutes: float | None, given: Mapping[str, Any]) -> bool:
    """Whether a run chooses its size: if `auto` is given, or minutes are and no model.

    Raises:
        ArgumentError: `auto` is given without minutes.
    """
    if args.preset == AUTO and minutes is None:
        raise ArgumentError("--preset auto needs --minutes: the size that suits a run depends on its time")
    is_new = args.model_name_or_path is None
    return is_new and minutes is not None and (args.preset == AUTO or "preset" not in given)


def choose(measure: Callable[[Size], tuple[float, int]], divides: bool = True) -> dict[str, Any]:
    """Settings for a text and a time.

    Args:
        measure: How many steps a model of a size takes in the time, and the tokens of the training text. It is called
            for one size after the other, as long as a larger one may be chosen.
        divides: As for `settings_of`.
    """
    chosen = SIZES[0]
    steps, tokens = measure(chosen)
    possible = steps
    for size in SIZES[1:]:
        if size.loss(possible / SLOWER) > chosen.loss(steps):
            break
        if tokens < size.text:
            continue
        possible, _ = measure(size)
        if size.loss(possible) < chosen.loss(steps):
            chosen, steps = size, possible
    passes = min(steps, most_steps(tokens, chosen.tokens_per_step)) * chosen.tokens_per_step / tokens
    dropout = max((rate for least, rate in chosen.dropout.items() if least <= passes), default=0.0)
    return settings_of(chosen, dropout, divides)


def settings_of(size: Size, dropout: float = 0.0, divides: bool = True) -> dict[str, Any]:
    """Settings of a run with a model of this size.

    Args:
        dropout: Of the residual stream; that of the attention weights would be as slow as a third of a step.
        divides: Whether windows can be cut into pieces (`short_context`); examples cannot.
    """
    fields = {**size.fields, "hidden_dropout": dropout}
    pieces = PIECES if divides else {}
    return {**OPTIMIZER, **pieces, "per_device_train_batch_size": BATCH, "model_overrides": fields}


def most_steps(tokens: int, tokens_per_step: int) -> int:
    """The number of steps after which a run on a text of `tokens` ends, even if there is time for more."""
    return max(LEAST_STEPS, math.ceil(PASSES_OF_SHORT * tokens / tokens_per_step)) if tokens < SHORT else MOST_STEPS


def recorded(checkpoint: Path) -> dict[str, Any]:
    """What the run of a checkpoint chose; empty if it did not."""
    return Checkpoints.recorded_run(checkpoint).get(AUTO, {})


def apply(
    chosen: Mapping[str, Any], args: ModelArguments, training: CausalLMTrainingArguments, given: Mapping[str, Any]
) -> tuple[ModelArguments, dict[str, Any]]:
    """Set in `training` what is chosen, unless a setting that was given replaces it.

    Returns:
        The arguments of the model, and `given` with the settings that were chosen: those of an ordinary run.

    Raises:
        UserError: What is chosen does not fit what was given.
    """
    replaced = [*given, *(OPTIMIZER if "optimizer" in given else ())]  # the rates suit this optimizer only
    if given.keys() & {"lr_scheduler_kwargs", "min_learning_rate_ratio"}:  # of a schedule that is not linear
        replaced.append("lr_scheduler_type")
    settings = override(dict(chosen), replaced) | {"preset": BASE}
    if "model_overrides" in chosen:
        settings["model_overrides"] = json.dumps({**chosen["model_overrides"], **read_overrides(args)})
    for name, value in settings.items():
        if hasattr(training, name):
            setattr(training, name, value)
    if "lr_scheduler_type" in settings:  # what `TrainingArguments` makes of a name
        training.lr_scheduler_type, training.lr_scheduler_kwargs = SchedulerType(settings["lr_scheduler_type"]), {}
    check_arguments(training)
    of_model = {name: value for name, value in settings.items() if hasattr(args, name)}
    return dataclasses.replace(args, **of_model), {**given, **settings}


def describe(chosen: Mapping[str, Any]) -> str:
    """The size, in words."""
    fields = chosen["model_overrides"]
    dropout = f", dropout {fields['hidden_dropout']}" if fields["hidden_dropout"] else ""
    return f"auto: {fields['num_hidden_layers']} layers of width {fields['hidden_size']}{dropout}"
