"""nanoGPT's files: `ckpt.pt` with the model, and `meta.pkl` with the characters of its data set.

    material = read_nanogpt("out-shakespeare-char", meta="data/shakespeare_char/meta.pkl")

Both are pickles, which can hold code; nothing here runs code from a file.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from tokenization import char_tokenizer

from ..loading import load_tokenizer
from ..modeling_gptlite import GPTLiteForCausalLM
from .fields import ConversionError
from .material import Engine, Material, logits_of
from .names import from_nanogpt, to_nanogpt
from .vocabulary import bpe_units


CHECKPOINT_FILE, META_FILE = "ckpt.pt", "meta.pkl"


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


def write_nanogpt(material: Material, folder: Path) -> None:
    """Write `ckpt.pt` and, for a character-level model, the `meta.pkl` for nanoGPT's folder `data/<folder's name>`.

    Raises:
        ConversionError: nanoGPT cannot compute the model, or cannot use its tokenizer.
    """
    tokenizer = material.tokenizer
    checkpoint = to_nanogpt(material.model)
    if bpe_units(tokenizer)[0] == "characters":
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        stoi = {token: index for index, token in enumerate(tokens)}
        meta = {"vocab_size": len(tokens), "itos": dict(enumerate(tokens)), "stoi": stoi}
        (folder / META_FILE).write_bytes(pickle.dumps(meta))
        checkpoint["config"] = {"dataset": folder.name}  # sample.py looks for meta.pkl under this name
    elif not _is_gpt2_tokenizer(tokenizer):
        raise ConversionError("nanoGPT takes a character-level tokenizer or GPT-2's; this model has another one")
    torch.save(checkpoint, folder / CHECKPOINT_FILE)


def _is_gpt2_tokenizer(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is the tokenizer that nanoGPT uses without a meta.pkl; decided by its size and a sample."""
    return len(tokenizer) == 50257 and tokenizer("Hello world<|endoftext|>")["input_ids"] == [15496, 995, 50256]


def nanogpt_logits(folder: Path, input_ids: torch.Tensor, model: GPTLiteForCausalLM) -> torch.Tensor:
    return logits_of(from_nanogpt(load_checkpoint(folder / CHECKPOINT_FILE)), input_ids)


def sampling_hint(folder: Path) -> str:
    """How to sample from a written folder."""
    return (
        f"to sample in nanoGPT's folder: copy {META_FILE}, if there is one, to data/{folder.name}, and run\n"
        f"python sample.py --out_dir={folder}"
    )


READ_BACK = Engine("the written nanoGPT checkpoint", nanogpt_logits)
