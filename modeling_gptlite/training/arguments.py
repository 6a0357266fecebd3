"""The Trainer's arguments, with defaults for small language models: each argument acts or is refused.

args = CausalLMTrainingArguments("out/model", max_steps=1000, optimizer="muon")
"""

import copy
import math
import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass, fields, make_dataclass
from typing import Any, Literal

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.hf_argparser import string_to_bool
from transformers.integrations import integration_utils
from transformers.utils import is_liger_kernel_available

from ..errors import UserError, check, setting
from .hardware import multiplies_bf16


class ArgumentError(UserError, ValueError):
    """An argument has a value that is not allowed, or that would have no effect."""


class BoolOrAuto:
    """The type of a flag that is true, false or auto; calling it gives a bool or "auto"."""

    def __new__(cls, value: Any) -> Any:
        return value if value == "auto" else string_to_bool(value)


# ---- What happens to each argument ---------------------------------------------------------------------------------


# Only this value is allowed, and this is why. Where it is not the Trainer's default, it is set here; the reason is the
# argument's `--help`.
FIXED: dict[str, tuple[Any, str]] = {
    "do_train": (True, "Always true: this trains."),
    "do_eval": (True, "Always true: the finished model is evaluated; --eval_strategy says when else."),
    "do_predict": (False, "Always false: there is no test split."),
    "remove_unused_columns": (False, "Always false: batches hold what the model reads."),
    "train_sampling_strategy": ("sequential", "Always sequential: the windows are in random order already."),
    "data_seed": (None, "Not used: windows are drawn from --seed."),
    "length_column_name": ("length", "Not used: windows are not grouped by length."),
    "label_names": (None, "Not used: the labels are the next tokens."),
    "ignore_data_skip": (False, "Always false: a resumed run must see the windows after the checkpoint's."),
    "dataloader_drop_last": (False, "Always false: the validation loss counts the last batch too."),
    "dataloader_in_order": (True, "Always true: a resumed run must see the same windows in the same steps."),
    "auto_find_batch_size": (
        False,
        "Always false: it would change the number of windows in a step; lower --per_device_train_batch_size and raise "
        "--gradient_accumulation_steps instead.",
    ),
    "save_only_model": (False, "Always false: without the state of the optimizer a run cannot be resumed exactly."),
    "enable_jit_checkpoint": (False, "Always false: SIGTERM saves a checkpoint and ends training without it."),
    "logging_nan_inf_filter": (False, "Always false: a loss that is not finite ends training."),
    "prediction_loss_only": (True, "Always true: evaluation computes the loss and keeps no predictions."),
    "bf16_full_eval": (False, "Always false: evaluation uses --precision, the final one fp32."),
    "fp16_full_eval": (False, "Always false: evaluation uses --precision, the final one fp32."),
    "eval_accumulation_steps": (None, "Not used: evaluation keeps no predictions."),
    "eval_do_concat_batches": (True, "Always true: evaluation keeps no predictions."),
    "eval_use_gather_object": (False, "Always false: evaluation keeps no predictions."),
    "batch_eval_metrics": (False, "Always false: evaluation computes the loss only."),
    "include_for_metrics": ([], "Always empty: evaluation computes the loss only."),
}

_TRAINERS = {field.name: field for field in fields(TrainingArguments)}
_FixedArguments: Any = make_dataclass(
    "_FixedArguments",
    [
        (name, _TRAINERS[name].type, setting(value, reason))
        for name, (value, reason) in FIXED.items()
        if name in _TRAINERS
    ],
    bases=(TrainingArguments,),
)


def _default(argument) -> Any:
    return argument.default_factory() if callable(argument.default_factory) else argument.default


# ---- The arguments -------------------------------------------------------------------------------------------------


@dataclass
class CausalLMTrainingArguments(_FixedArguments):
    """The Trainer's arguments with other defaults, and more of its own.

    Besides those in `FIXED`, these defaults differ from those of `TrainingArguments`:

        output_dir: out/model
        resume_from_checkpoint: auto
        per_device_train_batch_size: 64
        per_device_eval_batch_size: 64
        learning_rate: 0.001
        lr_scheduler_type: cosine_with_min_lr
        warmup_steps: 100
        weight_decay: 0.1
        adam_beta2: 0.99
        eval_strategy: steps
        eval_steps: 250
        save_steps: 250
        save_total_limit: 2
        load_best_model_at_end: True
        metric_for_best_model: loss
        logging_steps: 10
        disable_tqdm: True

    Raises:
        ArgumentError: An argument has a value that is not allowed, or that would have no effect.
    """

    output_dir: str = setting("out/model", "Folder for the model and its checkpoints.")
    resume_from_checkpoint: str | None = setting(
        "auto",
        "auto: resume the unfinished run in the output folder if there is one. true: there must be one. "
        "false: there must be none. Or the folder of a checkpoint.",
    )
    optimizer: Literal["adamw", "muon", "trainer"] = setting(
        "adamw",
        "adamw: with weight decay for matrices and embeddings, as in nanoGPT. muon: Muon for the hidden "
        "matrices, AdamW for all other parameters. trainer: the one that --optim names.",
    )
    muon_learning_rate: float = setting(0.02, "Peak learning rate of Muon; that of AdamW is --learning_rate.")
    muon_momentum_warmup: float = setting(
        0.0, "Fraction of the steps over which Muon's momentum rises from 0.85 to 0.95; 0: always 0.95."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "Of the forward and backward pass. auto: bf16 if the hardware multiplies it, else fp32."
    )
    min_learning_rate_ratio: float = setting(
        0.1, "The cosine schedule ends at this fraction of the peak learning rates."
    )
    short_context: int | None = setting(None, "Sequence-length warm-up: train on windows of this many tokens first.")
    short_context_fraction: float = setting(0.6, "Fraction of the steps that --short_context applies to.")
    torch_compile: BoolOrAuto = setting(
        False,
        "Compile the model: slower to start, faster steps. auto: if the run is long enough.",
        nargs="?",
        const=True,
    )
    minutes: float | None = setting(
        None, "Instead of --max_steps: the time of the whole run, until the finished model is saved."
    )

    per_device_train_batch_size: int = setting(64, "Windows per step on each device.")
    per_device_eval_batch_size: int = setting(64, "Windows per evaluation batch.")
    learning_rate: float = setting(1e-3, "Peak learning rate of AdamW.")
    weight_decay: float = setting(0.1, "Decoupled weight decay of all matrices.")
    adam_beta2: float = setting(0.99, "Decay rate of AdamW's second moment.")
    lr_scheduler_type: str = setting("cosine_with_min_lr", "Learning rate schedule, by its name in transformers.")
    warmup_steps: float = setting(100, "Steps of learning rate warm-up; below 1, a fraction of all steps.")
    eval_strategy: str = setting("steps", "When to evaluate: no, steps or epoch.")
    eval_steps: float = setting(250, "Steps between evaluations of the whole validation split.")
    save_strategy: str = setting("steps", "When to save a checkpoint: no, steps, epoch or best.")
    save_steps: float = setting(250, "Steps between checkpoints.")
    save_total_limit: int | None = setting(2, "Number of checkpoints to keep; the best one is always kept.")
    load_best_model_at_end: bool = setting(True, "Save the weights with the lowest validation loss, not the last.")
    metric_for_best_model: str | None = setting(
        "loss", "Which metric selects the best weights: loss, the only one there is."
    )
    logging_steps: float = setting(10, "Steps between logged training losses.")
    disable_tqdm: bool | None = setting(True, "Do not show the Trainer's progress bar beside the status line.")

    def __post_init__(self):
        if not torch.accelerator.is_available():
            self.use_cpu = True  # else the Trainer looks for a GPU, and refuses bf16
        _check_fixed(self)
        _check_rules(self)
        self._resolve_defaults()
        args: Any = self
        compile_later = args.torch_compile == "auto"
        args.torch_compile = args.torch_compile is True  # or the Trainer's arguments would switch it on
        try:
            super().__post_init__()
        except (ImportError, KeyError, NotImplementedError, OSError, TypeError, ValueError) as error:
            raise ArgumentError(" ".join(str(error).split())) from error
        if compile_later:
            args.torch_compile = "auto"
        _check_resolved(self)

    def _resolve_defaults(self) -> None:
        """Replace `auto` and None by what suits this hardware and these models."""
        args: Any = self
        if args.precision == "auto" and (launched := _launched_precision()) in ("bf16", "fp16"):
            setattr(args, launched, True)
        if args.precision == "auto" and not (args.bf16 or args.fp16):
            device = None if args.use_cpu else torch.accelerator.current_accelerator()
            args.bf16 = multiplies_bf16(device.type if device else "cpu")
        elif args.precision != "auto":
            args.bf16, args.fp16 = args.precision == "bf16", args.precision == "fp16"
        if args.lr_scheduler_type == "cosine_with_min_lr" and not args.lr_scheduler_kwargs:
            args.lr_scheduler_kwargs = {"min_lr_rate": args.min_learning_rate_ratio}
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # there are none, and looking for them costs time at each step
        if torch.cuda.is_available() and not args.use_cpu and args.accelerator_config is None:
            args.accelerator_config = {"non_blocking": True}  # else each copied batch waits for the step before it

    def for_trainer(self) -> "CausalLMTrainingArguments":
        """A copy without what the Trainer would do in another way than `CausalLMTrainer`.

        Its own upload includes the pickled arguments, with the token; it evaluates each resumed run at the start; and
        with a limit of one checkpoint, it deletes the one that a run resumes from.
        """
        copied = copy.copy(self)
        copied.push_to_hub = copied.eval_on_start = False
        copied.save_total_limit = None
        return copied


def _launched_precision() -> str:
    """`--mixed_precision` of `accelerate launch`, which the Trainer would use whatever `precision` says."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


# ---- Checks --------------------------------------------------------------------------------------------------------


def check_arguments(args: CausalLMTrainingArguments) -> None:
    """Check all arguments again, after some were assigned to.

    Raises:
        ArgumentError: One has a value that is not allowed, or that would have no effect.
    """
    _check_fixed(args)
    _check_rules(args)
    _check_resolved(args)


def _check_fixed(args) -> None:
    for name, (value, reason) in FIXED.items():
        if getattr(args, name, value) != value:
            raise ArgumentError(f"--{name} cannot be {getattr(args, name)}. {reason}")


def _at_least(lowest: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: lowest <= value < math.inf, f"at least {lowest}"


def _above(lowest: float) -> tuple[Callable[[Any], bool], str]:
    return lambda value: lowest < value < math.inf, f"above {lowest}"


def _one_of(*names: Any) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in names, f"one of {', '.join(map(str, names))}"


# What the value of one argument must be; None is always allowed.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "optimizer": _one_of("adamw", "muon", "trainer"),
    "per_device_train_batch_size": _at_least(1),
    "per_device_eval_batch_size": _at_least(1),
    "gradient_accumulation_steps": _at_least(1),
    "learning_rate": _at_least(0),
    "muon_learning_rate": _at_least(0),
    "muon_momentum_warmup": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "weight_decay": _at_least(0),
    "adam_beta1": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "adam_beta2": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "adam_epsilon": _above(0),
    "max_grad_norm": _at_least(0),
    "warmup_steps": _at_least(0),
    "min_learning_rate_ratio": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "label_smoothing_factor": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "neftune_noise_alpha": _at_least(0),
    "short_context": _at_least(1),
    "minutes": _above(0),
    "short_context_fraction": (lambda value: 0 <= value <= 1, "between 0 and 1"),
    "seed": (lambda value: 0 <= value < 1 << 32, "between 0 and 4,294,967,295"),
    "eval_steps": _above(0),
    "eval_delay": _at_least(0),
    "save_steps": _above(0),
    "logging_steps": _above(0),
    "dataloader_num_workers": _at_least(0),
    "dataloader_prefetch_factor": _at_least(1),
    "dataloader_multiprocessing_context": _one_of(*multiprocessing.get_all_start_methods()),
    "torch_compile": _one_of(True, False, "auto"),
    "torch_compile_mode": _one_of("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"),
    "metric_for_best_model": _one_of("loss", "eval_loss"),
    "greater_is_better": (lambda value: not value, "false: a lower loss is better"),
    "hub_strategy": _one_of("end", "every_save"),  # the others would upload the state of the optimizer
}


def _check_rules(args) -> None:
    rules = (
        (name, (value := getattr(args, name)) is None or is_allowed(value), allowed)
        for name, (is_allowed, allowed) in _VALUES.items()
    )
    check(args, rules, ArgumentError)
    if not (args.max_steps > 0 or 0 < args.num_train_epochs < math.inf):
        raise ArgumentError(f"--num_train_epochs must be above 0, got {args.num_train_epochs}; or give --max_steps")
    _check_precision(args)
    _check_optimizer(args)
    if args.torch_compile == "auto" and (args.torch_compile_mode or args.torch_compile_backend):
        raise ArgumentError(
            "--torch_compile_mode and --torch_compile_backend always compile; with them, --torch_compile cannot be auto"
        )
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ArgumentError("--use_liger_kernel needs a package that is not installed; pip install liger-kernel")
    if args.minutes is not None and (args.deepspeed or args.fsdp):
        way = "deepspeed" if args.deepspeed else "fsdp"
        raise ArgumentError(f"--minutes cannot measure the speed of --{way}; give --max_steps")
    if args.fsdp and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        raise ArgumentError("--fsdp needs several processes; start them with torchrun or accelerate launch")


def _check_precision(args) -> None:
    if args.precision != "auto" and (args.bf16 or args.fp16) and not getattr(args, args.precision, False):
        raise ArgumentError(
            f"--precision {args.precision} contradicts --bf16 {args.bf16} and --fp16 {args.fp16}; give only one of them"
        )
    if _launched_precision() != "no" and args.precision not in ("auto", _launched_precision()):
        raise ArgumentError(
            f"--precision {args.precision} contradicts --mixed_precision of accelerate launch; leave out one of them"
        )
    if args.use_cpu and (args.fp16 or args.precision == "fp16"):
        raise ArgumentError("fp16 does not train on a CPU; give --precision bf16 or fp32")


def _check_optimizer(args) -> None:
    """What only some optimizers and schedules read is given with those only."""
    if args.optimizer != "trainer" and args.optim != _default(_TRAINERS["optim"]):
        optim = getattr(args.optim, "value", args.optim)
        raise ArgumentError(
            f"--optim {optim} needs --optimizer trainer; with --optimizer {args.optimizer} it has no effect"
        )
    if args.optimizer != "trainer" and (args.optim_args or args.optim_target_modules):
        raise ArgumentError("--optim_args and --optim_target_modules need --optimizer trainer")
    if args.optimizer != "muon" and args.muon_momentum_warmup:
        raise ArgumentError(f"--muon_momentum_warmup needs --optimizer muon; with {args.optimizer} it has no effect")
    has_floor = args.lr_scheduler_type == "cosine_with_min_lr" and (
        args.lr_scheduler_kwargs in (None, {"min_lr_rate": args.min_learning_rate_ratio})
    )
    if args.min_learning_rate_ratio != 0.1 and not has_floor:
        raise ArgumentError(
            "--min_learning_rate_ratio needs --lr_scheduler_type cosine_with_min_lr and no --lr_scheduler_kwargs"
        )


def _check_resolved(args) -> None:
    """Checks of what transformers made of the arguments."""
    _check_reports(args.report_to)
    _check_schedule(args)
    if args.optimizer == "trainer":
        _check_optim(args)
    if args.torch_compile_backend not in (None, *(backends := torch.compiler.list_backends())):
        raise ArgumentError(f"--torch_compile_backend must be one of {', '.join(backends)}")
    if args.accelerator_config.split_batches and args.world_size > 1:
        raise ArgumentError(
            "--accelerator_config cannot have split_batches: --per_device_train_batch_size is for each process"
        )


def _check_reports(report_to: list[str]) -> None:
    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in report_to:
        if name not in known:
            raise ArgumentError(f"--report_to {name}: unknown; allowed are none, all, {', '.join(sorted(known))}")
        if name not in integration_utils.get_available_reporting_integrations():
            raise ArgumentError(f"--report_to {name}: it is not installed; pip install {name}")


def _check_schedule(args) -> None:
    """Build the schedule for one parameter: unknown or missing `lr_scheduler_kwargs` show before training."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 2, args.lr_scheduler_kwargs)
    except (AttributeError, TypeError, ValueError) as error:
        name = args.lr_scheduler_type.value
        raise ArgumentError(f"--lr_scheduler_kwargs {args.lr_scheduler_kwargs} for {name}: {error}") from error


def _check_optim(args) -> None:
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ImportError, TypeError, ValueError) as error:
        if "pass a" not in str(error):  # "You need to pass a model": there is none yet
            raise ArgumentError(f"--optim {args.optim.value}: {error}") from error
