"""A time budget: how many steps a run can take in the minutes that it is given.

costs = measure(model, training, prepared)  # seconds that a step, an evaluation and a checkpoint take
settings = fit(costs, training, given)  # {"max_steps": 2140, "warmup_steps": 100, "eval_steps": 214, "save_steps": 214}

A run is measured before it starts, on copies of the model. With the settings that fit, it is then an ordinary run.
"""

import bisect
import copy
import dataclasses
import gc
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch.utils.data import Subset
from transformers import PrinterCallback, TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..data.prepare import Prepared
from ..training.arguments import ArgumentError, CausalLMTrainingArguments
from ..training.checkpointing import Checkpoints
from ..training.hardware import compiling_pays, switch_on_compilation
from ..training.trainer import CausalLMTrainer


MOST_STEPS = 10**9
MOST_EVALUATIONS = 10
EVALUATION_SHARE = 0.2  # of the time, at most, for evaluations, samples and checkpoints
WARMUP_SHARE = 0.05  # of the steps, at most
RESERVE = 0.02  # of the time, because steps are not equally fast
LEAST_STEPS = 3  # to time, besides the first one
MEASURING_SHARE, MEASURING_SECONDS = 0.02, 5.0  # how long steps are timed, the lesser of both
EVALUATION_BATCHES = 4
FITTED = ("max_steps", "warmup_steps", "eval_steps", "eval_delay", "save_steps")
MEASURED = ("seconds_per_step",)

now = time.perf_counter


@dataclass(frozen=True)
class Costs:
    """Seconds that the parts of a run take on this machine.

    Attributes:
        start: From the beginning of training to the end of the first step.
        step: A later step.
        short_step: A later step while `short_context` applies.
        evaluation: The evaluation of the whole validation split.
        checkpoint: A checkpoint, with the sample that is written before it.
    """

    start: float
    step: float
    short_step: float
    evaluation: float
    checkpoint: float


@dataclass(frozen=True)
class Budget:
    """What the minutes of a run amount to; empty for a run without.

    Attributes:
        settings: Values for names in `FITTED`.
        measured: `seconds_per_step`, the mean over the steps.
    """

    settings: dict[str, int] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)

    def ordinary(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The settings `given`, as those of a run with a number of steps, which is the same run."""
        return {**{name: value for name, value in given.items() if name != "minutes"}, **self.settings}


def resolve(
    model,
    args: CausalLMTrainingArguments,
    prepared: Prepared,
    given: Mapping[str, Any],
    checkpoint: Path | None,
    callbacks: Iterable[TrainerCallback],
    report: Callable[[str], None],
    most_steps: int = MOST_STEPS,
) -> Budget:
    """Set the number of steps of a run with minutes: the checkpoint's, or one that `measure` and `fit` find.

    Args:
        args: Its `max_steps` and what follows from it are set.
        prepared: Windows for `MOST_STEPS` steps, of which the run takes as many as it needs.
        given: The settings that were given, by name.
        checkpoint: To resume from.
        callbacks: As for `measure`.
        most_steps: After which the run ends before its time.

    Raises:
        ArgumentError: There is not enough time for one step.
    """
    if args.minutes is None:
        return Budget()
    if checkpoint is not None:
        budget = _recorded(Checkpoints.recorded_run(checkpoint), given)
    else:
        costs = measure(model, args, prepared, callbacks)
        seconds = step_seconds(costs, args)
        budget = Budget(fit(costs, args, given, most_steps), {"seconds_per_step": seconds})
        steps = budget.settings["max_steps"]
        why = ", because more would not help with so little text" if steps == most_steps else ""
        report(f"{args.minutes:g} minutes: {steps:,} steps of {1000 * seconds:.1f} ms{why}")
    for name, value in budget.settings.items():
        setattr(args, name, value)
    prepared.train.samples = len(prepared.train) // prepared.steps * args.max_steps
    prepared.steps = args.max_steps
    return budget


def choose_compilation(
    model,
    args: CausalLMTrainingArguments,
    prepared: Prepared,
    checkpoint: Path | None,
    callbacks: Iterable[TrainerCallback],
) -> None:
    """Replace `torch_compile="auto"` in `args`: as the checkpoint's run has it, else if the run is long enough.

    Args:
        callbacks: As for `measure`.
    """
    if not args.compile_if_it_pays:
        return
    args.compile_if_it_pays = False  # from here on it is decided; what is measured is not compiled
    if checkpoint is not None:
        pays = bool(Checkpoints.recorded_run(checkpoint).get("torch_compile"))
    elif args.minutes is not None:
        pays = compiling_pays(60 * args.minutes)
    else:
        pays = compiling_pays(args.max_steps * step_seconds(measure(model, args, prepared, callbacks), args))
    (pays,) = broadcast_object_list([pays])
    if pays:
        switch_on_compilation(args)


def _recorded(run: Mapping[str, Any], given: Mapping[str, Any]) -> Budget:
    """The budget in the manifest of a checkpoint. If it has none, `check_same_run` will say so."""
    settings = {name: run[name] for name in FITTED if name in run and name not in given}
    return Budget(settings, {name: run[name] for name in MEASURED if name in run})


# ---- From seconds to steps -----------------------------------------------------------------------------------------


def check_budget(args: CausalLMTrainingArguments, given: Mapping[str, Any]) -> None:
    """Raise `ArgumentError` if the number of steps is given beside the minutes that determine it."""
    if args.minutes is not None:
        for name in ("max_steps", "num_train_epochs"):
            if name in given:
                raise ArgumentError(f"give either --minutes or --{name}, not both: each determines the number of steps")


def fit(
    costs: Costs, args: CausalLMTrainingArguments, given: Mapping[str, Any], most_steps: int = MOST_STEPS
) -> dict[str, int]:
    """The settings with which training, evaluations, samples and checkpoints included, takes `args.minutes`.

    Args:
        given: The settings that were given, by name: the others are adapted to the number of steps.
        most_steps: As for `resolve`.

    Returns:
        Values for names in `FITTED`. If one evaluation would take too much of the time, they postpone it beyond the
        last step.

    Raises:
        ArgumentError: There is not enough time for one step.
    """
    assert args.minutes is not None
    seconds = (1 - RESERVE) * 60 * args.minutes - costs.start
    most = EVALUATION_SHARE * max(seconds, 0) / (costs.evaluation + costs.checkpoint)
    evaluations = min(MOST_EVALUATIONS, int(most))
    saves = evaluations or 2
    keeps_intervals = bool(given.keys() & {"eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps"})

    def total(steps: int) -> float:
        times = _intervals(args, steps) if keeps_intervals else (evaluations, saves)
        return steps * step_seconds(costs, args) + times[0] * costs.evaluation + times[1] * costs.checkpoint

    steps = min(bisect.bisect_right(range(1, MOST_STEPS), seconds, key=total), most_steps)
    if steps < 1:
        raise ArgumentError(
            f"--minutes {args.minutes:g} is too short: one step takes {costs.start + total(1):.1f} seconds, with what "
            "training does before and after it"
        )
    settings = {"max_steps": steps}
    if "warmup_steps" not in given:
        settings["warmup_steps"] = min(int(args.warmup_steps), math.ceil(WARMUP_SHARE * steps))
    if not keeps_intervals:
        settings["eval_steps"] = settings["save_steps"] = math.ceil(steps / saves)
        if not evaluations:
            settings["eval_delay"] = steps + 1
    return settings


def step_seconds(costs: Costs, args: CausalLMTrainingArguments) -> float:
    """The mean over the steps of a run, with windows cut by `short_context` and whole ones."""
    short = args.short_context_fraction if args.short_context else 0.0
    return short * costs.short_step + (1 - short) * costs.step


def steps_in_time(model, args: CausalLMTrainingArguments, prepared: Prepared) -> float:
    """How many steps of `model` take `args.minutes`, which `measure` finds; with evaluations, they take longer."""
    assert args.minutes is not None
    return 60 * args.minutes / step_seconds(measure(model, args, prepared), args)


def _intervals(args: CausalLMTrainingArguments, steps: int) -> tuple[int, int]:
    """How often a run of so many steps evaluates and saves with the intervals of `args`."""

    def times(strategy: str, interval: float) -> int:
        if strategy != "steps":
            return int(strategy != "no")  # an epoch of the Trainer is the whole run
        return math.ceil(steps / interval if interval >= 1 else 1 / interval)

    evaluations = times(args.eval_strategy, args.eval_steps)
    return evaluations, evaluations if args.save_strategy == "best" else times(args.save_strategy, args.save_steps)


# ---- Measuring -----------------------------------------------------------------------------------------------------


def measure(
    model, args: CausalLMTrainingArguments, prepared: Prepared, callbacks: Iterable[TrainerCallback] = ()
) -> Costs:
    """Train copies of the model for a few seconds in a temporary folder; the model itself is not changed.

    All processes must call this together; all get what the main process measured.

    Args:
        prepared: Windows for `MOST_STEPS` steps.
        callbacks: Those of the run that take time.
    """
    whole = _time_steps(model, args, prepared, callbacks, short_context=None)
    start, short_step = whole.start, whole.step
    if args.short_context:
        short = _time_steps(model, args, prepared, callbacks, args.short_context)
        start, short_step = start + short.start, short.step  # with torch.compile, both kinds of windows are compiled
    (costs,) = broadcast_object_list([dataclasses.replace(whole, start=start, short_step=short_step)])
    return costs


def _time_steps(model, args, prepared: Prepared, callbacks, short_context: int | None) -> Costs:
    windows = len(prepared.validation)
    timed = min(windows, EVALUATION_BATCHES * args.per_device_eval_batch_size * args.world_size)
    minutes = math.inf if args.minutes is None else args.minutes
    stopwatch = _Stopwatch(min(MEASURING_SECONDS, MEASURING_SHARE * 60 * minutes))
    folder = Path(args.output_dir) / ".measuring"
    try:
        trainer = CausalLMTrainer(
            copy.deepcopy(model),
            _throw_away(args, folder, short_context),
            train_dataset=prepared.train,
            eval_dataset=Subset(prepared.validation, range(timed)),
            callbacks=[stopwatch, *callbacks],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    finally:
        if args.process_index == 0:
            shutil.rmtree(folder, ignore_errors=True)
    del trainer
    gc.collect()  # the Trainer and its callbacks refer to each other, and to the copy's memory on the device
    return stopwatch.costs(windows / timed)


def _throw_away(args: CausalLMTrainingArguments, folder: Path, short_context: int | None) -> CausalLMTrainingArguments:
    """Arguments of a run that leaves no trace: the stopwatch says when it evaluates, saves and ends."""
    args = copy.copy(args)
    args.output_dir, args.short_context, args.max_steps = str(folder), short_context, MOST_STEPS
    args.eval_strategy = args.logging_strategy = IntervalStrategy.NO
    args.save_strategy = SaveStrategy.NO
    args.report_to, args.disable_tqdm = [], True
    args.push_to_hub = args.load_best_model_at_end = args.eval_on_start = False
    return args


class _Stopwatch(TrainerCallback):
    """Times the first step, more steps for some seconds, an evaluation and a checkpoint; then it ends training."""

    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_begin(self, args, state, control, **kwargs):
        self.began = now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            self.first = _finished(args)
        elif state.global_step > LEAST_STEPS:
            (is_enough,) = broadcast_object_list([now() - self.first >= self.seconds])
            if is_enough:
                self.last, self.steps = _finished(args), state.global_step - 1
                control.should_evaluate = control.should_save = control.should_training_stop = True

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated = _finished(args)

    def on_save(self, args, state, control, **kwargs):
        self.saved = _finished(args)

    def costs(self, scale: float) -> Costs:
        """What was measured; `scale` is the whole validation split over the part that was evaluated."""
        step = (self.last - self.first) / self.steps
        return Costs(
            start=self.first - self.began,
            step=step,
            short_step=step,
            evaluation=scale * (self.evaluated - self.last),
            checkpoint=self.saved - self.evaluated,
        )


def _finished(args: CausalLMTrainingArguments) -> float:
    """The time at which the device has done everything that was asked of it."""
    if args.device.type != "cpu":
        torch.accelerator.synchronize()
    return now()
