"""The model and the tokenizer of a run: new from a preset, or saved ones to continue or fine-tune.

model, tokenizer = load_model_and_tokenizer(ModelArguments(preset="modern-1m"), source)
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import transformers

from tokenization import add_characters, describe_characters

from .. import GPTLiteConfig, GPTLiteForCausalLM
from ..data.prepare import make_tokenizer
from ..errors import UserError
from ..loading import LOADING_ERRORS, load_pretrained, load_tokenizer, quiet_transformers, reason
from ..training.lora import add_lora
from ..training.trainer import CausalLMTrainingArguments
from .arguments import ModelArguments


BUILT_TOKENIZERS = ("char", "bpe", "word")  # built from the text


class ModelError(UserError, ValueError):
    """The model that was asked for cannot be built, or cannot be trained as asked."""


def load_model_and_tokenizer(args: ModelArguments, source, report: Callable[[str], None] = print):
    """A saved model with its tokenizer, or a new model for the tokenizer; with `lora_r`, a `PeftModel`.

    Raises:
        ModelError: A value in `model_overrides` is not allowed, or tokenizer and model do not fit together.
        UserError: The model or the tokenizer cannot be loaded.
    """
    model, tokenizer = _load_saved(args) if args.model_name_or_path else (None, _tokenizer(args, source))
    source.share_template(tokenizer)
    if model is None:
        model = GPTLiteForCausalLM(build_config(args, tokenizer))
    elif args.tokenizer is None and args.lora_r is None:  # LoRA does not train the embeddings
        grow_vocabulary(model, tokenizer, source.texts(), report)
    _ignore_tied_weights(model)
    if args.lora_r is not None:
        model = add_lora(model, args.lora_r, args.lora_alpha, args.lora_dropout)
    return model, tokenizer


def build_config(args: ModelArguments, tokenizer) -> GPTLiteConfig:
    """The preset for a tokenizer, with the fields in `model_overrides` replaced.

    Raises:
        ModelError: `read_overrides` raises it, a field is unknown or has a value that is not allowed, or the vocabulary
            is smaller than the tokenizer's.
    """
    fields = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    overrides = read_overrides(args)
    size = overrides.setdefault("vocab_size", len(tokenizer))
    if isinstance(size, int) and size < len(tokenizer):
        raise ModelError(
            f"--model_overrides: vocab_size must be at least the {len(tokenizer)} tokens of the tokenizer, got {size}"
        )
    try:
        return GPTLiteConfig.from_preset(args.preset, **{**fields, **overrides})
    except LOADING_ERRORS as error:
        raise ModelError(reason(error)) from error


def read_overrides(args: ModelArguments) -> dict[str, Any]:
    """The fields in `model_overrides`.

    Raises:
        ModelError: It is not a JSON object.
    """
    try:
        overrides = json.loads(args.model_overrides or "{}")
    except json.JSONDecodeError as error:
        raise ModelError(f"--model_overrides is not JSON: {error}") from error
    if not isinstance(overrides, dict):
        raise ModelError(f"--model_overrides must be a JSON object of fields, got {args.model_overrides}")
    return overrides


def _tokenizer(args: ModelArguments, source):
    name: Any = args.tokenizer or "char"
    return make_tokenizer(source, name, args.vocab_size) if name in BUILT_TOKENIZERS else load_tokenizer(name)


def _load_saved(args: ModelArguments):
    name = str(args.model_name_or_path)
    if args.tokenizer in BUILT_TOKENIZERS:
        raise ModelError(
            f"--tokenizer {args.tokenizer} builds a new vocabulary, and a saved model keeps its own; leave it out"
        )
    model, tokenizer = load_pretrained(name, args.tokenizer, dtype="float32")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{name} is a LoRA adapter; merge it into its base model and train the result")
    embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > embeddings:
        raise ModelError(f"the tokenizer has {len(tokenizer)} tokens, but the model has embeddings for {embeddings}")
    # The Trainer and the loss would set these two themselves, with a warning.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.loss_type = model.loss_type or "ForCausalLM"
    return model, tokenizer


def _ignore_tied_weights(model) -> None:
    """Tied weights are saved under one name; the Trainer would report the other as missing from the best checkpoint."""
    if not model._keys_to_ignore_on_save:
        model._keys_to_ignore_on_save = set(model.all_tied_weights_keys)


def grow_vocabulary(model, tokenizer, texts: Iterable[str], report: Callable[[str], None] = print) -> None:
    """Add the characters of `texts` that a character tokenizer lacks, and embeddings for them to the model.

    The new rows of the embedding and of the head are the mean of the others.
    """
    new = add_characters(tokenizer, texts)
    if not new:
        return
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        with quiet_transformers():  # it explains the initialization in several lines
            model.resize_token_embeddings(len(tokenizer))
    report(f"added to the vocabulary, now {len(tokenizer)} tokens: {describe_characters(new)}")


def check_lora(args: ModelArguments, training: CausalLMTrainingArguments) -> None:
    """Raise `ModelError` if a LoRA adapter cannot be trained here, or not be published."""
    if args.lora_r is None:
        return
    if training.push_to_hub and os.path.isdir(str(args.model_name_or_path)):
        raise ModelError("an adapter is published with the Hub name of its base model; publish that model first")
    if not transformers.utils.is_peft_available():
        raise ModelError('LoRA needs PEFT: pip install "gptlite[finetune]"')


def origin(name_or_path: str | None) -> dict[str, Any]:
    """Where a fine-tuned model comes from: the base model's name on the Hub, for the card's metadata, and its title."""
    if name_or_path is None:
        return {"base_model": None, "fine_tuned_from": None}
    is_local = os.path.isdir(name_or_path)
    name = Path(name_or_path).resolve().name if is_local else name_or_path
    return {"base_model": None if is_local else name, "fine_tuned_from": name}
