"""Tokenizers, as other programs need them: what kind of BPE one is, and a saved folder that every loader accepts."""

import json
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from ..loading import accept_older_transformers


# How the tokenizer was loaded on this machine, which transformers saves with it.
LOADING_OPTIONS = ("is_local", "local_files_only")


def bpe_units(tokenizer: PreTrainedTokenizerBase) -> tuple[Literal["characters", "bytes"] | None, list]:
    """What a BPE tokenizer starts from, and its merges.

    Returns:
        "characters" if every token is one character (there are no merges), "bytes" if it works like GPT-2's, None for
        any other tokenizer; and the merges as pairs.
    """
    if not tokenizer.is_fast:
        return None, []
    state = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    model = state["model"]
    if model["type"] != "BPE" or model["byte_fallback"] or model["ignore_merges"] or state["normalizer"]:
        return None, []
    if state["pre_tokenizer"] is None and not model["merges"]:
        tokens = model["vocab"].keys() - tokenizer.get_added_vocab().keys()
        return ("characters" if all(len(token) == 1 for token in tokens) else None), []
    gpt2s: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    is_gpt2s = gpt2s.items() <= (state["pre_tokenizer"] or {}).items()
    return ("bytes" if is_gpt2s else None), model["merges"]


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the tokenizer for transformers 4 and 5, without the options that it was loaded with."""
    tokenizer.save_pretrained(folder)
    accept_older_transformers(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in LOADING_OPTIONS}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
