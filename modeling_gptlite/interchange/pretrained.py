"""Folders of transformers' own layout: GPTLite, GPT-2, Qwen3 and Llama, which `from_pretrained` loads."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..loading import accept_older_transformers, load_pretrained
from ..modeling_gptlite import GPTLiteForCausalLM
from .material import Engine, Material, logits_of
from .native import ConversionError, from_native, to_native


RUN_FILE = "run.json"
# How the tokenizer was loaded on this machine, which transformers saves with it.
LOADING_OPTIONS = ("is_local", "local_files_only")


def read_pretrained(source: str, tokenizer: str | None = None) -> Material:
    """Load a folder or a repository on the Hub; a Qwen3, Llama or GPT-2 is converted to GPTLite.

    Raises:
        UserError: It cannot be loaded, weights are missing or left over, or GPTLite cannot compute the model.
    """
    if Path(source).is_file():
        raise ConversionError(f"{source} is a file; give the folder of a model or its name on the Hub")
    (original, loading), loaded_tokenizer = load_pretrained(source, tokenizer, output_loading_info=True)
    if getattr(original, "_hf_peft_config_loaded", False):
        raise ConversionError(f"{source} is a LoRA adapter; merge it into its base model, and convert that")
    for problem in ("missing", "unexpected", "mismatched"):
        if keys := sorted(map(str, loading[f"{problem}_keys"])):
            raise ConversionError(f"{source} has {len(keys)} {problem} weights: {', '.join(keys[:3])}")
    model = original if isinstance(original, GPTLiteForCausalLM) else from_native(original)
    return Material(model, loaded_tokenizer, original, Path(source).resolve().name, _recorded_license(Path(source)))


def _recorded_license(folder: Path) -> str | None:
    """The license in the run's record, if the folder has a readable one: for a fine-tuned model that of its base."""
    try:
        record = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        if record["fine_tuned_from"] and not record["arguments"].get("license"):
            return record["base_card"].get("license")
        return record["data"]["license"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def write_pretrained(
    material: Material, folder: Path, convert: Callable[[GPTLiteForCausalLM], PreTrainedModel] | None = None
) -> None:
    """Save the model, after `convert` if that is given, and its tokenizer."""
    model = convert(material.model) if convert else material.model
    model.save_pretrained(folder)
    if convert:
        write_rope_theta(model.config, folder)
    save_tokenizer(material.tokenizer, folder)


# The class of transformers that computes the same, whichever it is: what a push `--as native` publishes.
write_native = partial(write_pretrained, convert=to_native)


def write_rope_theta(config: PreTrainedConfig, folder: Path) -> None:
    """Repeat `rope_theta` at the top level of a saved `config.json`: mlx-lm and transformers 4 read it only there."""
    rope = getattr(config, "rope_parameters", None)
    if rope and "rope_theta" in rope:
        path = folder / "config.json"
        saved = json.loads(path.read_text(encoding="utf-8"))
        saved["rope_theta"] = rope["rope_theta"]
        path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the tokenizer for transformers 4 and 5, without the options that it was loaded with."""
    tokenizer.save_pretrained(folder)
    accept_older_transformers(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in LOADING_OPTIONS}
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def pretrained_logits(folder: Path, input_ids: torch.Tensor, model: GPTLiteForCausalLM) -> torch.Tensor:
    return logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), input_ids)


TRANSFORMERS = Engine("transformers", pretrained_logits)
