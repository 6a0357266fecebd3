"""What a run decides for itself, once, before it trains: size, teachers or fine-tuning, compilation, steps.

resolved = resolve({"minutes": 10}, Facts(train_tokens=1_003_854), measure)
print(resolved.settings)  # {"minutes": 10, "model_overrides": '{"hidden_size": 128, ...}', "max_steps": 2140, ...}

`resolve` computes with numbers only: `measure` returns the seconds that a run with some settings takes
(`training/timing.py`). `benchmarks/tuning.md` says how the table of sizes was found.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..training.arguments import ArgumentError
from ..training.hardware import compiling_pays
from ..training.timing import Costs
from . import tuning
from .sizes import AUTO, Measure, Size, apply, choose, chooses_size
from .steps import EVALUATION_SHARE, FITTED, MOST_STEPS, RESERVE, fit, step_seconds
from .teachers import around_steps, teacher_seconds, teacher_settings, timed_as
from .tuning import TUNED


# Settings without which a run is timed
UNTIMED = ("max_steps", "warmup_steps", "weight_decay", "teachers", "teacher_overrides")


@dataclass(frozen=True)
class Facts:
    """What is known of a run before anything is measured.

    Attributes:
        train_tokens: Tokens of the training split.
        divides: Whether windows can be cut into pieces (`short_context`); examples cannot.
        examples: Rows of the training split, and the tokens of the longest, if it consists of examples.
        steps: Number of optimizer steps, if the settings determine it.
        processes: That train together.
        base: The pretrained model whose fine-tuning is chosen here; None if the settings and their defaults say it all.
    """

    train_tokens: int
    divides: bool = True
    examples: tuple[int, int] | None = None
    steps: int | None = None
    processes: int = 1
    base: tuning.Base | None = None


@dataclass(frozen=True)
class Resolved:
    """The settings of a run, decided."""

    settings: dict[str, Any]  # given or chosen; without the minutes, they make the same run
    # What a checkpoint has to record to resume the run, besides the settings.
    recorded: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()  # what was chosen and why, in words


def check(settings: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` if settings contradict the minutes, or need them."""
    if settings.get("preset") == AUTO and "minutes" not in settings:
        raise ArgumentError("--preset auto needs --minutes: the size that suits a run depends on its time")
    if "teacher_overrides" in settings and "teachers" not in settings and not chooses_size(settings):
        raise ArgumentError("--teacher_overrides needs --teachers, or --minutes without a model")
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
        timed = {name: value for name, value in candidate.items() if name not in UNTIMED}
        key = json.dumps(timed, sort_keys=True, default=str)
        if key not in measured:
            measured[key] = measure(candidate)
        return measured[key]

    resolved: dict[str, Any] = dict(settings)
    recorded: dict[str, Any] = {}
    size = None
    if chooses_size(settings):
        size, recorded[AUTO] = choose(settings, facts.train_tokens, costs_of, elapsed, facts.divides)
        resolved = apply(recorded[AUTO], settings)
    if facts.base is not None:
        return tune(settings, facts, costs_of, elapsed, memory)
    if resolved.get("torch_compile") == AUTO:
        resolved["torch_compile"] = False
        seconds = 60 * settings.get("minutes", 0)
        if facts.steps is not None:
            seconds = facts.steps * step_seconds(costs_of(resolved), resolved)
        resolved["torch_compile"] = compiling_pays(seconds)
    lines = _describe(resolved, recorded)
    if "minutes" in settings:
        fitted, counted = _fill(resolved, facts.train_tokens, size, costs_of, elapsed)
        resolved, recorded = {**resolved, **fitted}, {**recorded, **counted}
        is_limited = counted.get("limited_by_text", False)
        lines += (_time(settings, fitted["max_steps"], counted["seconds_per_step"], is_limited),)
    return Resolved(resolved, recorded, lines)


def _fill(
    settings: Mapping[str, Any], tokens: int, size: Size | None, measure: Measure, elapsed: Callable[[], float]
) -> tuple[dict[str, int], dict[str, Any]]:
    """The steps that fill the minutes, with the teachers, as far as more help; and what a checkpoint records."""
    teachers, costs, most = teacher_settings(settings), measure(settings), MOST_STEPS
    if size is not None:
        most = size.most_steps(tokens, costs.tokens_per_step, bool(teachers))
    each = measure(timed_as(settings)) if teachers else costs
    taught = fitting = costs.taught_by(len(teachers), each)
    spent = elapsed()
    if teachers and "max_steps" in teachers[0]:
        spent += len(teachers) * teacher_seconds(each, teachers[0])
    elif teachers:  # each takes as many steps as the run itself
        spent += len(teachers) * around_steps(each)
        fitting = taught.with_steps_of(len(teachers), each)
    fitted = fit(fitting, settings, most, spent)
    counted: dict[str, Any] = {"seconds_per_step": step_seconds(taught, settings)}
    if fitted["max_steps"] == most:
        counted["limited_by_text"] = True
    return fitted, counted


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
    return Resolved(resolved, recorded, _describe(resolved, recorded))


def budget(resolved: Resolved) -> dict[str, Any]:
    """What `run.json` says of the minutes of a run; empty for a run without."""
    if "minutes" not in resolved.settings:
        return {}
    return {
        "minutes": resolved.settings["minutes"],
        "seconds_per_step": resolved.recorded["seconds_per_step"],
        "limited_by_text": resolved.recorded.get("limited_by_text", False),
    }


def _describe(settings: Mapping[str, Any], recorded: Mapping[str, Any]) -> tuple[str, ...]:
    """The size that was chosen, and the teachers, in words."""
    if AUTO not in recorded:
        return ()
    fields = json.loads(settings["model_overrides"])
    dropout = f", dropout {fields['hidden_dropout']}" if fields["hidden_dropout"] else ""
    lines = [f"auto: {fields['num_hidden_layers']} layers of width {fields['hidden_size']}{dropout}"]
    if "teacher_overrides" in recorded[AUTO]:
        why = "the text is short for the time: " if "teachers" in recorded[AUTO] else ""
        what = f"{settings['teachers']} teachers are" if settings["teachers"] > 1 else "a teacher is"
        steps = json.loads(settings["teacher_overrides"])["max_steps"]
        lines.append(f"{why}{what} trained first, in {steps:,} steps, to learn from")
    return tuple(lines)


# ---- A pretrained model --------------------------------------------------------------------------------------------


def tune(
    settings: Mapping[str, Any], facts: Facts, measure: Measure, elapsed: Callable[[], float], memory: tuning.Memory
) -> Resolved:
    """Decide how to fine-tune a pretrained model, as `resolve` does."""
    assert facts.base is not None
    compiles = settings.get("torch_compile") == AUTO
    if compiles:
        settings = {**settings, "torch_compile": compiling_pays(60 * settings.get("minutes", 0))}
    base, tokens = facts.base, float(facts.train_tokens)
    if facts.examples is not None:  # a batch has one example where a text has a window
        base, tokens = replace(base, longest=min(facts.examples[1], base.longest or facts.examples[1])), math.inf
    chosen = tuning.tune(settings, base, tokens, memory)
    tuned: dict[str, Any] = {**settings, **chosen}
    windows = tuned["per_device_train_batch_size"] * facts.processes * settings.get("gradient_accumulation_steps", 1)
    passes = settings.get("num_train_epochs", tuning.PASSES)
    samples = facts.train_tokens / tuned["context_length"] if facts.examples is None else facts.examples[0]
    steps: float = settings.get("max_steps") or passes * samples / windows
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
    if given := settings.keys() & {"eval_steps", "save_steps"}:  # the best weights are saved where they are evaluated
        fitted["eval_steps"] = fitted["save_steps"] = settings[given.pop()]
    chosen |= {name: value for name, value in fitted.items() if name not in settings}
    resolved = {**chosen, **settings}
    if compiles and costs is None:
        seconds = resolved["max_steps"] * resolved["gradient_accumulation_steps"] * measure(tuned).step
        resolved["torch_compile"] = compiling_pays(seconds)
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
    interval = settings.get("eval_steps", settings.get("save_steps", 0))
    step = costs.step + (each / interval if interval >= 1 else 0.0)  # with its share of the evaluations
    seconds -= before * costs.evaluation + (0.0 if interval >= 1 else evaluations * each)
    if seconds < step:
        needed = minutes + (step - seconds) / (1 - RESERVE) / 60
        raise ArgumentError(
            f"--minutes {minutes:g} is too short: loading, evaluation and one step take {needed:.1f} minutes"
        )
    return before, evaluations, seconds / step
