"""A run, from its settings to a finished folder, told in order: the command, a notebook and a test all start here.

run = start_from("quickstart", train_file="book.txt", output_dir="out/book")
record = run.train()  # the same two lines resume a run that was interrupted
"""

import functools
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import transformers
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..data.encode import EncodedExamples, EncodedText, RunData, encode
from ..data.sources import open_source
from ..training.callbacks import say, write_sample
from ..training.memory import free_memory, training_memory
from ..training.timing import Costs, time_run
from . import auto
from .card import describe_model
from .model import (
    ModelError,
    build_model,
    check_model,
    context_length,
    load_or_build_tokenizer,
    model_config,
    name_base,
    pretrained_base,
)
from .recipes import find_recipe, override, read_recipe
from .record import run_facts
from .resume import (
    check_output_dir,
    check_same_run,
    find_checkpoint,
    identify,
    recorded_run,
    recorded_windows,
)
from .run import Interrupted, Run
from .settings import Arguments, parse, read
from .teachers import Teachers, begun, teacher_settings


__all__ = ["Interrupted", "Run", "start", "start_from"]
Encoded = EncodedText | EncodedExamples
Log = Callable[[str], None]


def start_from(recipe: str | None = None, **settings: Any) -> Run:
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
    return start(settings)


def start(settings: Mapping[str, Any], log: Log = say) -> Run:
    """Prepare a run: check its settings, read the text, decide what they leave open, build the model.

    The output folder is created; only `Run.train` writes into it. If the folder holds an unfinished run, the new run
    resumes it, and what that run decided is not decided again.

    Args:
        settings: By the names of the flags of `gptlite train`.
        log: Called with each line of progress, on the main process only.

    Raises:
        UserError: A setting is not allowed, the text or the model cannot be loaded, the output folder holds a finished
            run, or its checkpoints belong to a run with other settings.
    """
    began = time.perf_counter()
    settings = read(settings)
    asked = parse(settings)  # mistakes are refused before anything is read
    auto.check(settings)
    check_model(asked)
    for each in teacher_settings(settings)[:1]:
        parse(each)
    check_output_dir(asked.training)
    if asked.training.process_index:
        log = _silent
    with asked.training.main_process_first():  # the other processes find the text and its ids in the cache
        source = open_source(asked.data, log)
    checkpoint = find_checkpoint(asked.training, log)
    unfinished = checkpoint or begun(asked.training.output_dir)
    if asked.model.model_name_or_path == auto.AUTO:
        chosen = recorded_run(unfinished).get("model_name_or_path") if unfinished else None
        if chosen is None and asked.training.process_index == 0:
            chosen = name_base(asked, source, log)
        named = [chosen]  # by one process for all: each finds other free memory
        settings["model_name_or_path"] = broadcast_object_list(named)[0]
        asked = parse(settings)
    with asked.training.main_process_first():
        tokenizer, added = load_or_build_tokenizer(asked.model, source, log)
        text = encode(source, tokenizer, asked.data.validation_fraction, log, **recorded_windows(checkpoint))
    inputs = Inputs(text, tokenizer, added)

    if unfinished:
        resolved = auto.resume(settings, recorded_run(unfinished))
    else:
        measure = Measure(inputs, began)
        base = pretrained_base(asked.model, added)
        steps = None if base else count_steps(settings, text, tokenizer)
        known = auto.Facts(text.train_tokens, text.divides, text.examples, steps, asked.training.world_size, base)
        resolved = auto.resolve(settings, known, measure, measure.elapsed, measure.memory)
    for line in resolved.lines:
        log(line)
    return prepare(resolved, inputs, checkpoint, log)


class Inputs(NamedTuple):
    """What a run and its teachers have in common: the text, its tokenizer, and how many characters joined that."""

    text: Encoded
    tokenizer: PreTrainedTokenizerBase
    added: int


def prepare(resolved: auto.Resolved, inputs: Inputs, checkpoint: Path | None, log: Log) -> Run:
    """The run of settings that are decided: its model and its windows."""
    text, tokenizer, added = inputs
    args = parse({**resolved.settings, "max_steps": count_steps(resolved.settings, text, tokenizer)})
    transformers.set_seed(args.training.seed)
    with args.training.main_process_first():
        model = build_model(args.model, tokenizer, added)
    data = cut(text, model.config, args, args.training.max_steps, log)
    given = args.values(resolved.settings)
    identity = identify({**given, **resolved.recorded}, args.training, data.facts, tokenizer, model)
    check_same_run(begun(args.training.output_dir), identity, _silent if checkpoint else log)
    check_same_run(checkpoint, identity, log)
    budget = auto.budget(resolved)
    facts = run_facts(given, budget, args, data, model)
    facts["lora_merged"] = "lora_r" in resolved.recorded.get(auto.TUNED, {})  # the user did not ask for an adapter
    facts |= describe_model(model, tokenizer, args.model.model_name_or_path)
    teachers = None
    if each := teacher_settings(resolved.settings):
        check_teacher(parse(each[0]), model.config, tokenizer, args)
        teachers = Teachers(each, functools.partial(prepare_teacher, inputs), log)
    return Run(model, tokenizer, args, data, facts, identity, checkpoint, log, teachers)


def check_teacher(teacher: Arguments, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, args: Arguments):
    """Raise `ModelError` if a model with these arguments cannot teach one with `config`."""
    own, context = model_config(teacher.model, tokenizer), context_length(config, args.data.context_length)
    if own.vocab_size != config.vocab_size or context_length(own, teacher.data.context_length) < context:
        raise ModelError(
            f"--teacher_overrides: a teacher needs the vocabulary of the run, {config.vocab_size} tokens, and at least "
            f"its context of {context}"
        )


def prepare_teacher(inputs: Inputs, settings: Mapping[str, Any]) -> Run:
    """The run of a teacher, from its checkpoint if it has one."""
    checkpoint = find_checkpoint(parse(settings).training, _silent)
    return prepare(auto.Resolved(dict(settings)), inputs, checkpoint, _silent)


def count_steps(settings: Mapping[str, Any], text: Encoded, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The number of optimizer steps that settings determine; None if the minutes do."""
    if settings.get("max_steps", 0) > 0:
        return settings["max_steps"]
    if "minutes" in settings:
        return None
    args = parse(settings)
    context = context_length(model_config(args.model, tokenizer), args.data.context_length)
    return max(1, round(args.training.num_train_epochs * text.samples_per_epoch(context) / windows_per_step(args)))


def windows_per_step(args: Arguments) -> int:
    """Windows in each optimizer step, over all processes."""
    training = args.training
    return training.train_batch_size * training.world_size * training.gradient_accumulation_steps


def cut(text: Encoded, config: PreTrainedConfig, args: Arguments, steps: int, log: Log) -> RunData:
    """The windows, or examples, of a run, with the language and the license that were given."""
    context, short = context_length(config, args.data.context_length), args.training.short_context
    if short and not text.divides:
        raise ModelError("--short_context divides windows of text; examples are never divided: leave it out")
    if short and context % short:
        raise ModelError(f"--short_context must divide the context length of {context}, got {short}")
    data = text.cut(context, windows_per_step(args), steps, args.training.seed, log)
    data.facts.update({name: getattr(args.data, name) for name in ("language", "license") if getattr(args.data, name)})
    return data


class Measure:
    """What `auto.resolve` calls: the costs of a run with some settings, and the seconds since the run began."""

    def __init__(self, inputs: Inputs, began: float):
        self.text, self.tokenizer, self.added = inputs
        self.began = began

    def __call__(self, settings: Mapping[str, Any]) -> Costs:
        args = parse(settings)
        data = cut(self.text, model_config(args.model, self.tokenizer), args, auto.MOST_STEPS, _silent)
        return time_run(
            lambda: build_model(args.model, self.tokenizer, self.added),
            args.training,
            data,
            lambda model, tokens: write_sample(model, self.tokenizer, data.prompt, tokens, args.training.seed),
            (args.data.eval_sample_length, args.data.sample_length),
            evaluates_again=not args.training.eval_on_start,
        )

    def memory(self, settings: Mapping[str, Any]) -> tuple[int, int]:
        """Bytes that a run needs, as it is predicted, and those that are free, as the main process finds them."""
        args = parse(settings)
        config = model_config(args.model, self.tokenizer)
        context = context_length(config, args.data.context_length)
        needed = training_memory(config, args.training, context, args.model.lora_r, args.model.freeze_embeddings)
        if args.training.device.type == "cpu":  # which all processes of a machine share
            needed *= int(os.environ.get("LOCAL_WORLD_SIZE") or args.training.world_size)
        return broadcast_object_list([(needed, free_memory(args.training.device))])[0]

    def elapsed(self) -> float:
        """As the main process counts them."""
        return broadcast_object_list([time.perf_counter() - self.began])[0]


def _silent(line: str) -> None:
    pass
