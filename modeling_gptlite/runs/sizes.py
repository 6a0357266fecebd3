"""The size of a new model that suits a text, a time and a machine, and how many teachers.

size, chosen = choose({"minutes": 10}, 1_003_854, measure)
print(chosen)  # {"optimizer": "muon", "model_overrides": {"hidden_size": 128, ...}, ...}

`benchmarks/tuning.md` says how the table was found.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..data.windows import longest_context
from ..training.timing import Costs
from .settings import left_open
from .steps import MOST_STEPS, step_seconds
from .teachers import around_steps, read_overrides


AUTO = "auto"  # in settings: to be chosen; in the record of a run: the settings of the size that was chosen
Measure = Callable[[Mapping[str, Any]], Costs]

BASE = "modern-1m"  # the smallest size, and the architecture of all
MOST_WINDOWS = 12  # of a step
OPTIMIZER: dict[str, Any] = {
    "optimizer": "muon",
    "learning_rate": 6e-3,
    "muon_learning_rate": 0.014,
    "muon_momentum_warmup": 1.0,
    "weight_decay": 0.0,  # a short text's is higher
    "lr_scheduler_type": "linear",
}
SEQUENCE_WARMUP = {"short_context": 64, "short_context_fraction": 0.6}


def _fields(width: int, layers: int, heads: int, context: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": context,
    }


@dataclass(frozen=True)
class Size:
    """A row of the table."""

    min_tokens: int  # smallest training text, in tokens; on less, this size overfits even with dropout
    tokens_per_step: int  # for which the rates are tuned
    loss_at_one_step: float  # after n steps on a large text, the loss is about this less `loss_per_log_step * log(n)`
    loss_per_log_step: float  # see `loss_at_one_step`
    # The rates of dropout and of decay, by the passes over the text from which they apply.
    regularization: dict[int, tuple[float, float]]
    passes: float  # over a text, after which a run of this size ends: more would not lower the loss
    teacher_passes: float  # those of a teacher of this size; 0 if it is trained without
    taught_passes: float  # those of a model of this size that has teachers
    fields: dict[str, int]  # of the configuration

    def loss(self, steps: float) -> float:
        """The loss to expect on a large text."""
        return self.loss_at_one_step - self.loss_per_log_step * math.log(steps)

    def regularize(self, passes: float) -> tuple[float, float]:
        """Dropout and decay for this many passes over the text."""
        reached = [rates for least, rates in self.regularization.items() if least <= passes]
        return max(reached, default=(0.0, 0.0))

    def context(self, settings: Mapping[str, Any], tokens: int | None) -> int:
        """What is given, or that of the table; a shorter one if a text of `tokens` has not enough for it."""
        fields = json.loads(settings.get("model_overrides", "{}"))
        if given := settings.get("context_length") or fields.get("max_position_embeddings"):
            return given
        own = self.fields["max_position_embeddings"]
        return own if tokens is None else min(own, longest_context(tokens) or own)

    def windows(self, context: int) -> int:
        """The number of windows of a step."""
        return max(1, min(MOST_WINDOWS, self.tokens_per_step // context))

    def most_steps(self, tokens: int, tokens_per_step: int, is_taught: bool = False) -> int:
        """The number of steps after which a run on a text of `tokens` ends, even if there is time for more."""
        passes = self.taught_passes if is_taught else self.passes
        return max(LEAST_STEPS, math.ceil(min(MOST_STEPS, passes * tokens / tokens_per_step)))

    def expected_loss(self, steps: float, steps_per_pass: float) -> float:
        """After this many steps, as far as they help."""
        passes = min(self.passes, PASSES_WITH_TEACHERS) if self.teacher_passes else self.passes
        return self.loss(min(steps, passes * steps_per_pass))


# The losses by steps were measured with 128 tokens of context, on a large text, the passes on short ones.
SIZES = (
    Size(
        min_tokens=0,
        tokens_per_step=1536,
        loss_at_one_step=1.556,
        loss_per_log_step=0.0633,
        regularization={7: (0.2, 2.0)},
        passes=10,
        teacher_passes=10,
        taught_passes=20,
        fields=_fields(width=128, layers=4, heads=4, context=256),
    ),
    Size(
        min_tokens=1_000_000,
        tokens_per_step=1536,
        loss_at_one_step=1.830,
        loss_per_log_step=0.1050,
        regularization={},
        passes=3.3,
        teacher_passes=2.5,
        taught_passes=4,
        fields=_fields(width=192, layers=6, heads=6, context=256),
    ),
    Size(
        min_tokens=2_700_000,
        tokens_per_step=3072,
        loss_at_one_step=2.039,
        loss_per_log_step=0.1568,
        regularization={2: (0.1, 0.0), 5: (0.2, 0.0)},
        passes=math.inf,
        teacher_passes=0,
        taught_passes=math.inf,
        fields=_fields(width=384, layers=6, heads=6, context=256),
    ),
)
MIN_STEP_RATIO = 1.5  # on CPUs, a step is at least this many times slower than with the next smaller size: 2.1 to 6.9
LEAST_STEPS = 100  # however short the text is


def chooses_size(settings: Mapping[str, Any]) -> bool:
    """Whether a run chooses its size: minutes are given, and no model or `auto`."""
    return "minutes" in settings and "model_name_or_path" not in settings and settings.get("preset", AUTO) == AUTO


@dataclass(frozen=True)
class _Candidate:
    """A size that was measured, and the steps that there is time for with it, of its model and of each teacher."""

    size: Size
    context: int
    steps_per_pass: float
    costs: Costs
    steps: float

    @property
    def loss(self) -> float:
        return self.size.expected_loss(self.steps, self.steps_per_pass)

    def at_best(self, size: Size) -> float:
        """The lowest loss to expect of the next larger size, before it is measured."""
        steps_per_pass = self.steps_per_pass * self.size.tokens_per_step / size.tokens_per_step
        return size.expected_loss(self.steps / MIN_STEP_RATIO, steps_per_pass)


def choose(
    settings: Mapping[str, Any],
    tokens: int,
    measure: Measure,
    elapsed: Callable[[], float] = lambda: 0.0,
    divides: bool = True,
) -> tuple[Size, dict[str, Any]]:
    """The size with the lowest expected loss, and its settings. Larger ones are measured as long as they may be it.

    Args:
        tokens: Of the training split.
        measure: Returns what a run with some settings costs.
        elapsed: Returns the seconds since the run began.
        divides: Whether windows can be cut from them at any place; examples are whole.
    """
    own = json.loads(settings.get("model_overrides", "{}"))
    # Pieces must divide the context, which is known if it is not given.
    warms_up = divides and "context_length" not in settings and "max_position_embeddings" not in own
    models = 1 + settings.get("teachers", 0)  # that share the time, if their number is given
    measured: list[_Candidate] = []  # smallest first
    for size in SIZES:
        if tokens < size.min_tokens:
            continue
        if measured and measured[-1].at_best(size) > min(candidate.loss for candidate in measured):
            break
        context = size.context(settings, tokens if divides else None)
        timed = apply(size_settings(size, context, warms_up=warms_up), settings)
        if timed.get("torch_compile") == AUTO:
            timed["torch_compile"] = False
        costs = measure(timed)
        steps = 60 * settings["minutes"] / step_seconds(costs, timed) / models
        measured.append(_Candidate(size, context, tokens / costs.tokens_per_step, costs, steps))
    best = min(measured, key=lambda candidate: candidate.loss)
    size, count = best.size, settings.get("teachers")
    if size.teacher_passes and count != 0 and "label_smoothing_factor" not in settings:
        left = models * best.steps - elapsed() / best.costs.step
        if teachers := choose_teachers(size, left, best.steps_per_pass, best.costs, count):
            return size, {**size_settings(size, best.context, warms_up=warms_up), **teachers}
    passes = min(best.steps / best.steps_per_pass, size.passes)
    return size, size_settings(size, best.context, *size.regularize(passes), warms_up=warms_up)


def size_settings(
    size: Size, context: int, dropout: float = 0.0, decay: float = 0.0, warms_up: bool = True
) -> dict[str, Any]:
    """Settings of a run with a model of this size.

    Args:
        context: Its context length, in tokens.
        dropout: Of the residual stream; dropout of the attention weights would make a step a third slower.
        decay: Of matrices and embeddings, times the learning rate of each.
        warms_up: Whether windows are cut into pieces at first.
    """
    fields = {**size.fields, "max_position_embeddings": context, "hidden_dropout": dropout}
    warmup = SEQUENCE_WARMUP if warms_up and context > SEQUENCE_WARMUP["short_context"] else {}
    chosen = {"weight_decay": decay, "per_device_train_batch_size": size.windows(context), "model_overrides": fields}
    return {**OPTIMIZER, **warmup, **chosen}


def apply(chosen: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and what is chosen where they leave it open."""
    is_another = settings.get("optimizer", OPTIMIZER["optimizer"]) != OPTIMIZER["optimizer"]
    given = {*settings, *(OPTIMIZER if is_another else ())}  # the rates suit this optimizer only
    own = json.loads(settings.get("model_overrides", "{}"))
    applied = left_open(chosen, given) | {"preset": BASE}
    if "model_overrides" in chosen:
        applied["model_overrides"] = json.dumps({**chosen["model_overrides"], **own})
    if "teacher_overrides" in chosen:
        overrides, theirs = chosen["teacher_overrides"], read_overrides(settings)
        fields = {**left_open(overrides["model_overrides"], own), **theirs["model_overrides"]}
        overrides = {**left_open(overrides, given), **theirs, "model_overrides": fields}
        applied["teacher_overrides"] = json.dumps(overrides)
    return {**settings, **applied}


# ---- Teachers ------------------------------------------------------------------------------------------------------

# In many passes a model memorizes a short text. One that also learns what others expect of the text does so less.
PASSES_WITH_TEACHERS = 6  # with time for so many passes or more, teachers pay
MOST_TEACHERS = 8  # more of them do not lower the loss
DECAYED_PASSES, TAUGHT_DECAY = 10, 0.5  # in so many passes or more, a model that has teachers needs decay, too


def choose_teachers(
    size: Size, steps: float, steps_per_pass: float, costs: Costs, count: int | None = None
) -> dict[str, Any]:
    """How many teachers are trained first, and for how long; empty if it is better to have none.

    Args:
        steps: That there is time for, with all that is trained.
        costs: Of the run without teachers.
        count: Of teachers, if it is given.
    """
    forward, around = costs.forward / costs.step, around_steps(costs) / costs.step / steps_per_pass
    passes = steps / steps_per_pass - ((count or 1) + 2) * around  # each teacher's, and twice as much for the last run
    share, number = size.taught_passes / size.teacher_passes, count
    if number is None:
        if passes < max(PASSES_WITH_TEACHERS, 6 * around):  # most of the time must be left for steps
            return {}
        more = (passes + around - size.taught_passes) / (size.teacher_passes + forward * size.taught_passes + around)
        number = max(1, min(int(more), MOST_TEACHERS))
    each = min(size.teacher_passes, max(0.0, passes) / (number + share * (1 + number * forward)))
    each_steps = max(1, math.ceil(each * steps_per_pass))
    if count is None and each_steps < LEAST_STEPS:  # on a very short text
        return {}
    dropout, decay = size.regularize(each)
    overrides = {"max_steps": each_steps, "weight_decay": decay, "model_overrides": {"hidden_dropout": dropout}}
    is_decayed = each * share >= DECAYED_PASSES
    chosen = {"weight_decay": TAUGHT_DECAY if is_decayed else 0.0, "teacher_overrides": overrides}
    return chosen if count else {**chosen, "teachers": number}
