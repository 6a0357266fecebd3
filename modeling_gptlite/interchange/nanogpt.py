"""Import nanoGPT's files: `ckpt.pt` with the model, and `meta.pkl` with the characters of its dataset.

    material = read_nanogpt("out-shakespeare-char", meta="data/shakespeare_char/meta.pkl")

The weights have GPT-2's names. Linear weights are not transposed; all norms and linears have a bias, or none has one.
Both files are pickles, which can hold code; nothing here runs code from a file.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tokenization import char_tokenizer

from ..configuration_gptlite import GPTLiteConfig
from ..loading import load_tokenizer
from ..modeling_gptlite import GPTLiteForCausalLM
from .material import Material
from .native import (
    BIASES,
    GPT2,
    ConversionError,
    build,
    from_gpt2_names,
    require_names,
    require_tensors,
    to_gpt2_names,
)


CHECKPOINT_FILE, META_FILE = "ckpt.pt", "meta.pkl"
# The integers in `model_args`, and GPTLite's fields for them.
ARGUMENTS = {
    "vocab_size": "vocab_size",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "block_size": "max_position_embeddings",
}


def read_nanogpt(source: str, tokenizer: str | None = None, meta: str | None = None) -> Material:
    """Read a checkpoint, with the generation settings of nanoGPT's `sample.py`.

    Args:
        source: A checkpoint file, or a folder that holds `ckpt.pt`.
        tokenizer: Folder or Hub name of a tokenizer. Default: the characters of `meta`.
        meta: nanoGPT's `meta.pkl`. Default: the one beside the checkpoint.

    Raises:
        UserError: There is no tokenizer, or a file is damaged or holds code.
    """
    path = Path(source) / CHECKPOINT_FILE if Path(source).is_dir() else Path(source)
    model = from_nanogpt(load_checkpoint(path))
    own = _tokenizer(path, tokenizer, meta)
    model.config.bos_token_id, model.config.pad_token_id = own.bos_token_id, own.pad_token_id
    special = {"bos_token_id": own.bos_token_id, "pad_token_id": own.pad_token_id}
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.8, top_k=200, **special)
    return Material(model, own, name=path.resolve().parent.name)


def _tokenizer(checkpoint: Path, tokenizer: str | None, meta: str | None) -> PreTrainedTokenizerBase:
    if tokenizer is not None:
        if meta is not None:
            raise ConversionError("give --meta or --tokenizer, not both")
        return load_tokenizer(tokenizer)
    path = Path(meta) if meta else checkpoint.with_name(META_FILE)
    if not meta and not path.exists():
        raise ConversionError(
            f"{checkpoint} has no {META_FILE} beside it: give --meta with the {META_FILE} of its data set, or, if the "
            "model uses GPT-2's tokenizer, --tokenizer openai-community/gpt2"
        )
    return char_tokenizer(load_meta(path))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a nanoGPT checkpoint without running any code in it.

    Raises:
        ConversionError: It is damaged, or holds anything but tensors and plain values.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # torch raises errors of many types for a damaged file
        raise ConversionError(
            f"{path} is damaged, or holds more than tensors and plain values; that is not loaded, as it could run code"
        ) from error
    if not isinstance(checkpoint, dict):
        raise ConversionError(f"{path} holds a {type(checkpoint).__name__}, not a nanoGPT checkpoint")
    return checkpoint


def load_meta(path: Path) -> list[str]:
    """Load the tokens of nanoGPT's `meta.pkl` in the order of their ids, without running any code in it.

    Raises:
        ConversionError: It holds anything but plain values, or no `itos` with ids from 0.
    """
    try:
        with open(path, "rb") as file:
            meta = _PlainUnpickler(file).load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ConversionError(f"{path} is not nanoGPT's meta.pkl: {error}") from error
    itos = meta.get("itos") if isinstance(meta, dict) else None
    if not isinstance(itos, dict) or not itos or sorted(itos, key=str) != sorted(range(len(itos)), key=str):
        raise ConversionError(f"{path} has no itos, the table from the ids 0, 1, 2, ... to characters")
    return [itos[index] for index in range(len(itos))]


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles dictionaries, lists, strings and numbers; any class or function is refused before it is imported."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, and only plain values are loaded")


def from_nanogpt(checkpoint: dict) -> GPTLiteForCausalLM:
    """Convert a nanoGPT checkpoint, as `torch.load` returns it, to a GPTLite with the same logits.

    Raises:
        ConversionError: It is not a nanoGPT checkpoint, or its weights do not match its `model_args`.
    """
    arguments, weights = checkpoint.get("model_args"), checkpoint.get("model")
    if not isinstance(arguments, dict) or not isinstance(weights, dict):
        raise ConversionError("not a nanoGPT checkpoint: it lacks model_args or model")
    arguments = {"bias": True, "dropout": 0.0, **arguments}  # early versions of nanoGPT wrote neither
    require_names(arguments, [*ARGUMENTS, "bias", "dropout"], "model_args")
    for name, value in arguments.items():
        if type(value) is not int and name not in ("bias", "dropout"):
            raise ConversionError(f"model_args has {name}={value!r}, which must be an integer")
    fields: dict[str, Any] = {
        **GPT2.required,
        **{"hidden_act": "gelu", "norm_eps": 1e-5, "tie_word_embeddings": True},
        **{field: arguments[name] for name, field in ARGUMENTS.items()},
        **dict.fromkeys(BIASES, bool(arguments["bias"])),
        **dict.fromkeys(("attention_dropout", "hidden_dropout", "embedding_dropout"), arguments["dropout"]),
    }
    config = GPTLiteConfig(**fields)
    # torch.compile adds the prefix.
    weights = {str(name).removeprefix("_orig_mod."): weight for name, weight in weights.items()}
    for name in [name for name in weights if name.endswith(".attn.bias")]:
        _require_causal_mask(name, weights.pop(name))  # a buffer of unfused attention
    with torch.device("meta"):
        expected = to_gpt2_names(GPTLiteForCausalLM(config), bias=config.norm_bias, transposed=False)
    require_tensors(weights, expected)
    if not torch.equal(weights["lm_head.weight"], weights["transformer.wte.weight"]):
        raise ConversionError("lm_head.weight and transformer.wte.weight differ; nanoGPT ties them")
    return build(config, from_gpt2_names(weights, config, transposed=False))


def _require_causal_mask(name: str, mask: torch.Tensor) -> None:
    if not torch.equal(mask, torch.ones_like(mask).tril()):
        raise ConversionError(f"{name} is not nanoGPT's causal mask")
