"""The record of a run: `run.json`, from which its model card is written.

record = read_run(Path("out/quickstart"))
print(summary(record))
"""

import dataclasses
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState

from ..data.encode import RunData
from ..errors import UserError
from ..files import written
from ..training.hardware import hardware_facts
from ..training.metrics import bits_per_character, perplexity
from .settings import Arguments


RUN_FILE = "run.json"
_PLACES = ("output_dir", "resume_from_checkpoint", "push_to_hub")
_PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "datasets", "huggingface_hub")


class RecordError(UserError, ValueError):
    """A `run.json` cannot be read, or is not the record of a run."""


# ---- Reading and writing -------------------------------------------------------------------------------------------


def read_run(folder: Path) -> dict[str, Any]:
    """What `run.json` in `folder` holds.

    Raises:
        RecordError: It is missing, or not a JSON object in UTF-8.
    """
    path = folder / RUN_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecordError(f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x}") from error
    except ValueError as error:
        raise RecordError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise RecordError(f"{path} is not the record of a run: it must be a JSON object")
    return record


def write_run(folder: Path, record: dict[str, Any]) -> None:
    """Write `run.json`, so that it is complete or absent."""
    text = json.dumps(plain(record), indent=2, ensure_ascii=False, allow_nan=False)
    with written(folder / RUN_FILE) as partial:
        partial.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def plain(value: Any) -> Any:
    """`value` in the types of JSON, whatever it is: settings may hold any object that a user passes.

    Numbers that JSON does not have (NaN and infinities) become None. Enums become their values, dataclasses and
    objects with a `to_dict` become dictionaries, sets become lists; everything else becomes its string.
    """
    if isinstance(value, Enum):
        return plain(value.value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "to_dict") and not isinstance(value, type):
        return plain(value.to_dict())
    return str(value)


# ---- What a record says --------------------------------------------------------------------------------------------


class Clock(TrainerCallback):
    """Seconds of training, over all interruptions of a run, and of its teachers.

    Every row of the Trainer's log gets them as `seconds`. A resumed run continues to count from the last row in its
    checkpoint: the time between that row and the interruption is not counted.
    """

    def __init__(self):
        self.before, self.began = 0.0, None
        self.earlier = 0.0  # of the teachers

    def seconds(self) -> float:
        return self.before + (0.0 if self.began is None else time.perf_counter() - self.began)

    def on_train_begin(self, args, state, control, **kwargs):
        self.before = next((row["seconds"] for row in reversed(state.log_history) if "seconds" in row), self.earlier)
        self.began = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        state.log_history[-1]["seconds"] = round(self.seconds(), 3)

    def on_train_end(self, args, state, control, **kwargs):
        self.before, self.began = self.seconds(), None


def run_facts(
    given: Mapping[str, Any], budget: Mapping[str, Any], args: Arguments, data: RunData, model: Any
) -> dict[str, Any]:
    """What `run.json` says of a run before it trains: arguments, environment, data, model.

    Args:
        given: The settings that were given or decided, with their values.
        budget: The minutes, and what they amounted to; empty for a run without.
    """
    training, prompt = args.training, args.data.sample_prompt
    return {
        "arguments": publishable({name: value for name, value in given.items() if name != "minutes"}),
        **({"budget": dict(budget)} if budget else {}),
        "environment": {
            **describe_environment(training.device),
            "choices": hardware_facts(training, getattr(data.train, "context", math.inf), model.config),
        },
        "data": data.facts,
        "parameters": model.num_parameters(),
        "prompt": data.prompt if prompt is None else prompt,
        "lora_rank": args.model.lora_r,
        **origin(args.model.model_name_or_path),
    }


def make_record(
    facts: Mapping[str, Any],
    state: TrainerState,
    *,
    step: int,
    loss: float,
    tokens_per_step: int,
    seconds: float,
    sample: str,
) -> dict[str, Any]:
    """The contents of `run.json`, from which the card is rendered.

    Args:
        facts: Arguments, environment, data and model.
        step: The step whose weights have the validation loss `loss`, in nats per token.
        seconds: Of training.
    """
    data = facts["data"]

    def per_character(loss: float) -> float:
        return bits_per_character(loss, data["validation_targets"], data["validation_characters"])

    evaluated = (row for row in state.log_history if "eval_loss" in row)
    before = next((row["eval_loss"] for row in evaluated if row["step"] == 0), None)
    results = {
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_character": per_character(loss),
        **({} if before is None else {"loss_before": before, "bits_per_character_before": per_character(before)}),
        "best_step": step,
        "steps": state.global_step,
        "train_seconds": seconds,
        "tokens_seen": state.global_step * tokens_per_step,
    }
    return {**facts, "results": results, "sample": sample, "log_history": state.log_history}


def summary(record: dict[str, Any]) -> str:
    """The result of a finished run in one line."""
    results = record["results"]
    bits = f"{results['bits_per_character']:.3f} bits per character,"
    if "bits_per_character_before" in results:
        before, after = results["bits_per_character_before"], results["bits_per_character"]
        bits = f"bits per character {before:.3f} before, {after:.3f}"
    return (
        f"validation loss {results['loss']:.4f} nats per token, {bits} "
        f"after {results['train_seconds']:.0f} s of training"
    )


def origin(name_or_path: str | None) -> dict[str, Any]:
    """Where a fine-tuned model comes from: the base model's name on the Hub, for the card's metadata, and its title."""
    if name_or_path is None:
        return {"base_model": None, "fine_tuned_from": None}
    is_local = os.path.isdir(name_or_path)
    name = Path(name_or_path).resolve().name if is_local else name_or_path
    return {"base_model": None if is_local else name, "fine_tuned_from": name}


def publishable(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a recipe to repeat a run needs: no tokens, no places, and only the last part of each path."""
    return {
        name: _last_part(plain(value))
        for name, value in arguments.items()
        if not (name in _PLACES or name.startswith("hub_") or name.endswith("token"))
    }


def _last_part(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _last_part(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_last_part(item) for item in value]
    return Path(value).name if isinstance(value, str) and os.path.exists(value) else value


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Date, commit, versions and hardware, without paths, user or host names."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "hardware": _hardware(device),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the clone that this code runs from, marked if files differ from it; None if it is installed."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # A virtual environment may lie in the clone of something else.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit} with changes" if status.stdout.strip() else commit


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(device)}"
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = (line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
            processor = next(models, processor)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = f"{cores} cores of {processor}"
    return name if device.type == "cpu" else f"{device.type}, {name}"
