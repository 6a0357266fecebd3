"""`--preset auto`: the size of the model and the settings that suit a text, the minutes and the machine.

chosen = choose(tokens=1_003_854, steps=1400)  # {"model_overrides": {"hidden_size": 128, ...}, "optimizer": ...}

Time is counted in steps of the smallest model, whose speed is measured, so that one table serves every machine.
`benchmarks/tuning.md` says how the table was found.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_utils import SchedulerType

from .. import GPTLiteConfig
from ..training.arguments import ArgumentError, CausalLMTrainingArguments, check_arguments
from ..training.checkpointing import Checkpoints
from .arguments import ModelArguments
from .budget import MOST_STEPS
from .build import read_overrides
from .recipes import override


AUTO = "auto"
BASE = "modern-1m"  # the smallest model, and the architecture of all
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


@dataclass(frozen=True)
class Size:
    """A row of the table.

    Attributes:
        least: From so many steps of the smallest model on, this size learns more in the same time.
        cost: Of a step, in steps of the smallest model.
        fields: Of the configuration.
    """

    least: int
    cost: float
    fields: dict[str, int]


SIZES = (
    Size(0, 1.0, {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}),
    Size(20_000, 2.7, {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6}),
)
DROPOUT = ((0, 0.0), (3, 0.1), (20, 0.2))  # from so many passes over the text on
SHORT, STEPS_OF_SHORT = 700_000, 1300  # a text of fewer tokens is learned by heart in more steps, also with dropout


def is_auto(args: ModelArguments, minutes: float | None, given: Mapping[str, Any]) -> bool:
    """Whether a run chooses its size: if `auto` is given, or minutes are and no model.

    Raises:
        ArgumentError: `auto` is given without minutes.
    """
    if args.preset == AUTO and minutes is None:
        raise ArgumentError("--preset auto needs --minutes: the size that suits a run depends on its time")
    is_new = args.model_name_or_path is None
    return is_new and minutes is not None and (args.preset == AUTO or "preset" not in given)


def choose(tokens: int, steps: float, divides: bool = True) -> dict[str, Any]:
    """Settings for a training text of `tokens` and a time in which the smallest model takes `steps`.

    Args:
        divides: Whether windows can be cut into pieces (`short_context`); examples cannot.
    """
    size = [size for size in SIZES if size.least <= min(steps, most_steps(tokens))][-1]
    context = GPTLiteConfig.from_preset(BASE).max_position_embeddings
    passes = min(steps / size.cost, most_steps(tokens)) * BATCH * context / tokens
    dropout = max(rate for least, rate in DROPOUT if least <= passes)
    fields = {**size.fields, "hidden_dropout": dropout}  # of the attention weights, it is as slow as a third of a step
    pieces = PIECES if divides else {}
    return {**OPTIMIZER, **pieces, "per_device_train_batch_size": BATCH, "model_overrides": fields}


def most_steps(tokens: int) -> int:
    """The number of steps after which a run on a text of `tokens` ends, even if there is time for more."""
    return STEPS_OF_SHORT if tokens < SHORT else MOST_STEPS


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
