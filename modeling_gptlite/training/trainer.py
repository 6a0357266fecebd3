"""The Hugging Face Trainer for causal language models on packed windows.

trainer = CausalLMTrainer(model, args, train_dataset=RandomWindows(...), eval_dataset=EvaluationWindows(...))
trainer.train()
"""

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import EvalLoopOutput, HubStrategy
from transformers.utils import PushInProgress

from ..data.windows import in_pieces, whole_batch
from ..hub import hub_errors, plain_card, push_folder
from ..loading import accept_older_transformers
from .arguments import ArgumentError, CausalLMTrainingArguments, check_arguments
from .callbacks import StopOnDivergence
from .checkpointing import Checkpoints
from .distillation import DistillationLoss
from .hardware import give_back_memory, keep_freed_memory, training_attention
from .head import TrainingLoss, by_token, plain_head, training_loss
from .metrics import mean_loss, token_losses, window_losses
from .optim import build_adamw, build_muon, warm_up_momentum


__all__ = ["CausalLMTrainer", "CausalLMTrainingArguments", "whole_model"]


class CausalLMTrainer(Trainer):
    """A `Trainer` that does these things differently:

    * Optimizers: AdamW that decays matrices only, or Muon for the hidden matrices (`optimizers_of`).
    * Training: the fastest attention for the hardware (`train`); early windows in pieces (`training_step`), and early
      momentum low (`_WarmUpMomentum`).
    * Loss: label smoothing of labels that are shifted already, the logits of a large vocabulary in chunks, or what
      `teachers` expect besides the text (`compute_loss`); a loss that is not finite ends training.
    * Evaluation: the mean loss over every target of the split (`evaluation_loop`); with `eval_on_start` also before the
      first step, and not again when a run is resumed.
    * Checkpoints: complete or absent, with a manifest (`_save_checkpoint`); the best one is checked before it is loaded
      (`_load_best_model`); no pickled arguments beside the weights (`save_model`); one process to an output folder.
    * Hub: what `hub.PUBLISHED` lists, in one commit (`push_to_hub`). The Trainer's own upload is switched off.
    """

    args: CausalLMTrainingArguments
    model: Any
    push_in_progress: Any

    def __init__(
        self,
        model: PreTrainedModel,
        args: CausalLMTrainingArguments,
        card: Callable[["CausalLMTrainer"], str | None] | None = None,
        run: dict[str, Any] | None = None,
        teachers: Sequence[PreTrainedModel] = (),
        **kwargs,
    ):
        """As for `Trainer`, without `compute_metrics`.

        Args:
            card: Renders the model card for a checkpoint that is pushed during training.
            run: Plain values that identify the run, for the manifests of its checkpoints.
            teachers: Models with the same vocabulary; the model also learns what they expect (`DistillationLoss`).

        Raises:
            ArgumentError: An argument has a value that is not allowed, or that would have no effect.
        """
        _check_trainer(args, kwargs)
        if teachers and args.label_smoothing_factor:
            raise ArgumentError("label_smoothing_factor would have no effect: the loss is that of the teachers")
        self.card, self.run, self.teachers = card, run or {}, teachers
        self.checkpoints = Checkpoints(args.output_dir)
        self.pushes, self.save_total_limit = args.push_to_hub, args.save_total_limit
        self._saving_in: str | None = None
        self._use_cache = model.config.use_cache
        kwargs.setdefault("data_collator", whole_batch)
        super().__init__(model, args.for_trainer(), optimizer_cls_and_kwargs=optimizers_of(args), **kwargs)
        if self.pushes:
            with hub_errors(args.hub_model_id or str(args.output_dir)):
                self.init_hf_repo()
        self.add_callback(_RelocateBest(self.checkpoints))
        if args.eval_on_start:
            self.add_callback(_EvaluateFirst(self))
        self.add_callback(StopOnDivergence)
        if args.muon_momentum_warmup:
            self.add_callback(_WarmUpMomentum)

    # ---- Training --------------------------------------------------------------------------------------------------

    def train(self, *args, **kwargs):
        """As for `Trainer`, with the attention that trains fastest on this hardware.

        Raises:
            CheckpointError: Another process trains in the output folder.
        """
        self.began = time.time()
        keep_freed_memory()
        own_attention = self.model.config._attn_implementation
        if faster := training_attention(self.args, getattr(self.train_dataset, "context", math.inf), self.model.config):
            for model in (self.model, *self.teachers):
                model.set_attn_implementation(faster)
        if self.teachers:
            teachers = [teacher.to(self.args.device) for teacher in self.teachers]
            self.compute_loss_func = DistillationLoss(teachers, self.args)
        if self.compute_loss_func is None:
            is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
            self.compute_loss_func = training_loss(self.model, self.args, is_sharded)
        try:
            with self.checkpoints.locked() if self.args.should_save else contextlib.nullcontext():
                return super().train(*args, **kwargs)
        finally:
            self.model.set_attn_implementation(own_attention)
            self.model.config.use_cache = self._use_cache  # the Trainer switches it off, and would save it so

    def training_step(self, model, inputs, *args, **kwargs):
        """As for `Trainer`; early in training, windows are cut into pieces of `short_context` tokens."""
        short = self.args.short_context
        if short and self.state.global_step < self.args.short_context_fraction * self.state.max_steps:
            inputs = in_pieces(inputs, short, getattr(self.train_dataset, "begin", None))
        return super().training_step(model, inputs, *args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        """As for `Trainer`; a `TrainingLoss` or `DistillationLoss` gets the targets instead of the model."""
        loss = self.compute_loss_func
        if not isinstance(loss, TrainingLoss | DistillationLoss):
            return super().compute_loss(model, inputs, *args, **kwargs)
        inputs = {name: tensor for name, tensor in inputs.items() if name != "shift_labels"}
        if isinstance(loss, DistillationLoss):
            loss.ask(inputs["input_ids"])
            return super().compute_loss(model, inputs, *args, **kwargs)
        with loss.headless():
            return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluation_loop(self, dataloader, description, *_, metric_key_prefix="eval", **__) -> EvalLoopOutput:
        """Mean loss per target over all windows. (The Trainer's mean of batch means overweights the last batch.)"""
        if self.is_in_train:
            model = self.model_wrapped
        else:
            model = self.accelerator.prepare_model(self.model, evaluation_mode=True)
        model.eval()
        head = plain_head(self.model, model)
        per_window = []
        with torch.no_grad():
            for batch in dataloader:
                targets = batch["shift_labels"]
                (losses,) = by_token(model, head, batch["input_ids"], targets, token_losses)
                per_window.append(self.accelerator.gather_for_metrics(window_losses(losses, targets)))
        metrics = {f"{metric_key_prefix}_loss": mean_loss(per_window)}
        return EvalLoopOutput(None, None, metrics, len(dataloader.dataset))  # type: ignore[arg-type]  # no predictions

    # ---- Checkpoints -----------------------------------------------------------------------------------------------

    def _determine_best_metric(self, metrics, trial) -> bool:
        """As for `Trainer`; the best weights are saved at once, whenever the next checkpoint is due."""
        is_best = super()._determine_best_metric(metrics, trial)
        self.control.should_save |= is_best and self.args.load_best_model_at_end
        return is_best or self.control.should_save  # with `save_strategy` best, the Trainer saves if this is true

    def _save_checkpoint(self, model, trial) -> None:
        """As for `Trainer`, in a temporary folder that is sealed with a manifest and renamed."""
        step, main = self.state.global_step, self.args.should_save
        with self.checkpoints.write(step, self.run, main, self.accelerator.wait_for_everyone) as folder:
            self._saving_in = str(folder.parent)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving_in = None
            best = self.checkpoints.folder(self.state.best_global_step or 0)
            if best.name == folder.name or best.is_dir():
                self.state.best_model_checkpoint = str(best)
            if main:
                self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
        if main:
            self.checkpoints.rotate(self.save_total_limit, self.state.best_model_checkpoint)
        if self.pushes:
            self._push_checkpoint(self.checkpoints.folder(step))
        self.accelerator.wait_for_everyone()

    def _get_output_dir(self, trial) -> str:
        """The temporary folder while a checkpoint is saved; the Trainer writes `checkpoint-STEP` into it."""
        return self._saving_in or super()._get_output_dir(trial)

    def _load_best_model(self) -> None:
        """As for `Trainer`, if the checkpoint is not damaged."""
        give_back_memory()  # of the steps; the weights are read into new memory
        self.checkpoints.check_best(Path(str(self.state.best_model_checkpoint)))
        super()._load_best_model()

    @property
    def best_step(self) -> int:
        """The step whose weights the trained model has."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        return self.state.global_step if best is None else int(Path(best).name.rpartition("-")[2])

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As for `Trainer`, without `training_args.bin`: a pickle with the Hub token and local paths in it."""
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            folder = Path(str(output_dir or self.args.output_dir))
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            accept_older_transformers(folder)

    # ---- The Hub ---------------------------------------------------------------------------------------------------

    def push_to_hub(  # type: ignore[override]  # the Trainer's annotation forgets the future
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        card: str | None = None,
    ) -> CommitInfo | Future | None:
        """Save the model, and upload what `hub.PUBLISHED` lists of the output folder in one commit.

        Args:
            blocking: Return after the upload; otherwise return a future of the `CommitInfo` at once.
            card: The `README.md` to upload instead of the folder's.

        Raises:
            HubError: The folder cannot be published, or the upload failed.
        """
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        settings = {"token": token, "revision": revision, "private": private}
        return self.push_saved(commit_message, card, blocking, **settings)

    def push_saved(
        self, commit_message: str | None, card: str | None = None, blocking: bool = True, **settings
    ) -> CommitInfo | Future | None:
        """`push_to_hub` of a folder in which the model is saved; for the main process alone."""
        if push := getattr(self, "push_in_progress", None):
            push.wait_until_done()
        given = {name: value for name, value in settings.items() if value is not None}
        return self._push(str(self.args.output_dir), commit_message, card, run_as_future=not blocking, **given)

    def _push_checkpoint(self, folder: Path) -> None:
        """Push a checkpoint in the background, unless the push before is still running."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        running = self.push_in_progress
        if running is not None and not running.is_done() and not self.args.hub_always_push:
            return
        message = f"Training in progress, step {self.state.global_step}"
        job = self._push(str(folder), message, self.card(self) if self.card else None, run_as_future=True)
        jobs: Any = [*(running.jobs if running else []), job]
        self.push_in_progress = PushInProgress(jobs)

    def _push(self, folder: str, message: str | None, card: str | None, run_as_future: bool, **given):
        args = self.args
        repo_id = self.hub_model_id or args.hub_model_id or Path(str(args.output_dir)).resolve().name
        if card is None and not os.path.exists(os.path.join(folder, "README.md")):
            model = self.accelerator.unwrap_model(self.model)
            card = plain_card(repo_id, model.config.model_type, is_adapter=hasattr(model, "peft_config"))
        settings = {"token": args.hub_token, "revision": args.hub_revision, "private": args.hub_private_repo, **given}
        return push_folder(
            Path(folder), repo_id, card, message or "Upload model", run_as_future=run_as_future, **settings
        )


def _check_trainer(args: CausalLMTrainingArguments, given: dict[str, Any]) -> None:
    """Refuse what a `Trainer` takes and this one would ignore."""
    check_arguments(args)
    if args.minutes is not None and args.max_steps < 1:
        raise ArgumentError("minutes work with `start_from`, which measures the speed; a trainer needs max_steps")
    if args.torch_compile == "auto":
        raise ArgumentError(
            "torch_compile auto works with `start_from`, which knows the length; a trainer takes True or False"
        )
    for name in ("compute_metrics", "preprocess_logits_for_metrics"):
        if given.get(name) is not None:
            raise ArgumentError(f"{name} would not be called: evaluation computes the loss only, and keeps no logits")
    context = getattr(given.get("train_dataset"), "context", None)
    if args.short_context and (context is None or context % args.short_context):
        raise ArgumentError(f"short_context {args.short_context} must divide the windows' context of {context}")


def optimizers_of(args: CausalLMTrainingArguments) -> Any:
    """The Trainer's `optimizer_cls_and_kwargs`: a factory and its arguments, or None if the Trainer chooses."""
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
    return factories[args.optimizer]


def whole_model(model: PreTrainedModel) -> PreTrainedModel:
    """The model itself; if its parameters are sharded (FSDP2), a gathered copy on the CPU with the weights on rank 0.

    All processes must call this together.
    """
    if not any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    copied = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    if torch.distributed.get_rank() == 0:
        copied.load_state_dict(weights)
    return copied


class _RelocateBest(TrainerCallback):
    """A resumed run finds its best checkpoint beside the others, also if the folder was moved; its log may change."""

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints

    def on_train_begin(self, args, state, control, **kwargs):
        state.compute_steps(args, state.max_steps)
        best = self.checkpoints.folder(state.best_global_step or 0)
        if best.is_dir():
            state.best_model_checkpoint = str(best)


class _EvaluateFirst(TrainerCallback):
    """`eval_on_start`, once: the Trainer's own evaluates a resumed run again."""

    def __init__(self, trainer: CausalLMTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        if state.global_step == 0:
            self.trainer.evaluate()


class _WarmUpMomentum(TrainerCallback):
    """Muon's momentum depends only on the step, so that a resumed run has the same one."""

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        warm_up_momentum(optimizer, state.global_step / (args.muon_momentum_warmup * state.max_steps))
