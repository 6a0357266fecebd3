"""What suits a text, a time and a machine: a model's size, the steps, dropout and decay, teachers, compilation.

resolved = resolve({"minutes": 10}, Facts(train_tokens=1_003_854), measure)
print(resolved.settings)  # {"minutes": 10, "model_overrides": '{"hidden_size": 128, ...}', "max_steps": 2140, ...}

`resolve` computes with numbers only: `measure` returns the seconds that a run with some settings takes
(`training/timing.py`). `benchmarks/tuning.md` says how the table of sizes was found.
"""

import bisect
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.windows import longest_context
from ..training.arguments import ArgumentError
from ..training.hardware import compiling_pays
from ..training.timing import Costs
from . import tuning
from .recipes import override
from .settings import defaults
from .teachers import EVALUATIONS, teacher_settings


AUTO, TUNED = "auto", "tuned"  # what was chosen, in the record of a run: a size; how to fine-tune
MOST_STEPS = 10**9
UNTIMED = ("weight_decay", "teachers", "teacher_overrides")  # settings without which a run is timed


@dataclass(frozen=True)
class Facts:
    """What is known of a run before anything is measured.

    Attributes:
        train_tokens: Tokens of the training split.
        divides: Whether windows can be cut into pieces (`short_context`); examples cannot.
        steps: Number of optimizer steps, if the settings determine it.
        processes: That train together.
        base: The pretrained model whose fine-tuning is chosen here; None if the settings and their defaults say it all.
    """

    train_tokens: int
    divides: bool = True
    steps: int | None = None
    processes: int = 1
    base: tuning.Base | None = None


@dataclass(frozen=True)
class Resolved:
    """The settings of a run, decided.

    Attributes:
        settings: Those that were given, and what was chosen. Without the minutes, they make the same run.
        recorded: What a checkpoint has to record to resume the run, besides the settings.
        lines: What was chosen and why, in words.
    """

    settings: dict[str, Any]
    recorded: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()


Measure = Callable[[Mapping[str, Any]], Costs]


def check(settings: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` if settings contradict the minutes, or need them."""
    if settings.get("preset") == AUTO and "minutes" not in settings:
        raise ArgumentError("--preset auto needs --minutes: the size that suits a run depends on its time")
    for name in ("max_steps", "num_train_epochs"):
        if "minutes" in settings and name in settings:
            raise ArgumentError(f"give either --minutes or --{name}, not both: each determines the number of steps")


def resolve(
    settings: Mapping[str, Any],
    facts: Facts,
    measure: Measure,
    elapsed: Callable[[], float] = lambda: 0.0,
    memory: tuning.Memory = lambda settings: (0, 0),
) -> Resolved:
    """Decide what the settings leave open: the size of the model or how to fine-tune it, compilation, the steps.

    Args:
        settings: Those that were given, as `read` returns them.
        measure: Returns what a run with some settings costs. It is called once for each that comes into question.
        elapsed: Returns the seconds since the run began, which includes what `measure` took.
        memory: Returns the bytes that a run with some settings needs, and those that are free.

    Raises:
        ArgumentError: There is not enough time for one step, or not enough memory.
    """
    measured: dict[str, Costs] = {}

    def costs_of(candidate: Mapping[str, Any]) -> Costs:
        key = json.dumps(_without(candidate, UNTIMED), sort_keys=True, default=str)
        if key not in measured:
            measured[key] = measure(candidate)
        return measured[key]

    resolved: dict[str, Any] = dict(settings)
    recorded: dict[str, Any] = {}
    size = None
    if chooses_size(settings):
        size, recorded[AUTO] = choose(settings, facts, costs_of, elapsed)
        resolved = apply(recorded[AUTO], settings)
    if resolved.get("torch_compile") == AUTO:
        resolved["torch_compile"] = False
        seconds = 60 * settings.get("minutes", 0)
        if facts.steps is not None:
            seconds = facts.steps * step_seconds(costs_of(resolved), resolved)
        resolved["torch_compile"] = compiling_pays(seconds)
    if facts.base is not None:
        return tune(resolved, facts, costs_of, elapsed, memory)
    lines = _describe(recorded)
    if "minutes" in settings:
        costs, spent, most = costs_of(resolved), elapsed(), MOST_STEPS
        teachers = teacher_settings(resolved)
        if size is not None:
            most = size.most_steps(facts.train_tokens, costs.tokens_per_step, bool(teachers))
        taught = fitting = costs.taught_by(len(teachers))
        if teachers and "max_steps" in teachers[0]:
            spent += len(teachers) * teacher_seconds(costs, teachers[0])
        elif teachers:  # each takes as many steps as the run itself
            spent += len(teachers) * _around_steps(costs)
            fitting = taught.with_steps_of(len(teachers), costs)
        resolved |= (fitted := fit(fitting, resolved, most, spent))
        recorded["seconds_per_step"] = step_seconds(taught, resolved)
        if is_limited := fitted["max_steps"] == most:
            recorded["limited_by_text"] = True
        lines += (_time(settings, fitted["max_steps"], recorded["seconds_per_step"], is_limited),)
    return Resolved(resolved, recorded, lines)


def _time(settings: Mapping[str, Any], steps: int, seconds: float, is_limited: bool) -> str:
    why = ", because more would not help with so little text" if is_limited else ""
    each = f"{1000 * seconds:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
    minutes = f"{settings['minutes']:g} minute" + ("s" if settings["minutes"] != 1 else "")
    return f"{minutes}: {steps:,} steps of {each}{why}"


def resume(settings: Mapping[str, Any], run: Mapping[str, Any]) -> Resolved:
    """What `resolve` decided for the run that a checkpoint recorded; nothing is measured.

    Args:
        run: What the checkpoint's manifest says about its run. `check_same_run` finds out whether it is the same.
    """
    resolved = dict(settings)
    recorded = {name: run[name] for name in (AUTO, TUNED, "seconds_per_step", "limited_by_text") if name in run}
    resolved |= {name: value for name, value in recorded.get(TUNED, {}).items() if name not in settings}
    if chooses_size(settings):
        resolved = apply(run.get(AUTO, {}), settings)
    if resolved.get("torch_compile") == AUTO:
        resolved["torch_compile"] = bool(run.get("torch_compile"))
    if "minutes" in settings:
        resolved |= {name: run[name] for name in FITTED if name in run and name not in resolved}
    return Resolved(resolved, recorded, _describe(recorded))


def budget(resolved: Resolved) -> dict[str, Any]:
    """What `run.json` says of the minutes of a run; empty for a run without."""
    if "minutes" not in resolved.settings:
        return {}
    return {
        "minutes": resolved.settings["minutes"],
        "seconds_per_step": resolved.recorded["seconds_per_step"],
        "limited_by_text": resolved.recorded.get("limited_by_text", False),
    }


def _describe(recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """The size that was chosen, and the teachers, in words."""
    if AUTO not in recorded:
        return ()
    chosen = recorded[AUTO]
    fields, teachers = chosen["model_overrides"], chosen.get("teachers", 0)
    dropout = f", dropout {fields['hidden_dropout']}" if fields["hidden_dropout"] else ""
    lines = [f"auto: {fields['num_hidden_layers']} layers of width {fields['hidden_size']}{dropout}"]
    if teachers:
        what = f"{teachers} teachers are" if teachers > 1 else "a teacher is"
        steps = chosen["teacher_overrides"]["max_steps"]
        lines.append(f"the text is short for the time: {what} trained first, in {steps:,} steps, to learn from")
    return tuple(lines)


# ---- The size ------------------------------------------------------------------------------------------------------

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
    """A row of the table.

    Attributes:
        min_tokens: Smallest training text, in tokens; on less, this size overfits even with dropout.
        tokens_per_step: For which the rates are tuned.
        loss_at_one_step: After n steps on a large text, the loss is about this less `loss_per_log_step * log(n)`.
        loss_per_log_step: See `loss_at_one_step`.
        regularization: The rates of dropout and of decay, by the passes over the text from which they apply.
        passes: Over a text, after which a run of this size ends: more would not lower the loss.
        teacher_passes: Those of a teacher of this size; 0 if it is trained without.
        taught_passes: Those of a model of this size that has teachers.
        fields: Of the configuration.
    """

    min_tokens: int
    tokens_per_step: int
    loss_at_one_step: float
    loss_per_log_step: float
    regularization: dict[int, tuple[float, float]]
    passes: float
    teacher_passes: float
    taught_passes: float
    fields: dict[str, int]

    def loss(self, steps: float) -> float:
        """The loss to expect on a large text."""
        return self.loss_at_one_step - self.loss_per_log_step * math.log(steps)

    def regularize(self, passes: float) -> tuple[float, float]:
        """Dropout and decay for this many passes over the text."""
        reached = [rates for least, rates in self.regularization.items() if least <= passes]
        return max(reached, default=(0.0, 0.0))

    def context(self, settings: Mapping[str, Any], facts: Facts) -> int:
        """What is given, or that of the table; a shorter one if the text has not enough tokens for it."""
        fields = json.loads(settings.get("model_overrides", "{}"))
        if given := settings.get("context_length") or fields.get("max_position_embeddings"):
            return given
        own = self.fields["max_position_embeddings"]
        return min(own, longest_context(facts.train_tokens) or own) if facts.divides else own

    def windows(self, context: int) -> int:
        """Of each step."""
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
    """A size that was measured, and the steps that there is time for with it."""

    size: Size
    context: int
    steps_per_pass: float
    costs: Costs
    steps: float

    @property
    def loss(self) -> float:
        return self.size.expected_loss(self.steps, self.steps_per_pass)


def choose(
    settings: Mapping[str, Any], facts: Facts, measure: Measure, elapsed: Callable[[], float] = lambda: 0.0
) -> tuple[Size, dict[str, Any]]:
    """The size with the lowest expected loss, and its settings. Larger ones are measured as long as they may be it."""
    # Pieces must divide the context, which is known if nothing is given that sets it.
    divides = facts.divides and not settings.keys() & {"context_length", "model_overrides"}
    measured: list[_Candidate] = []  # smallest first
    for size in SIZES:
        if facts.train_tokens < size.min_tokens:
            continue
        context = size.context(settings, facts)
        steps_per_pass = facts.train_tokens / (size.windows(context) * context)
        if measured:
            at_best = size.expected_loss(measured[-1].steps / MIN_STEP_RATIO, steps_per_pass)
            if at_best > min(candidate.loss for candidate in measured):
                break
        timed = apply(size_settings(size, context, divides=divides), settings)
        if timed.get("torch_compile") == AUTO:
            timed["torch_compile"] = False
        costs = measure(timed)
        steps = 60 * settings["minutes"] / step_seconds(costs, timed)
        measured.append(_Candidate(size, context, steps_per_pass, costs, steps))
    best = min(measured, key=lambda candidate: candidate.loss)
    size = best.size
    may_be_taught = size.teacher_passes and not settings.keys() & {"teachers", "label_smoothing_factor"}
    left = best.steps - elapsed() / best.costs.step
    if may_be_taught and (teachers := choose_teachers(size, left, best.steps_per_pass, best.costs)):
        return size, {**size_settings(size, best.context, divides=divides), **teachers}
    passes = min(best.steps / best.steps_per_pass, size.passes)
    return size, size_settings(size, best.context, *size.regularize(passes), divides)


def size_settings(
    size: Size, context: int, dropout: float = 0.0, decay: float = 0.0, divides: bool = True
) -> dict[str, Any]:
    """Settings of a run with a model of this size.

    Args:
        context: Its context length, in tokens.
        dropout: Of the residual stream; that of the attention weights would be as slow as a third of a step.
        decay: Of matrices and embeddings, times the learning rate of each.
        divides: Whether windows are cut into pieces at first.
    """
    fields = {**size.fields, "max_position_embeddings": context, "hidden_dropout": dropout}
    warmup = SEQUENCE_WARMUP if divides and context > SEQUENCE_WARMUP["short_context"] else {}
    chosen = {"weight_decay": decay, "per_device_train_batch_size": size.windows(context), "model_overrides": fields}
    return {**OPTIMIZER, **warmup, **chosen}


def apply(chosen: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, and what is chosen where they leave it open."""
    replaced = [*settings, *(OPTIMIZER if "optimizer" in settings else ())]  # the rates suit this optimizer only
    if settings.keys() & {"lr_scheduler_kwargs", "min_learning_rate_ratio"}:  # of a schedule that is not linear
        replaced.append("lr_scheduler_type")
    applied = override(dict(chosen), replaced) | {"preset": BASE}
    if "model_overrides" in chosen:
        own = json.loads(settings.get("model_overrides", "{}"))
        applied["model_overrides"] = json.dumps({**chosen["model_overrides"], **own})
    if "teacher_overrides" in applied:
        overrides = chosen["teacher_overrides"]
        fields = _without(overrides["model_overrides"], own)
        overrides = {**_without(overrides, settings), "model_overrides": fields}
        applied["teacher_overrides"] = json.dumps(overrides)
    return {**settings, **applied}


def _without(chosen: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if name not in given}


# ---- Teachers ------------------------------------------------------------------------------------------------------

# In many passes a model memorizes a short text. One that also learns what others expect of the text does so less.
PASSES_WITH_TEACHERS = 6  # from this many on that there is time for, teachers pay
MOST_TEACHERS = 8  # more of them do not lower the loss
DECAYED_PASSES, TAUGHT_DECAY = 10, 0.5  # from so many passes on, a model that has teachers needs decay, too


def choose_teachers(size: Size, steps: float, steps_per_pass: float, costs: Costs) -> dict[str, Any]:
    """How many teachers are trained first, and for how long; empty if there is no time for one.

    Args:
        steps: That there is time for, with all that is trained.
        costs: Of the run without teachers.
    """
    forward, around = costs.forward / costs.step, _around_steps(costs) / costs.step / steps_per_pass
    passes = steps / steps_per_pass - 3 * around  # one teacher's, and twice as much for the last run
    if passes < max(PASSES_WITH_TEACHERS, 6 * around):  # most of the time must be left for steps
        return {}
    count = int((passes + around - size.taught_passes) / (size.teacher_passes + forward * size.taught_passes + around))
    taught = size.taught_passes / size.teacher_passes
    each = min(size.teacher_passes, passes / (1 + taught * (1 + forward)))
    dropout, decay = size.regularize(each)
    overrides = {
        "max_steps": math.ceil(each * steps_per_pass),
        "weight_decay": decay,
        "model_overrides": {"hidden_dropout": dropout},
    }
    is_decayed = each * taught >= DECAYED_PASSES
    return {
        "weight_decay": TAUGHT_DECAY if is_decayed else 0.0,
        "teachers": max(1, min(count, MOST_TEACHERS)),
        "teacher_overrides": overrides,
    }


def teacher_seconds(costs: Costs, settings: Mapping[str, Any]) -> float:
    """What the run of a teacher takes."""
    return settings["max_steps"] * step_seconds(costs, settings) + _around_steps(costs)


def _around_steps(costs: Costs) -> float:
    return costs.start + EVALUATIONS * (costs.evaluation + costs.checkpoint) + costs.finish


# ---- A pretrained model --------------------------------------------------------------------------------------------


def tune(
    settings: Mapping[str, Any], facts: Facts, measure: Measure, elapsed: Callable[[], float], memory: tuning.Memory
) -> Resolved:
    """Decide how to fine-tune a pretrained model, as `resolve` does."""
    assert facts.base is not None
    chosen = tuning.tune(settings, facts.base, facts.train_tokens, memory)
    tuned: dict[str, Any] = {**settings, **chosen}
    windows = tuned["per_device_train_batch_size"] * facts.processes * settings.get("gradient_accumulation_steps", 1)
    passes = settings.get("num_train_epochs", tuning.PASSES)
    steps: float = settings.get("max_steps") or passes * facts.train_tokens / (windows * tuned["context_length"])
    recorded: dict[str, Any] = {}
    costs, evaluations = None, tuning.EVALUATIONS
    if "minutes" in settings:
        costs = measure(tuned)
        chosen["eval_on_start"], evaluations, possible = _divide_time(costs, tuned, elapsed())
        recorded["limited_by_text"] = steps <= possible
        steps = min(steps, possible)
    is_given = bool(settings.keys() & {"gradient_accumulation_steps", "max_steps"})
    accumulated = 1 if is_given else tuning.spread(tuned, steps)
    fitted = {"gradient_accumulation_steps": accumulated, **tuning.intervals(int(steps / accumulated), evaluations)}
    chosen |= {name: value for name, value in fitted.items() if name not in settings}
    resolved = {**chosen, **settings}
    lines: tuple[str, ...] = (tuning.describe(resolved, chosen),)
    if costs is not None:
        recorded["seconds_per_step"] = costs.step * accumulated
        lines += (_time(settings, resolved["max_steps"], costs.step * accumulated, recorded["limited_by_text"]),)
    return Resolved(resolved, {TUNED: chosen, **recorded}, lines)


def _divide_time(costs: Costs, settings: Mapping[str, Any], elapsed: float) -> tuple[bool, int, float]:
    """Whether there is time to evaluate before training, how often during it, and for how many batches."""
    minutes = settings["minutes"]
    seconds = (1 - RESERVE) * 60 * minutes - elapsed - costs.start - costs.finish
    each = costs.evaluation + costs.checkpoint
    evaluations = max(1, min(tuning.EVALUATIONS, int(EVALUATION_SHARE * seconds / each)))
    before = settings["eval_on_start"] and costs.evaluation <= EVALUATION_SHARE / 2 * seconds
    seconds -= evaluations * each + before * costs.evaluation
    if seconds < costs.step:
        needed = minutes + (costs.step - seconds) / (1 - RESERVE) / 60
        raise ArgumentError(
            f"--minutes {minutes:g} is too short: loading, evaluation and one step take {needed:.1f} minutes"
        )
    return before, evaluations, seconds / costs.step


# ---- The number of steps -------------------------------------------------------------------------------------------

MOST_EVALUATIONS = 10
EVALUATION_SHARE = 0.2  # of the time, at most, for evaluations, samples and checkpoints
WARMUP_SHARE = 0.05  # of the steps, at most
RESERVE = 0.02  # of the time, because steps are not equally fast
INTERVALS = {"eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"}
FITTED = ("max_steps", "warmup_steps", "eval_steps", "eval_delay", "save_steps")


def fit(
    costs: Costs, settings: Mapping[str, Any], most_steps: int = MOST_STEPS, elapsed: float = 0.0
) -> dict[str, int]:
    """The settings with which a run ends after its minutes, with all that it does between its beginning and its end.

    Args:
        settings: With `minutes`; intervals and warm-up that they set are kept.
        most_steps: Upper limit, even if time is left.
        elapsed: Seconds of the minutes that have passed.

    Returns:
        Values for names in `FITTED`. If one evaluation would take too much of the time, they postpone it beyond the
        last step.

    Raises:
        ArgumentError: There is not enough time for one step.
    """
    seconds = (1 - RESERVE) * 60 * settings["minutes"] - elapsed - costs.start - costs.finish
    most = EVALUATION_SHARE * max(seconds, 0) / (costs.evaluation + costs.checkpoint)
    evaluations = min(MOST_EVALUATIONS, int(most))
    saves = evaluations or 2
    keeps_intervals = bool(settings.keys() & INTERVALS)

    def total(steps: int) -> float:
        times = _intervals(settings, steps) if keeps_intervals else (evaluations, saves)
        return steps * step_seconds(costs, settings) + times[0] * costs.evaluation + times[1] * costs.checkpoint

    steps = min(bisect.bisect_right(range(1, MOST_STEPS), seconds, key=total), most_steps)
    if steps < 1:
        needed = elapsed + costs.start + total(1) + costs.finish
        raise ArgumentError(
            f"--minutes {settings['minutes']:g} is too short: one step takes {needed:.1f} seconds, with "
            "what a run does before and after it"
        )
    fitted = {"max_steps": steps}
    if "warmup_steps" not in settings:
        fitted["warmup_steps"] = min(int(defaults()["warmup_steps"]), math.ceil(WARMUP_SHARE * steps))
    if not keeps_intervals:
        fitted["eval_steps"] = fitted["save_steps"] = math.ceil(steps / saves)
        if not evaluations:
            fitted["eval_delay"] = steps + 1
    return fitted


def step_seconds(costs: Costs, settings: Mapping[str, Any]) -> float:
    """The mean over the steps of a run, with windows cut by `short_context` and whole ones."""
    fraction = settings.get("short_context_fraction", defaults()["short_context_fraction"])
    short = fraction if settings.get("short_context") else 0.0
    return short * costs.short_step + (1 - short) * costs.step


def _intervals(settings: Mapping[str, Any], steps: int) -> tuple[int, int]:
    """How often a run of this many steps evaluates and saves with the intervals of `settings`."""
    values = {**defaults(), **settings}

    def times(strategy: str, interval: float) -> int:
        if strategy != "steps":
            return int(strategy != "no")  # an epoch of the Trainer is the whole run
        return math.ceil(steps / interval if interval >= 1 else 1 / interval)

    evaluations = times(values["eval_strategy"], values["eval_steps"])
    saves_best = values["save_strategy"] == "best"
    return evaluations, evaluations if saves_best else times(values["save_strategy"], values["save_steps"])
