"""What makes two runs the same run, and so from which checkpoint a run may resume.

checkpoint = find_checkpoint(training_args, log=print)
identity = identify(given, training_args, facts, tokenizer, model)
check_same_run(checkpoint, identity, log=print)
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from tokenization import tokenizer_state

from ..errors import UserError
from ..files import UserPath
from ..training.arguments import CausalLMTrainingArguments
from ..training.checkpointing import Checkpoints
from ..training.hardware import precision
from .record import RUN_FILE, plain
from .settings import defaults
from .teachers import begun


# Why a setting may change when a run is resumed, and which: names and patterns. All other settings must stay the same.
MAY_CHANGE: dict[str, tuple[str, ...]] = {
    "where the run is stored and uploaded": ("output_dir", "resume_from_checkpoint", "push_to_hub", "hub_*"),
    "where the text comes from; its sha256 is compared": (
        *("train_file", "dataset", "dataset_config", "text_column", "streaming", "encoding"),
    ),
    "how the number of steps is given; the number is compared": ("max_steps", "num_train_epochs"),
    "how the precision is given; the precision is compared": ("precision", "bf16", "fp16"),
    "how the windows of a step are spread; their number is compared": (
        *("per_device_train_batch_size", "gradient_accumulation_steps"),
    ),
    "how a step is computed, not what": (
        *("use_cpu", "torch_compile", "fsdp", "fsdp_config", "deepspeed", "accelerator_config", "parallelism_config"),
        *("ddp_*", "dataloader_*", "gradient_checkpointing*", "activation_checkpointing*"),
        "per_device_eval_batch_size",
    ),
    "what is saved, not what is trained": (
        *("save_total_limit", "load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
    ),
    "what the model card says": ("language", "license"),
    "samples, which do not touch the random numbers of training": (
        *("sample_prompt", "sample_length", "eval_sample_length"),
    ),
    "logging": ("log*", "report_to", "run_name", "disable_tqdm", "trackio_*"),
}
# Facts with the name of a setting: the value that it resolved to.
RESOLVED = ("max_steps", "precision")


class ResumeError(UserError, ValueError):
    """The output folder or a checkpoint belongs to another run, or there is none to resume from."""


def may_change(name: str) -> bool:
    """Whether a run may be resumed with another value of this setting."""
    return any(fnmatch(name, pattern) for patterns in MAY_CHANGE.values() for pattern in patterns)


def identify(
    given: Mapping[str, Any], args: CausalLMTrainingArguments, facts: Mapping[str, Any], tokenizer, model
) -> dict[str, Any]:
    """What makes a run this run: the settings that must not change, and facts about text, tokenizer, model and steps.

    Args:
        given: The settings that were given, by name; the others have their defaults.
        facts: What `run.json` says about the data.
    """
    return plain(
        {
            **{name: value for name, value in given.items() if not may_change(name)},
            "text (sha256)": facts["sha256"],
            "tokenizer (sha256)": hashlib.sha256(tokenizer_state(tokenizer).encode()).hexdigest(),
            "tokens to train and validate": [facts["train_tokens"], facts["validation_tokens"]],
            "context_length": facts["context_length"],
            "windows": facts.get("windows"),
            "parameters": model.num_parameters(),
            "max_steps": args.max_steps,
            "windows per step": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
            "precision": precision(args),
            "torch_compile": args.torch_compile,  # for `auto`; it may change
        }
    )


def differences(recorded: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """How two identities differ, as `name was X and is now Y`; a setting that one lacks has its default there."""
    default, found = plain(defaults()), []
    unused = {"preset", "model_overrides"} if recorded.get("model_name_or_path") else set()  # which were not refused
    unused |= set() if "tokenizer" in recorded else {"vocab_size"}
    for name in dict.fromkeys(name for name in [*recorded, *identity] if name not in unused):
        before, now = (run.get(name, default.get(name)) for run in (recorded, identity))
        if before != now and (name in RESOLVED or not may_change(name)):
            found.append(f"{name} was {before} and is now {now}")
    return found


def resume_mode(args: CausalLMTrainingArguments) -> str:
    """What `resume_from_checkpoint` asks for: "auto", "true", "false", or the path of a checkpoint."""
    wanted = str(args.resume_from_checkpoint or "false")
    return wanted.lower() if wanted.lower() in ("auto", "true", "false") else UserPath(wanted)


def check_output_dir(args: CausalLMTrainingArguments) -> None:
    """Raise `ResumeError` if the output folder cannot be used as `resume_from_checkpoint` says."""
    output_dir, mode = Path(args.output_dir), resume_mode(args)
    _require_writable(output_dir)
    is_path = mode not in ("auto", "true", "false")
    if is_path and not os.path.isdir(mode):
        raise ResumeError(f"{mode} is not a checkpoint; --resume_from_checkpoint takes auto, true, false or one")
    if (output_dir / RUN_FILE).exists():
        raise ResumeError(f"{output_dir} holds a finished run; choose another --output_dir, or delete the folder")
    is_begun = bool(Checkpoints(output_dir).all() or begun(output_dir))
    is_elsewhere = is_path and os.path.dirname(os.path.realpath(mode)) != os.path.realpath(output_dir)
    if mode == "true" and not is_begun:
        raise ResumeError(f"there is no checkpoint to resume from in {output_dir}")
    if is_begun and (mode == "false" or is_elsewhere):
        raise ResumeError(
            f"{output_dir} holds an unfinished run; resume it with --resume_from_checkpoint auto, choose another "
            "--output_dir, or delete the folder"
        )


def _require_writable(folder: Path) -> None:
    places = [folder.absolute(), *folder.absolute().parents]
    for path in places:
        if path.exists() and not path.is_dir():
            raise ResumeError(f"{path} is not a folder; choose another --output_dir")
    nearest = next(path for path in places if path.exists())
    if not os.access(nearest, os.W_OK):
        raise ResumeError(f"cannot write in {nearest}: it is read-only; choose another --output_dir")


def find_checkpoint(args: CausalLMTrainingArguments, log: Callable[[str], None]) -> Path | None:
    """The undamaged checkpoint to resume from; None to train from the first step.

    Raises:
        ResumeError: The one that `resume_from_checkpoint` names is damaged.
        CheckpointError: All checkpoints of the output folder are damaged.
    """
    checkpoints, mode = Checkpoints(args.output_dir), resume_mode(args)
    found: list[Path | None] = [None]
    if args.process_index == 0 and mode in ("auto", "true"):
        with checkpoints.locked():
            found = [checkpoints.newest(log)]
    elif args.process_index == 0 and mode != "false":
        if reason := checkpoints.damage(Path(mode)):
            raise ResumeError(f"{mode} is not an intact checkpoint: {reason}")
        found = [Path(mode)]
    if args.world_size > 1:
        broadcast_object_list(found)
    return found[0]


def recorded_run(checkpoint: Path) -> dict[str, Any]:
    """What the manifest of a checkpoint, or of teachers, says about its run: an identity, and what the run decided."""
    return Checkpoints.recorded_run(checkpoint)


def recorded_windows(checkpoint: Path | None) -> dict[str, bool]:
    """How the run of a checkpoint draws and begins its windows, as `encode` takes it: as its version did."""
    if checkpoint is None:
        return {}
    recorded = recorded_run(checkpoint).get("windows")  # version 0.1 did not record it
    return {"replacement": recorded is None, "begins": "after token" in (recorded or "")}


def check_same_run(checkpoint: Path | None, identity: Mapping[str, Any], log: Callable[[str], None]) -> None:
    """Log from which checkpoint the run `identity` resumes; None is allowed.

    Raises:
        ResumeError: The checkpoint belongs to another run; the message lists the differences.
    """
    if checkpoint is None:
        return
    if different := differences(recorded_run(checkpoint), identity):
        raise ResumeError(
            f"{checkpoint} belongs to another run: {'; '.join(different)}; restore that, or choose another --output_dir"
        )
    log(f"resuming from {checkpoint.name}")
