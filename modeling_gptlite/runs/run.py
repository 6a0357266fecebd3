"""A prepared run: it trains, evaluates, samples, and leaves a finished folder.

run = start_from("quickstart")
record = run.train()
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.encode import RunData
from ..decoding import sampling_defaults
from ..files import apply_umask, flush
from ..loading import accept_older_transformers
from ..training.callbacks import (
    SAMPLES_FILE,
    LiveLine,
    Samples,
    StopOnSignal,
    check_finite,
    render_samples,
    write_sample,
)
from ..training.hardware import autocast, describe
from ..training.metrics import evaluate_loss
from ..training.trainer import CausalLMTrainer, whole_model
from .advice import advise, suggest_base
from .card import render_card
from .plots import plot_run, published_levels
from .record import Clock, make_record, summary, write_run
from .resume import ResumeError, check_output_dir, check_same_run, find_checkpoint
from .settings import Arguments
from .teachers import Teachers
from .tuning import TUNED


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP ended the run, with a checkpoint or after the finished model was saved.

    Attributes:
        signal: The signal's number.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number


class Run:
    """A prepared run; `start` and `start_from` make it.

    Attributes:
        trainer: The `CausalLMTrainer`; callbacks can be added before `train`.
        args: The settings, as groups of arguments: `model`, `data`, `training`.
        data: The windows to train and to validate.
        facts: What `run.json` says before training: arguments, environment, data, model.
        identity: What a resumed run must have in common with its checkpoint.
        checkpoint: The one to resume from; None to train from the first step.
        teachers: From which the model learns; they are trained first. None: it learns from the text alone.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        args: Arguments,
        data: RunData,
        facts: dict[str, Any],
        identity: dict[str, Any],
        checkpoint: Path | None,
        log: Callable[[str], None],
        teachers: Teachers | None = None,
    ):
        self.tokenizer, self.args, self.data, self.facts = tokenizer, args, data, facts
        self.identity, self.checkpoint, self.log, self.teachers = identity, checkpoint, log, teachers
        self.trainable = model.num_parameters(only_trainable=True)
        self.stop, self.clock = StopOnSignal(), Clock()
        callbacks = [self.clock, LiveLine(data.tokens_per_step), self.stop]
        if length := args.data.eval_sample_length:
            callbacks.append(Samples(tokenizer, facts["prompt"], length, args.training.seed))
        self.trainer = CausalLMTrainer(
            model,
            args.training,
            train_dataset=data.train,
            eval_dataset=data.validation,
            processing_class=tokenizer,
            callbacks=callbacks,
            card=self.interim_card,
            run=identity,
        )
        self.trainer.pushes &= not facts["lora_merged"]  # a checkpoint is an adapter, and only the whole is published
        self.trainer.remove_callback(transformers.PrinterCallback)

    def train(self) -> dict[str, Any]:
        """Train from the checkpoint on, evaluate in full precision, sample, and save the output folder.

        With `push_to_hub`, the folder is published. All processes must call it together. A second call resumes after an
        interruption.

        Returns:
            The record of the run, as in `run.json`; on processes other than the main one it is empty.

        Raises:
            Interrupted: Ctrl-C, SIGTERM or SIGHUP stopped training; repeat the call, or the program, to resume.
            UserError: Another process trains in the output folder, a file cannot be written, training diverged, or the
                Hub refuses the upload.
        """
        trainer, training = self.trainer, self.args.training
        if trainer.state.global_step:
            check_output_dir(training)
            self.checkpoint = find_checkpoint(training, self.log)
            if self.checkpoint is None:
                raise ResumeError("this run has taken steps and left no checkpoint: prepare it again")
            check_same_run(self.checkpoint, self.identity, self.log)
        self._announce()
        is_main = trainer.is_world_process_zero()
        with trainer.checkpoints.locked() if is_main else contextlib.nullcontext(), self.stop:
            if self.teachers:
                trainer.teachers = self.teachers.train(self.identity, self._check_stop)
                self.clock.earlier = self.teachers.seconds()
                self.log("the model learns from the text and its teachers")
                transformers.set_seed(training.seed)  # whether they were trained now or before
            trainer.train(resume_from_checkpoint=self.checkpoint and str(self.checkpoint))
            if self.stop.received and (step := trainer.state.global_step) < training.max_steps:
                message = f"stopped at step {step:,} with a checkpoint; repeat the command to resume"
                raise Interrupted(self.stop.received, message)
            model = whole_model(
                trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
            )
            record = self._finish(model) if is_main else {}
            if self.teachers and is_main:
                self.teachers.remove()
        if self.stop.received:
            message = f"stopped after the finished model was saved in {training.output_dir}"
            raise Interrupted(self.stop.received, message)
        return record

    def _check_stop(self) -> None:
        if self.stop.received:
            raise Interrupted(self.stop.received, "stopped before the next model; repeat the command to resume")

    def _announce(self) -> None:
        """What is trained on what, in two lines."""
        data = self.facts["data"]
        kind = "examples" if "examples" in data else "tokens"
        train, validation = data[f"train_{kind}"], data[f"validation_{kind}"]
        self.log(f"{data['name']}: {train:,} {kind} to train on, {validation:,} to validate")
        parameters = self.facts["parameters"]
        some = f"{self.trainable:,} of " if self.trainable < parameters else ""
        choices = describe(self.facts["environment"]["choices"])
        self.log(f"{some}{parameters:,} parameters, {self.data.tokens_per_step:,} tokens per step, {choices}")

    # ---- The end ---------------------------------------------------------------------------------------------------

    def _finish(self, model: PreTrainedModel) -> dict[str, Any]:
        """Evaluate and sample the trained model, save it with its record, card and plot, publish it if asked."""
        trainer, training = self.trainer, self.args.training
        step = trainer.best_step
        loss = self._loss(model, step)
        if self.facts["lora_merged"]:
            trainer.model = model = model.merge_and_unload()  # type: ignore[operator]  # a PeftModel
            self.facts["parameters"] = model.num_parameters()
        stops = not {"examples", "documents"}.isdisjoint(self.facts["data"])
        model.generation_config = sampling_defaults(self.tokenizer, stops)
        text, length = "", self.args.data.sample_length
        if length:
            ends = model.generation_config.eos_token_id
            text = write_sample(model, self.tokenizer, self.facts["prompt"], length, training.seed, ends)
        record = {**self._record(step, loss, text), "finished": True}
        with trainer.checkpoints.disk_errors("the finished model"):
            self._save(model, record)
        self.log(f"\n{text}\n")
        self.log(f"{summary(record)}; saved in {training.output_dir}")
        is_limited = self.facts.get("budget", {}).get("limited_by_text", False)
        if advice := advise(record["log_history"], is_limited, has_teachers=self.teachers is not None):
            self.log(advice)
        is_pretrained, tokens = bool(self.facts["fine_tuned_from"]), self.facts["data"]["train_tokens"]
        if advice := suggest_base(self.args.data.train_file, tokens, training.minutes, is_pretrained):
            self.log(advice)
        if training.push_to_hub:
            commit = trainer.push_saved("End of training", render_card(record, str(trainer.hub_model_id)))
            self.log(f"pushed to {getattr(commit, 'repo_url', trainer.hub_model_id)}")
        return record

    def _loss(self, model: PreTrainedModel, step: int) -> float:
        """The validation loss of the weights of `step`.

        With `eval_on_start` it is the one that training measured: in the same precision as the one before training. The
        same holds for a run whose fine-tuning was chosen, which may leave out the one before.
        """
        state, training, losses = self.trainer.state, self.args.training, self._losses()
        if (training.eval_on_start or TUNED in self.identity) and step in losses:
            return losses[step]
        with autocast(training) if training.eval_on_start else contextlib.nullcontext():
            loss = evaluate_loss(model, self.data.validation, training.per_device_eval_batch_size)
        check_finite(loss, state.global_step, "validation loss")
        return loss

    def _losses(self) -> dict[int, float]:
        """The validation losses of training, by step."""
        return {int(row["step"]): row["eval_loss"] for row in self.trainer.state.log_history if "eval_loss" in row}

    def _save(self, model: PreTrainedModel, record: dict[str, Any]) -> None:
        folder, log_history = Path(self.args.training.output_dir), record["log_history"]
        model.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)  # which an adapter does not save
        self.tokenizer.save_pretrained(folder)
        accept_older_transformers(folder)
        apply_umask(folder)
        levels = published_levels(record["data"])
        plot_run(log_history, self.data.tokens_per_step, folder.name, folder / "loss.png", levels)
        if record["sample"]:
            results = record["results"]
            last = {"step": results["best_step"], "eval_loss": results["loss"], "sample": record["sample"]}
            (folder / SAMPLES_FILE).write_text(render_samples([*log_history, last]), encoding="utf-8")
        (folder / "README.md").write_text(render_card(record, folder.name), encoding="utf-8")
        for path in filter(Path.is_file, folder.iterdir()):
            flush(path)
        write_run(folder, record)  # last: its presence marks the run as finished

    def interim_card(self, trainer: CausalLMTrainer) -> str | None:
        """The card of a checkpoint that is published while training continues; None if it was not evaluated."""
        state, losses = trainer.state, self._losses()
        if state.global_step not in losses:
            return None
        return render_card(self._record(state.global_step, losses[state.global_step], ""), str(trainer.hub_model_id))

    def _record(self, step: int, loss: float, text: str) -> dict[str, Any]:
        return make_record(
            self.facts,
            self.trainer.state,
            step=step,
            loss=loss,
            tokens_per_step=self.data.tokens_per_step,
            seconds=self.clock.seconds(),
            sample=text,
        )
