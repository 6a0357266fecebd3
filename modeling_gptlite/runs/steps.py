"""The number of steps that fit into the minutes of a run, with its evaluations and checkpoints.

fitted = fit(costs, {"minutes": 10})
print(fitted)  # {"max_steps": 2140, "warmup_steps": 100, "eval_steps": 214, "save_steps": 214}
"""

import bisect
import math
from collections.abc import Mapping
from typing import Any

from ..training.arguments import ArgumentError
from ..training.timing import Costs
from .settings import defaults


MOST_STEPS = 10**9
MOST_EVALUATIONS = 10
EVALUATION_SHARE = 0.2  # of the time, at most, for evaluations, samples and checkpoints
WARMUP_SHARE = 0.05  # of the steps, at most
RESERVE = 0.04  # of the time, because later steps are slower than the first ones (`benchmarks/tuning.md`)
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
            f"--minutes {settings['minutes']:g} is too short: one step takes {needed:.1f} seconds, with what a run "
            f"does before and after it{', and its teachers' if settings.get('teachers') else ''}"
        )
    fitted: dict[str, Any] = {"max_steps": steps}
    if "warmup_steps" not in settings:
        fitted["warmup_steps"] = shorten_warmup(defaults()["warmup_steps"], steps)
    if not keeps_intervals:
        fitted["eval_steps"] = fitted["save_steps"] = math.ceil(steps / saves)
        if not evaluations:
            fitted["eval_delay"] = steps + 1
    return fitted


def shorten_warmup(warmup: float, steps: int) -> float:
    """At most `WARMUP_SHARE` of a number of steps; a fraction is one of any number."""
    return warmup if 0 < warmup < 1 else min(int(warmup), math.ceil(WARMUP_SHARE * steps))


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
