"""The tokenizer and the model of a run: new from a preset, or saved ones to continue or fine-tune.

tokenizer, added = load_or_build_tokenizer(ModelArguments(preset="modern-1m"), source)
model = build_model(ModelArguments(preset="modern-1m"), tokenizer, added)
"""

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tokenization import add_characters, describe_characters

from .. import GPTLiteConfig, GPTLiteForCausalLM
from ..data.encode import make_tokenizer
from ..data.sources import Source
from ..errors import UserError
from ..loading import LOADING_ERRORS, check_pretrained, load_config, load_model, load_tokenizer, quiet
from ..loading import reason as reason_of
from ..training.hardware import LARGE
from ..training.memory import free_memory
from .settings import Arguments, ModelArguments
from .tuning import Base, choose_base


BUILT_TOKENIZERS = ("char", "bpe", "word")  # built from the text


class ModelError(UserError, ValueError):
    """The model that was asked for cannot be built, or cannot be trained as asked."""


def check_model(args: Arguments) -> None:
    """Raise `ModelError` if what is asked for cannot be trained or published, before anything is read."""
    model, name = args.model, str(args.model.model_name_or_path)
    read_overrides(model)
    if model.teachers and args.training.label_smoothing_factor:
        raise ModelError("--label_smoothing_factor would have no effect beside --teachers: leave out one of them")
    if model.model_name_or_path and model.tokenizer in BUILT_TOKENIZERS:
        raise ModelError(
            f"--tokenizer {model.tokenizer} builds a new vocabulary, and a saved model keeps its own; leave it out"
        )
    if model.lora_r is None:
        return
    if args.training.push_to_hub and os.path.isdir(name):
        raise ModelError("an adapter is published with the Hub name of its base model; publish that model first")
    if not transformers.utils.is_peft_available():
        raise ModelError('LoRA needs PEFT: pip install "gptlite[finetune]"')


def name_base(args: Arguments, source: Source, log: Callable[[str], None]) -> str:
    """The pretrained model for `--model_name_or_path auto`: one that suits the text's language and the memory."""
    beginning = "".join(itertools.islice(source.texts(), 1))[:100_000]
    language = args.data.language or source.language
    base = choose_base(language, beginning, free_memory(args.training.device))
    log(f"auto: {base.name}, {base.megabytes:,} MB to download once, license {base.license}")
    return base.name


# ---- The tokenizer -------------------------------------------------------------------------------------------------


def load_or_build_tokenizer(
    args: ModelArguments, source: Source, log: Callable[[str], None] = print
) -> tuple[PreTrainedTokenizerFast, int]:
    """The tokenizer of a run, and how many characters of the text joined its vocabulary.

    Characters join the vocabulary of a saved character model, unless a tokenizer is given, or LoRA trains beside the
    embeddings.

    Raises:
        UserError: The tokenizer cannot be loaded or is another one after it is saved, or the text cannot be read.
    """
    name, added = args.tokenizer or "char", 0
    if args.model_name_or_path:
        check_pretrained(args.model_name_or_path)
        tokenizer = load_tokenizer(args.tokenizer or args.model_name_or_path)
    elif name in BUILT_TOKENIZERS:
        tokenizer = make_tokenizer(source, name, args.vocab_size, log)  # type: ignore[arg-type]  # one of the three
    else:
        tokenizer = load_tokenizer(name)
    source.share_template(tokenizer)
    if args.model_name_or_path and args.tokenizer is None and args.lora_r is None:
        added = _add_new_characters(tokenizer, source, log)
    check_saved(tokenizer)
    return tokenizer, added


def _add_new_characters(tokenizer: PreTrainedTokenizerFast, source: Source, log: Callable[[str], None]) -> int:
    new = add_characters(tokenizer, source.texts())
    if new:
        log(f"added to the vocabulary, now {len(tokenizer)} tokens: {describe_characters(new)}")
    return len(new)


def check_saved(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ModelError` if the tokenizer has other ids once it is saved and loaded, as the finished model will be."""
    if not tokenizer.is_fast:
        raise ModelError(
            f"{type(tokenizer).__name__} has no tokenizer.json, which training needs; give one with --tokenizer"
        )
    backend = tokenizer.backend_tokenizer  # type: ignore[attr-defined]
    loaded = Tokenizer.from_str(backend.to_str())  # what is written to tokenizer.json, and read from it
    before, after = backend.get_vocab(), loaded.get_vocab()
    probe = " ".join([*itertools.islice(before, 1000), *tokenizer.get_added_vocab()])
    if before != after or backend.encode(probe).ids != loaded.encode(probe).ids:
        moved = [token for token, token_id in before.items() if after.get(token) != token_id]
        what = f"gives other ids to {describe_characters(moved)}" if moved else "splits text in another way"
        raise ModelError(f"the tokenizer {what} after it is saved and loaded; give another one with --tokenizer")


# ---- The model -----------------------------------------------------------------------------------------------------


def build_model(args: ModelArguments, tokenizer: PreTrainedTokenizerBase, added: int = 0) -> PreTrainedModel:
    """A saved model, or a new one for the tokenizer; with `lora_r`, a `PeftModel`.

    Args:
        added: How many characters joined the tokenizer of a saved model. Their rows of the embedding and of the head
            are drawn around the mean of the others.

    Raises:
        ModelError: A value in `model_overrides` is not allowed, or tokenizer and model do not fit together.
        UserError: The model cannot be loaded.
    """
    if args.model_name_or_path:
        model = _load_saved(args.model_name_or_path, tokenizer, added)
    else:
        model = GPTLiteForCausalLM(build_config(args, tokenizer))
    if not model._keys_to_ignore_on_save:
        # Tied weights are saved under one name; the Trainer would report the other as missing from the best checkpoint.
        model._keys_to_ignore_on_save = set(model.all_tied_weights_keys)
    if args.freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    return model if args.lora_r is None else add_lora(model, args.lora_r, args.lora_alpha, args.lora_dropout)


def model_config(args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The configuration that `build_model` will use; weights are neither loaded nor initialized."""
    return load_config(args.model_name_or_path) if args.model_name_or_path else build_config(args, tokenizer)


def pretrained_base(args: ModelArguments, added: int) -> Base | None:
    """The base of a run that has its fine-tuning chosen (`auto`); None for a new model, or a small one of this package.

    Args:
        added: Characters of the text that joined its vocabulary.
    """
    if args.model_name_or_path is None:
        return None
    config = load_config(args.model_name_or_path)
    if config.model_type == "gptlite":
        with torch.device("meta"):
            if GPTLiteForCausalLM(config).num_parameters() < LARGE:
                return None
    return Base(getattr(config.get_text_config(), "max_position_embeddings", None), added)


def build_config(args: ModelArguments, tokenizer: PreTrainedTokenizerBase) -> GPTLiteConfig:
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
        raise ModelError(reason_of(error)) from error


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


def context_length(config: PreTrainedConfig, wanted: int | None) -> int:
    """The context length of a run, in tokens: the model's maximum, or what is wanted.

    Raises:
        ModelError: It is longer than the model allows, or neither is known.
    """
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    context = longest if wanted is None else wanted
    if context is None:
        raise ModelError(f"the configuration of a {config.model_type} has no context length; give --context_length")
    if context < 1 or (longest and context > longest):
        raise ModelError(f"--context_length must lie between 1 and {longest}, the model's maximum; got {context}")
    return context


def _load_saved(name: str, tokenizer: PreTrainedTokenizerBase, added: int) -> PreTrainedModel:
    model = load_model(name, dtype="float32")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"{name} is a LoRA adapter; merge it into its base model and train the result")
    embeddings, own_tokens = model.get_input_embeddings().num_embeddings, len(tokenizer) - added
    if own_tokens > embeddings:
        raise ModelError(f"the tokenizer has {own_tokens} tokens, but the model has embeddings for {embeddings}")
    # The Trainer and the loss would set these two themselves, with a warning.
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.loss_type = model.loss_type or "ForCausalLM"
    if added and len(tokenizer) > embeddings:
        with quiet():  # it explains the initialization in several lines
            model.resize_token_embeddings(len(tokenizer))
    return model


def add_lora(model: PreTrainedModel, rank: int, alpha: int | None = None, dropout: float = 0.0):
    """A `PeftModel` with a LoRA adapter (Hu et al., 2021) beside every linear layer except the head.

    Args:
        alpha: The adapter's output is multiplied by alpha / rank. Default: twice the rank.
        dropout: Probability of dropout on the adapter's input.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: The rank is below 1.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        target_modules="all-linear",
    )
    base = model.name_or_path or ""
    peft_model = get_peft_model(model, config)
    if base and Path(base).is_dir():  # a relative path would load from this working directory only
        config.base_model_name_or_path = str(Path(base).resolve())
    return peft_model
