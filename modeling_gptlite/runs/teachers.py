"""The teachers of a run: models that it trains first, on the same text with other seeds, and learns from.

teachers = Teachers(teacher_settings({"teachers": 2, "preset": "modern-1m", "max_steps": 900}), prepare, log)
trainer.teachers = teachers.train(identity)
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..files import UserPath, written
from ..loading import load_model
from ..training.arguments import ArgumentError
from ..training.checkpointing import MANIFEST
from ..training.timing import Costs
from .recipes import override
from .record import RUN_FILE, read_run
from .settings import DataArguments, defaults, read
from .steps import shorten_warmup, step_seconds


FOLDER = "teachers"  # in the output folder, until the run is finished
EVALUATIONS = 2  # of each teacher, with a checkpoint each
_OF_THE_RUN = ("minutes", "teachers", "teacher_overrides")
_OF_EACH: dict[str, Any] = {
    **{"eval_strategy": "steps", "save_strategy": "steps", "eval_sample_length": 0, "sample_length": 0},
    **{"torch_compile": False, "push_to_hub": False, "report_to": "none", "resume_from_checkpoint": "auto"},
}
# A teacher reads the text of the run, in the run's tokens; the rest of these follows from its number and its steps.
_FIXED = {*_OF_THE_RUN, *_OF_EACH, "seed", "output_dir", "eval_steps", "save_steps", "tokenizer", "model_name_or_path"}
_FIXED |= {"num_train_epochs"}  # steps are counted
_FIXED |= {each.name for each in fields(DataArguments)} - {"context_length"}


def read_overrides(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`teacher_overrides`, with the types of the settings; `model_overrides` is a dictionary.

    Raises:
        ArgumentError: It is not a JSON object of settings that a teacher can have for itself.
    """
    try:
        overrides = dict(json.loads(settings.get("teacher_overrides", "{}")))
        own = overrides.pop("model_overrides", {})
        own = dict(json.loads(own) if isinstance(own, str) else own)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"--teacher_overrides must be a JSON object of settings: {error}") from error
    if fixed := sorted(_FIXED & overrides.keys()):
        raise ArgumentError(f"--teacher_overrides cannot set {fixed[0]}: each teacher has that of the run")
    return {**read(overrides), "model_overrides": own}


def teacher_settings(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The settings of the run of each teacher; an empty list for a run without.

    They are those of the run itself, but for `teacher_overrides`, the seed, and what is shown and published.

    Raises:
        ArgumentError: `teacher_overrides` is not a JSON object, or has settings that cannot be set.
    """
    values = {**defaults(), **settings}
    overrides = read_overrides(settings)
    own = overrides.pop("model_overrides")
    given = {name: value for name, value in override(dict(settings), overrides).items() if name not in _OF_THE_RUN}
    own = {**json.loads(given.get("model_overrides", "{}")), **own}
    each = {**given, **overrides, **_OF_EACH, "model_overrides": json.dumps(own)}
    if (steps := each.get("max_steps", 0)) > 0:
        each |= {name: math.ceil(steps / EVALUATIONS) for name in ("eval_steps", "save_steps")}
        if "warmup_steps" not in overrides:
            each["warmup_steps"] = shorten_warmup(values["warmup_steps"], steps)
    folder = Path(UserPath(values["output_dir"]), FOLDER)
    numbers = range(1, values["teachers"] + 1)
    return [{**each, "seed": values["seed"] + number, "output_dir": str(folder / str(number))} for number in numbers]


def timed_as(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run whose steps take as long as those of a teacher; the run's own where nothing differs."""
    overrides = read_overrides(settings)
    own = overrides.pop("model_overrides")
    # With their own number of steps, teachers are still timed for as long as the minutes of the run allow.
    timed = {**override(dict(settings), overrides.keys() - {"max_steps"}), **overrides}
    if own:
        timed["model_overrides"] = json.dumps({**json.loads(timed.get("model_overrides", "{}")), **own})
    if timed.get("torch_compile"):
        timed["torch_compile"] = _OF_EACH["torch_compile"]
    return timed


def teacher_seconds(costs: Costs, settings: Mapping[str, Any]) -> float:
    """What the run of a teacher takes."""
    return settings["max_steps"] * step_seconds(costs, settings) + around_steps(costs)


def around_steps(costs: Costs) -> float:
    """What the run of a teacher takes besides its steps; it writes no samples."""
    without = costs.start - costs.sample + costs.finish - costs.last_sample
    return without + EVALUATIONS * (costs.evaluation - costs.sample + costs.checkpoint)


class Teachers:
    """Models that are trained one after the other, each as a run of its own, which resumes as every run does.

    Args:
        settings: Of each one's run.
        prepare: Returns the `Run` for such settings.
        log: Called with a line before each run.
    """

    def __init__(
        self,
        settings: Sequence[Mapping[str, Any]],
        prepare: Callable[[Mapping[str, Any]], Any],
        log: Callable[[str], None],
    ):
        self.settings, self.prepare, self.log = settings, prepare, log
        self.folders = [Path(each["output_dir"]) for each in settings]
        self.manifest = self.folders[0].with_name(MANIFEST)

    def train(self, identity: Mapping[str, Any], check_stop: Callable[[], None]) -> list[Any]:
        """The trained models; those that an interrupted run has finished are loaded. All processes must call it.

        Args:
            identity: What the run that learns from them must have in common with the one that is resumed.
            check_stop: Called after each run; raises an error if a signal came between two of them.
        """
        state = PartialState()
        if state.is_main_process and not self.manifest.exists():
            with written(self.manifest) as partial:
                partial.write_text(json.dumps({"run": identity}, indent=2) + "\n", encoding="utf-8")
        state.wait_for_everyone()
        unfinished = [not (folder / RUN_FILE).exists() for folder in self.folders]
        state.wait_for_everyone()
        for number, (each, trains) in enumerate(zip(self.settings, unfinished, strict=True), 1):
            if trains:
                self.log(f"teacher {number} of {len(self.settings)}")
                self.prepare(each).train()
                check_stop()
        state.wait_for_everyone()
        return [load_model(str(folder)) for folder in self.folders]

    def seconds(self) -> float:
        """Seconds of training, of all of them."""
        return sum(read_run(folder)["results"]["train_seconds"] for folder in self.folders)

    def remove(self) -> None:
        """Delete their folders: what they know, the finished model knows."""
        shutil.rmtree(self.manifest.parent, ignore_errors=True)


def begun(output_dir: str | Path) -> Path | None:
    """The folder whose manifest says what a run decided that was interrupted while its teachers were trained."""
    folder = Path(output_dir) / FOLDER
    return folder if (folder / MANIFEST).is_file() else None
