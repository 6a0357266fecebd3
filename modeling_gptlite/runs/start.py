"""A run, from its settings to a finished folder: the command, a notebook and a test all start here.

run = start_from("quickstart", train_file="book.txt", output_dir="out/book")
record = run.train()  # the same two lines resume a run that was interrupted
"""

import contextlib
import copy
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import transformers
from transformers import GenerationConfig, TrainerCallback

from ..data.formats import LANGUAGE_MODELING
from ..data.prepare import Prepared, prepare
from ..data.sources import open_source
from ..errors import UserError
from ..hub import hub_errors
from ..loading import longest_text
from ..training import hardware, metrics
from ..training.arguments import CausalLMTrainingArguments, check_arguments
from ..training.callbacks import (
    SAMPLES_FILE,
    SAMPLING,
    LiveLine,
    Samples,
    StopOnSignal,
    check_finite,
    render_samples,
    write_sample,
)
from ..training.checkpointing import Checkpoints
from ..training.trainer import CausalLMTrainer, whole_model
from . import sizing
from .advice import advise
from .arguments import DataArguments, ModelArguments, changed, parse
from .budget import MOST_STEPS, check_budget, choose_compilation, resolve, steps_in_time
from .build import check_lora, load_model_and_tokenizer, origin
from .card import render_card
from .identity import check_output_dir, check_same_run, find_checkpoint, identify
from .plots import plot_run, published_levels
from .recipes import find_recipe, override, read_recipe
from .record import Clock, describe_environment, make_record, publishable, summary, write_run


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended the run, with a checkpoint or after the finished model was saved.

    Attributes:
        signal: The signal's number.
    """

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.signal = number


def start_from(recipe: str | None = None, **settings: Any) -> "Run":
    """Prepare a run from a recipe and settings, named as the flags of `gptlite train`.

    Args:
        recipe: Name of a packaged recipe, or path of a YAML file.
        settings: Replace those of the recipe; `output_dir` is `out/RECIPE` if neither names it.

    Raises:
        UserError: A setting is unknown or not allowed, or `start` raises it.
    """
    if recipe is not None:
        path = find_recipe(recipe)
        settings = {"output_dir": f"out/{path.stem}", **override(read_recipe(path), settings), **settings}
    return start(*parse(settings))


def start(
    model: ModelArguments,
    data: DataArguments,
    training: CausalLMTrainingArguments,
    given: Mapping[str, Any] | None = None,
    report: Callable[[str], None] = print,
) -> "Run":
    """Prepare a run: check its settings, read the text, build the model, find the checkpoint to resume from.

    The output folder is created; only `Run.train` writes into it.

    Args:
        given: The settings that recipe and flags gave, by name. Default: those that differ from their defaults.
        report: Called with each line of progress, on the main process only.

    Raises:
        UserError: A setting is not allowed, the text or the model cannot be loaded, the output folder holds a finished
            run, or its checkpoints belong to a run with other settings.
    """
    given = dict(changed(model, data, training) if given is None else given)
    report = report if training.process_index == 0 else _silent
    training = copy.copy(training)  # the number of steps is set in it
    check_arguments(training)
    check_budget(training, given)
    check_output_dir(training)
    check_lora(model, training)
    chooses_size = sizing.is_auto(model, training.minutes, given)
    with training.main_process_first():  # the other processes find the text and its ids in the cache
        source = open_source(data, report)
    checkpoint = find_checkpoint(training, report)
    auto = {}
    if chooses_size:
        auto = sizing.recorded(checkpoint) if checkpoint else _choose_size(model, data, training, given, source)
        model, given = sizing.apply(auto, model, training, given)
    if auto:
        report(sizing.describe(auto))
    network, tokenizer, prepared = _load(model, data, training, source, report)
    prompt = prepared.prompt if data.sample_prompt is None else data.sample_prompt
    samples = _samples(network, tokenizer, prompt, data.eval_sample_length, training.seed, io.StringIO())
    choose_compilation(network, training, prepared, checkpoint, samples)
    if "torch_compile" in given:
        given["torch_compile"] = training.torch_compile
    most = sizing.most_steps(prepared.facts["train_tokens"], prepared.tokens_per_step) if auto else MOST_STEPS
    budget = resolve(network, training, prepared, given, checkpoint, samples, report, most)
    settings = {**given, **budget.settings, **budget.measured, **({sizing.AUTO: auto} if auto else {})}
    identity = identify(settings, training, prepared.facts, tokenizer, network)
    check_same_run(checkpoint, identity, report)
    facts = {
        "arguments": publishable(budget.ordinary(given)),
        **({"budget": {"minutes": training.minutes, **budget.measured}} if budget.measured else {}),
        "environment": {
            **describe_environment(training.device),
            "choices": hardware.hardware_facts(training, getattr(prepared.train, "context", math.inf)),
        },
        "data": prepared.facts,
        "parameters": network.num_parameters(),
        "prompt": prompt,
        "lora_rank": model.lora_r,
        **origin(model.model_name_or_path),
    }
    return Run(network, tokenizer, data, training, prepared, identity, facts, checkpoint, report)


def _choose_size(model: ModelArguments, data: DataArguments, training, given, source) -> dict[str, Any]:
    """The settings that `--preset auto` stands for, after models of its table were measured."""
    # Pieces must divide the context, which is known if nothing is given that sets it.
    divides = source.format is LANGUAGE_MODELING and not given.keys() & {"context_length", "model_overrides"}

    def measure(size: sizing.Size) -> tuple[float, int]:
        args = copy.copy(training)
        args.compile_if_it_pays = False
        sized, _ = sizing.apply(sizing.settings_of(size, divides=divides), model, args, given)
        network, _, prepared = _load(sized, data, args, source, _silent)
        return steps_in_time(network, args, prepared), prepared.facts["train_tokens"]

    return sizing.choose(measure, divides)


def _load(model: ModelArguments, data: DataArguments, training, source, report) -> tuple[Any, Any, Prepared]:
    """The model, the tokenizer and the windows, as if nothing had been computed before."""
    transformers.set_seed(training.seed)
    with training.main_process_first():
        network, tokenizer = load_model_and_tokenizer(model, source, report)
        prepared = _prepare(source, tokenizer, _context(network, data.context_length), data, training, report)
    return network, tokenizer, prepared


def _prepare(
    source, tokenizer, context: int, data: DataArguments, training: CausalLMTrainingArguments, report
) -> Prepared:
    """The windows of the run, with language and license as given; `training` learns the number of steps."""
    prepared = prepare(
        source,
        tokenizer,
        context,
        windows_per_step=training.train_batch_size * training.world_size * training.gradient_accumulation_steps,
        max_steps=training.max_steps if training.minutes is None else MOST_STEPS,
        epochs=training.num_train_epochs,
        seed=training.seed,
        validation_fraction=data.validation_fraction,
        report=report,
    )
    _check_short_context(training.short_context, prepared.facts)
    training.max_steps = prepared.steps
    prepared.facts |= {name: getattr(data, name) for name in ("language", "license") if getattr(data, name)}
    return prepared


def _samples(model, tokenizer, prompt: str, length: int, seed: int, stream=None) -> list[TrainerCallback]:
    """The callback that writes samples of `length` tokens, if they have a length."""
    return [Samples(tokenizer, prompt, length, seed, longest_text(model), stream)] if length else []


def _silent(line: str) -> None:
    pass


def _context(model, wanted: int | None) -> int:
    """The context length of the run, in tokens."""
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = longest if wanted is None else wanted
    if context is None:
        raise UserError(f"the configuration of {type(model).__name__} has no context length; give --context_length")
    if context < 1 or (longest and context > longest):
        raise UserError(f"--context_length must lie between 1 and {longest}, the model's maximum; got {context}")
    return context


def _check_short_context(short: int | None, facts: Mapping[str, Any]) -> None:
    if short and "examples" in facts:
        raise UserError("--short_context divides windows of text; examples are never divided: leave it out")
    if short and facts["context_length"] % short:
        raise UserError(f"--short_context must divide the context length of {facts['context_length']}, got {short}")


class Run:
    """A prepared run; `start` and `start_from` make it.

    Attributes:
        trainer: The `CausalLMTrainer`; callbacks can be added before `train`.
        prepared: The windows to train and to validate.
        identity: What a resumed run must have in common with its checkpoint.
        facts: What `run.json` says before training: arguments, environment, data, model.
        checkpoint: The one to resume from; None to train from the first step.
    """

    def __init__(
        self,
        model,
        tokenizer,
        data: DataArguments,
        args: CausalLMTrainingArguments,
        prepared: Prepared,
        identity: dict[str, Any],
        facts: dict[str, Any],
        checkpoint: Path | None,
        report: Callable[[str], None],
    ):
        self.tokenizer, self.data, self.args, self.prepared = tokenizer, data, args, prepared
        self.identity, self.facts, self.checkpoint, self.report = identity, facts, checkpoint, report
        self.checkpoints = Checkpoints(str(args.output_dir))
        self.tokens_per_step = prepared.tokens_per_step
        self.trainable = model.num_parameters(only_trainable=True)
        self.stop, self.clock = StopOnSignal(), Clock()
        self.trainer = self._build_trainer(model)

    def _build_trainer(self, model) -> CausalLMTrainer:
        args = self.args
        callbacks = [
            *(self.clock, LiveLine(self.tokens_per_step), self.stop),
            *_samples(model, self.tokenizer, self.facts["prompt"], self.data.eval_sample_length, args.seed),
        ]
        # With push_to_hub the Trainer creates the repository here.
        with hub_errors(args.hub_model_id or args.output_dir) if args.push_to_hub else contextlib.nullcontext():
            trainer = CausalLMTrainer(
                model,
                args,
                train_dataset=self.prepared.train,
                eval_dataset=self.prepared.validation,
                processing_class=self.tokenizer,
                callbacks=callbacks,
                card=self.interim_card,
                run=self.identity,
            )
        trainer.remove_callback(transformers.PrinterCallback)
        return trainer

    def train(self) -> dict[str, Any]:
        """Train from the checkpoint on, evaluate in full precision, sample, and save the output folder.

        With `push_to_hub`, the folder is published. All processes must call it together. A second call resumes after an
        interruption.

        Returns:
            The record of the run, as in `run.json`; on processes other than the main one it is empty.

        Raises:
            Interrupted: Ctrl-C or SIGTERM stopped training; repeat the call, or the program, to resume.
            UserError: Another process trains in the output folder, a file cannot be written, training diverged, or the
                Hub refuses the upload.
        """
        trainer, args = self.trainer, self.args
        if trainer.state.global_step:
            check_output_dir(args)
            self.checkpoint = find_checkpoint(args, self.report)
            check_same_run(self.checkpoint, self.identity, self.report)
        self._announce()
        with self.checkpoints.locked() if trainer.is_world_process_zero() else contextlib.nullcontext(), self.stop:
            record = self._train()
        if self.stop.received:
            raise Interrupted(self.stop.received, f"stopped after the finished model was saved in {args.output_dir}")
        return record

    def _train(self) -> dict[str, Any]:
        trainer, args = self.trainer, self.args
        trainer.train(resume_from_checkpoint=self.checkpoint and str(self.checkpoint))
        if self.stop.received and (step := trainer.state.global_step) < args.max_steps:
            message = f"stopped at step {step:,} with a checkpoint; repeat the command to resume"
            raise Interrupted(self.stop.received, message)
        model = whole_model(
            trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
        )
        if not trainer.is_world_process_zero():
            return {}
        record = self._finish(model)
        self.report(f"\n{record['sample']}\n")
        self.report(f"{summary(record)}; saved in {args.output_dir}")
        if advice := advise(record["log_history"]):
            self.report(advice)
        if args.push_to_hub:
            commit = trainer.push_to_hub("End of training", card=render_card(record, str(trainer.hub_model_id)))
            self.report(f"pushed to {getattr(commit, 'repo_url', trainer.hub_model_id)}")
        return record

    def _announce(self) -> None:
        """Report what is trained on what, in two lines."""
        data = self.facts["data"]
        kind = "examples" if "examples" in data else "tokens"
        train, validation = data[f"train_{kind}"], data[f"validation_{kind}"]
        self.report(f"{data['name']}: {train:,} {kind} to train on, {validation:,} to validate")
        trained, parameters = self.trainable, self.facts["parameters"]
        some = f"{trained:,} of " if trained < parameters else ""
        choices = hardware.describe(self.facts["environment"]["choices"])
        self.report(f"{some}{parameters:,} parameters, {self.tokens_per_step:,} tokens per step, {choices}")

    def interim_card(self, trainer: CausalLMTrainer) -> str | None:
        """The card of a checkpoint that is published while training continues; None if it was not evaluated."""
        state = trainer.state
        losses = {row["step"]: row["eval_loss"] for row in state.log_history if "eval_loss" in row}
        if state.global_step not in losses:
            return None
        record = self._record(state.global_step, losses[state.global_step], sample="")
        return render_card(record, str(trainer.hub_model_id))

    def _record(self, step: int, loss: float, sample: str) -> dict[str, Any]:
        return make_record(
            self.facts,
            self.trainer.state,
            step=step,
            loss=loss,
            tokens_per_step=self.tokens_per_step,
            seconds=self.clock.seconds(),
            sample=sample,
        )

    def _finish(self, model) -> dict[str, Any]:
        """Evaluate and sample the trained model, save it with its record, card and plot; returns the record."""
        args, state = self.args, self.trainer.state
        output_dir = Path(args.output_dir)
        loss = metrics.evaluate_loss(model, self.prepared.validation, args.per_device_eval_batch_size)
        check_finite(loss, state.global_step, "validation loss")
        model.generation_config = sampling_defaults(self.tokenizer, stops="examples" in self.facts["data"])
        sample = self._sample(model)
        step = state.best_global_step if args.load_best_model_at_end else None
        record = self._record(step or state.global_step, loss, sample)
        with self.checkpoints.disk_errors("the finished model"):
            model.save_pretrained(output_dir)
            model.generation_config.save_pretrained(output_dir)  # which an adapter does not save
            self.tokenizer.save_pretrained(output_dir)
            levels = published_levels(self.facts["data"])
            plot_run(state.log_history, self.tokens_per_step, output_dir.name, output_dir / "loss.png", levels)
            if sample:
                last = {"step": record["results"]["best_step"], "eval_loss": loss, "sample": sample}
                page = render_samples([*state.log_history, last])
                (output_dir / SAMPLES_FILE).write_text(page, encoding="utf-8")
            (output_dir / "README.md").write_text(render_card(record, output_dir.name), encoding="utf-8")
            write_run(output_dir, record)  # last: its presence marks the run as finished
        return record

    def _sample(self, model) -> str:
        if not self.data.sample_length:
            return ""
        return write_sample(
            model,
            self.tokenizer,
            self.facts["prompt"],
            length=self.data.sample_length,
            seed=self.args.seed,
            longest=longest_text(model),
            eos_token_id=model.generation_config.eos_token_id,
        )


def sampling_defaults(tokenizer, stops: bool = False) -> GenerationConfig:
    """Sampling settings that suit a small model.

    Args:
        stops: Generation ends at the end-of-text token. False if the model was never trained to predict it: it would
            end texts at random.
    """
    return GenerationConfig(
        **SAMPLING,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id if stops else None,
        pad_token_id=tokenizer.pad_token_id,
    )
