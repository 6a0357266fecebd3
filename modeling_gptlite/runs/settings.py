"""The settings of a run: a mapping whose names are the flags of `gptlite train`, from flags, a recipe or Python.

settings = read({"preset": "modern-1m", "train_file": "book.txt", "max_steps": "1000"})  # checked, with their types
model_args, data_args, training_args = parse(settings)
"""

import functools
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, NamedTuple, NoReturn

from transformers import HfArgumentParser

from ..data.sources import SourceArguments
from ..errors import check, did_you_mean, setting
from ..files import UserPath
from ..training.arguments import ArgumentError, CausalLMTrainingArguments
from .recipes import as_flags


@dataclass
class ModelArguments:
    """The model: a preset to train from scratch, or a saved model to continue or fine-tune."""

    preset: str = setting(
        "modern-1m",
        "New model: classic-10m, nanogpt-10m, gpt2-124m, modern-1m, -10m, -124m, or auto: what suits text and time. "
        "Default: auto with --minutes, else modern-1m.",
    )
    model_overrides: str | None = setting(
        None, "Fields of the preset to replace, as JSON: '{\"num_hidden_layers\": 8}'."
    )
    model_name_or_path: UserPath | None = setting(
        None, "Folder or Hub name of a model to fine-tune; auto: one for the text."
    )
    tokenizer: UserPath | None = setting(
        None,
        "char, bpe or word to build one from the text, or the folder or Hub name of one. Default: the "
        "model's own, else char.",
    )
    vocab_size: int = setting(1024, "Tokens in a bpe or word vocabulary.")
    freeze_embeddings: bool = setting(False, "Do not train the embeddings of a saved model.")
    lora_r: int | None = setting(None, "Rank of LoRA beside a saved model's weights.")
    lora_alpha: int | None = setting(None, "LoRA's output is scaled by alpha / rank. Default: twice the rank.")
    lora_dropout: float = setting(0.0, "Probability of dropout on LoRA's input.")

    teachers: int = setting(
        0,
        "New models to train first, on the same text with other seeds, and to learn from. Default: what "
        "suits text and time with --minutes, else 0.",
    )
    teacher_overrides: str | None = setting(
        None, "Settings of the teachers to replace, as JSON: '{\"max_steps\": 450}'."
    )

    def __post_init__(self):
        for name in ("model_overrides", "teacher_overrides"):
            if isinstance(value := getattr(self, name), Mapping):
                setattr(self, name, json.dumps(value))
        if self.lora_r is None and (self.lora_alpha is not None or self.lora_dropout):
            raise ArgumentError("--lora_alpha and --lora_dropout need --lora_r")
        rules = [
            ("lora_r", self.lora_r is None or self.lora_r >= 1, "at least 1"),
            ("lora_alpha", self.lora_alpha is None or self.lora_alpha >= 1, "at least 1"),
            ("lora_dropout", 0 <= self.lora_dropout < 1, "0 or more and below 1"),
            ("teachers", self.teachers >= 0, "0 (none) or more"),
        ]
        check(self, rules, ArgumentError)
        if self.lora_r is not None and self.model_name_or_path is None:
            raise ArgumentError("--lora_r needs --model_name_or_path: LoRA fine-tunes a saved model")
        if self.freeze_embeddings and self.model_name_or_path is None:
            raise ArgumentError("--freeze_embeddings needs --model_name_or_path: new embeddings must be trained")
        if self.teachers and self.model_name_or_path is not None:
            raise ArgumentError("--teachers are for a new model: leave out either them or --model_name_or_path")


@dataclass
class DataArguments(SourceArguments):
    """The text, its context length, and the samples that are written."""

    context_length: int | None = setting(None, "Tokens per window. Default: the model's maximum.")
    language: str | None = setting(None, "Language of the text for the card, en for example. Default: the source's.")
    license: str | None = setting(None, "License of the model for the card. Default: mit for a built-in source.")
    sample_prompt: str | None = setting(None, "Prompt of the samples. Default: a newline, or what begins a document.")
    eval_sample_length: int = setting(64, "Tokens of the sample before training and at each evaluation; 0 for none.")
    sample_length: int = setting(500, "Tokens of the sample at the end; 0 for none.")

    def __post_init__(self):
        if isinstance(self.train_file, str):
            self.train_file = [self.train_file]
        for name in ("eval_sample_length", "sample_length"):
            if getattr(self, name) < 0:
                raise ArgumentError(f"--{name} must be 0 (none) or more, got {getattr(self, name)}")


GROUPS: tuple[Any, ...] = (ModelArguments, DataArguments, CausalLMTrainingArguments)


class Arguments(NamedTuple):
    """The settings of a run as the three groups of arguments; nothing is assigned to them."""

    model: ModelArguments
    data: DataArguments
    training: CausalLMTrainingArguments

    def values(self, names: Iterable[str]) -> dict[str, Any]:
        """The values of some settings, by name."""
        everything = {name: value for group in self for name, value in vars(group).items()}
        return {name: everything[name] for name in names}


# ---- Reading settings ----------------------------------------------------------------------------------------------


@functools.cache
def defaults() -> dict[str, Any]:
    """The default of every setting."""
    return {
        each.name: each.default_factory() if each.default_factory is not MISSING else each.default
        for group in GROUPS
        for each in fields(group)
    }


def read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with the types of their fields; those that are None are left out.

    Each is read as the flag of the same name, so that Python, a recipe and the command line accept the same.

    Raises:
        ArgumentError: A setting is unknown, or has a value of another type.
    """
    for name in settings:
        if name not in defaults():
            raise ArgumentError(f"unknown setting {name!r}{did_you_mean(name, defaults())}")
    values = vars(_Parser(GROUPS, allow_abbrev=False).parse_args(as_flags(settings)))
    return {name: values[name] for name, value in settings.items() if value is not None}


def parse(settings: Mapping[str, Any]) -> Arguments:
    """The groups of arguments for settings that `read` returned.

    Raises:
        ArgumentError: A value is not allowed.
    """
    if settings.get("model_name_or_path") is not None:
        for name in ("preset", "model_overrides"):
            if settings.get(name) is not None:
                raise ArgumentError(f"--{name} is for a new model: leave out either it or --model_name_or_path")
    if "vocab_size" in settings and settings.get("tokenizer") not in ("bpe", "word"):
        raise ArgumentError("--vocab_size needs --tokenizer bpe or word, whose vocabulary is built for the text")
    groups = []
    for group in GROUPS:
        names = [each.name for each in fields(group) if each.name in settings]
        try:
            groups.append(group(**{name: settings[name] for name in names}))
        except (ValueError, TypeError) as error:
            raise ArgumentError(" ".join(str(error).split())) from error
    return Arguments(*groups)


def left_open(chosen: Mapping[str, Any], given: Collection[str]) -> dict[str, Any]:
    """What was chosen for settings that are not given. A floor of the learning rate means the default schedule."""
    taken = {*given, *(("lr_scheduler_type",) if {"lr_scheduler_kwargs", "min_learning_rate_ratio"} & {*given} else ())}
    return {name: value for name, value in chosen.items() if name not in taken}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentError(message)
