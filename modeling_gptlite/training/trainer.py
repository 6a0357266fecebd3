"""The Hugging Face Trainer with what a causal language model on packed ids needs, and nothing of the loop rewritten.

trainer = CausalLMTrainer(model, args, train_dataset=RandomWindows(...), eval_dataset=EvaluationWindows(...))
"""

import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import CommitInfo
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput, HubStrategy, rotate_checkpoints
from transformers.utils import PushInProgress, is_torch_bf16_gpu_available

from .attention import SHORT_WINDOWS
from .checkpoints import ASIDE, CheckpointError, damage, put_in_place, seal, writing
from .data import whole_batch
from .hub import push_folder
from .metrics import mean_loss, window_losses
from .optim import build_adamw, build_muon
from .report import plain_card


@dataclass
class CausalLMTrainingArguments(TrainingArguments):
    """The Trainer's arguments; some defaults suit small language models better, and four are new."""

    output_dir: str = field(default="out/model", metadata={"help": "Folder for the model and its checkpoints."})
    resume_from_checkpoint: str | None = field(
        default="auto",
        metadata={
            "help": "auto goes on with the unfinished run that the output folder holds, if there is one; true insists "
            "on one, false refuses to; or the folder of a checkpoint."
        },
    )
    optimizer: Literal["adamw", "muon", "trainer"] = field(
        default="adamw",
        metadata={
            "help": "adamw decays by dimension as nanoGPT does; muon orthogonalises the matrices' updates and uses "
            "AdamW for the rest; trainer leaves the choice to --optim."
        },
    )
    muon_learning_rate: float = field(
        default=0.02, metadata={"help": "Muon's peak learning rate; --learning_rate is AdamW's."}
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = field(
        default="auto",
        metadata={
            "help": "Arithmetic of the forward and backward pass; auto takes bf16 where the hardware multiplies it."
        },
    )
    min_learning_rate_ratio: float = field(
        default=0.1,
        metadata={"help": "The cosine schedule ends at this fraction of the peak rates."},
    )

    short_context: int | None = field(
        default=None,
        metadata={
            "help": "Tokens that the model sees at once early in training: every window is cut into such pieces."
        },
    )
    short_context_fraction: float = field(
        default=0.6, metadata={"help": "The part of the steps that --short_context is for."}
    )

    per_device_train_batch_size: int = field(default=64, metadata={"help": "Windows per step on each device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Windows per evaluation batch."})
    learning_rate: float = field(default=1e-3, metadata={"help": "AdamW's peak learning rate."})
    weight_decay: float = field(default=0.1, metadata={"help": "Decoupled weight decay of all matrices."})
    adam_beta2: float = field(default=0.99, metadata={"help": "AdamW's decay of the second moment."})
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "transformers' schedule name."})
    warmup_steps: float = field(
        default=100, metadata={"help": "Steps, or below 1 the fraction of the run, of warm-up."}
    )
    eval_strategy: str = field(default="steps", metadata={"help": "no, steps or epoch."})
    eval_steps: float = field(
        default=250, metadata={"help": "Steps between evaluations of the whole validation split."}
    )
    save_strategy: str = field(default="steps", metadata={"help": "no, steps, epoch or best."})
    save_steps: float = field(default=250, metadata={"help": "Steps between checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept; the best one is among them."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Save the weights of the best evaluation, not the last."}
    )
    metric_for_best_model: str | None = field(default="loss", metadata={"help": "What is best: the validation loss."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between readings of the training loss."})
    disable_tqdm: bool | None = field(default=True, metadata={"help": "Whether to do without the Trainer's own bar."})

    def __post_init__(self):
        # Windows come as whole batches, in the order of their numbers, ready for the model.
        self.remove_unused_columns = False
        self.train_sampling_strategy = "sequential"
        self.logging_nan_inf_filter = False  # it reads the loss back from the device at every step
        if self.lr_scheduler_type == "cosine_with_min_lr" and not self.lr_scheduler_kwargs:
            self.lr_scheduler_kwargs = {"min_lr_rate": self.min_learning_rate_ratio}
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # there are none, and looking for them costs time at each step
        if not torch.accelerator.is_available():
            self.use_cpu = True  # else `bf16` is refused for want of a GPU
        if self.short_context is not None and self.short_context < 1:
            raise ValueError(f"short_context must be at least 1, got {self.short_context}")
        if not 0 <= self.short_context_fraction <= 1:
            raise ValueError(f"short_context_fraction must lie between 0 and 1, got {self.short_context_fraction}")
        if self.precision == "auto" and not (self.bf16 or self.fp16):
            self.bf16 = self._multiplies_bf16()
        elif self.precision != "auto":
            self.bf16, self.fp16 = self.precision == "bf16", self.precision == "fp16"
        super().__post_init__()
        if self.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError("hub_strategy must be end or every_save: checkpoints with optimizer state stay at home")

    def _multiplies_bf16(self) -> bool:
        if self.use_cpu:
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return is_torch_bf16_gpu_available()


def whole_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself, or where its parameters are sharded (FSDP2) a gathered copy on the CPU, filled on rank 0.

    All processes must call it together.
    """
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    copy = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    if torch.distributed.get_rank() == 0:
        copy.load_state_dict(weights)
    return copy


class _FindBest(TrainerCallback):
    """The best checkpoint of a resumed run is beside the others, wherever the folder was when it was recorded."""

    def on_train_begin(self, args, state, control, **kwargs):
        best = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
        if best.is_dir():
            state.best_model_checkpoint = str(best)


class CausalLMTrainer(Trainer):
    """`Trainer` for packed windows: exact evaluation of the whole split, checkpoints that load anywhere."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: CausalLMTrainingArguments,
        card: Callable[["CausalLMTrainer"], str | None] | None = None,
        run: dict[str, Any] | None = None,
        **kwargs,
    ):
        """As the Trainer's.

        Args:
            card: Renders the model card of a checkpoint that is pushed while training goes on.
            run: Plain values that tell this run from others, for the manifests of its checkpoints.
        """
        self.card, self.run = card, run or {}
        self._is_saving_aside = False
        self._use_cache = model.config.use_cache
        adamw = {
            "learning_rate": args.learning_rate,
            "betas": (args.adam_beta1, args.adam_beta2),
            "eps": args.adam_epsilon,
            "weight_decay": args.weight_decay,
        }
        factories = {
            "adamw": (lambda: build_adamw, adamw),
            "muon": (lambda: build_muon, {**adamw, "muon_learning_rate": args.muon_learning_rate}),
            "trainer": None,
        }
        kwargs.setdefault("data_collator", whole_batch)
        context = getattr(kwargs.get("train_dataset"), "context", None)
        if args.short_context and (context is None or context % args.short_context):
            raise ValueError(f"short_context {args.short_context} must divide the windows' context of {context}")
        super().__init__(model, args, optimizer_cls_and_kwargs=factories[args.optimizer], **kwargs)
        self.add_callback(_FindBest)

    def train(self, *args, **kwargs):
        """As the Trainer's, with the attention that trains fastest where this runs."""
        self.began = time.time()
        chosen = self.model.config._attn_implementation
        if self._fused_attention_is_slow():
            self.model.set_attn_implementation(SHORT_WINDOWS)
        try:
            return super().train(*args, **kwargs)
        finally:
            self.model.set_attn_implementation(chosen)
            self.model.config.use_cache = self._use_cache  # the Trainer switches it off, and would save it so

    def training_step(self, model, inputs, *args, **kwargs):
        """As the Trainer's; early on, windows in pieces, because short context is cheaper and teaches as much."""
        short = self.args.short_context
        if short and self.state.global_step < self.args.short_context_fraction * self.state.max_steps:
            inputs = {name: tensor.reshape(-1, short) for name, tensor in inputs.items()}
        return super().training_step(model, inputs, *args, **kwargs)

    def _fused_attention_is_slow(self) -> bool:
        """On a CPU in bf16 and over short windows, the way back through it takes twice as long as spelt out."""
        short = getattr(self.train_dataset, "context", math.inf) <= 256
        return short and self.args.device.type == "cpu" and self.args.bf16 and not self.args.torch_compile

    def evaluation_loop(self, dataloader, description, *_, metric_key_prefix="eval", **__) -> EvalLoopOutput:
        """Mean loss per target over all windows; the Trainer's own mean of batch means weighs the last one wrongly."""
        if self.is_in_train:
            model = self.model_wrapped
        else:
            model = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        model.eval()
        per_window = []
        with torch.no_grad():
            for batch in dataloader:
                logits = model(input_ids=batch["input_ids"], use_cache=False).logits
                losses_and_counts = window_losses(logits, batch["shift_labels"])
                per_window.append(self.accelerator.gather_for_metrics(losses_and_counts))
        metrics = {f"{metric_key_prefix}_loss": mean_loss(per_window)}
        return EvalLoopOutput(None, None, metrics, num_samples=len(dataloader.dataset))

    def _save_checkpoint(self, model, trial) -> None:
        """As the Trainer's, but aside and then renamed, so that what bears a checkpoint's name is whole."""
        output_dir = Path(self._get_output_dir(trial))
        folder = self._checkpoint(self.state.global_step)
        aside = output_dir / ASIDE / folder.name
        if self.args.should_save:
            shutil.rmtree(output_dir / ASIDE, ignore_errors=True)  # of a run that was killed while it wrote
        self.accelerator.wait_for_everyone()
        with writing(folder.name, output_dir):
            self._is_saving_aside = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._is_saving_aside = False
            self.accelerator.wait_for_everyone()
            best = self.state.best_global_step and self._checkpoint(self.state.best_global_step)
            if best and (best == folder or best.is_dir()):
                self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(aside / TRAINER_STATE_NAME))
                seal(aside, self.run)
                put_in_place(aside, folder)
                (output_dir / ASIDE).rmdir()
        if self.args.should_save:
            rotate_checkpoints(
                str(output_dir), self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(folder))
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial) -> str:
        output_dir = super()._get_output_dir(trial)
        return os.path.join(output_dir, ASIDE) if self._is_saving_aside else output_dir

    def _checkpoint(self, step: int) -> Path:
        return Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}"

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        if reason := damage(best):
            raise CheckpointError(
                f"{best}, the best one, is damaged ({reason}); --load_best_model_at_end false takes the last one"
            )
        super()._load_best_model()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None):
        super()._save(output_dir, state_dict)
        # A pickle, with the Hub token and local paths inside; nothing reads it back.
        pickled = os.path.join(output_dir or self.args.output_dir, TRAINING_ARGS_NAME)
        if self.args.should_save and os.path.exists(pickled):
            os.remove(pickled)

    def push_to_hub(self, commit_message: str = "End of training", card: str | None = None, **kwargs) -> CommitInfo:
        """Publish the output folder in one commit: what `hub.PUBLISHED` names, and no more.

        Args:
            card: The `README.md` to publish instead of the folder's.
            kwargs: `revision`, `private` and `token`, as in the Trainer's.
        """
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        return self._push(self.args.output_dir, commit_message, card, run_as_future=False, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._is_saving_aside or not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return  # a checkpoint is pushed once it is whole
        if self.push_in_progress is not None and not self.push_in_progress.is_done():
            return  # the next checkpoint will do
        message = f"Training in progress, step {self.state.global_step}"
        card = self.card(self) if self.card else None
        job = self._push(checkpoint_folder, message, card, run_as_future=True)
        self.push_in_progress = PushInProgress([job])

    def _push(self, folder: str, message: str, card: str | None, run_as_future: bool, **kwargs):
        settings = {"token": self.args.hub_token, "revision": self.args.hub_revision, **kwargs}
        repo_id = self.hub_model_id or self.args.hub_model_id or Path(self.args.output_dir).resolve().name
        settings.setdefault("private", self.args.hub_private_repo)
        if card is None and not os.path.exists(os.path.join(folder, "README.md")):
            card = plain_card(repo_id)
        return push_folder(Path(folder), repo_id, card, message, run_as_future=run_as_future, **settings)
