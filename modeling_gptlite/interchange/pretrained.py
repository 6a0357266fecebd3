"""Folders of transformers' own layout: GPTLite, GPT-2 and Qwen3, which `from_pretrained` loads."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..loading import load_pretrained
from ..modeling_gptlite import GPTLiteForCausalLM
from .fields import ConversionError
from .material import Engine, Material, logits_of
from .names import from_native, to_native
from .vocabulary import save_tokenizer


RUN_FILE = "run.json"


def read_pretrained(source: str, tokenizer: str | None = None) -> Material:
    """Load a folder or a repository on the Hub; a Qwen3 or GPT-2 is converted to GPTLite.

    Raises:
        UserError: It cannot be loaded, weights are missing or left over, or GPTLite cannot compute the model.
    """
    if Path(source).is_file():
        raise ConversionError(f"{source} is a file; give the folder of a model or its name on the Hub")
    (original, loading), loaded_tokenizer = load_pretrained(source, tokenizer, output_loading_info=True)
    for problem in ("missing", "unexpected", "mismatched"):
        if keys := sorted(map(str, loading[f"{problem}_keys"])):
            raise ConversionError(f"{source} has {len(keys)} {problem} weights: {', '.join(keys[:3])}")
    model = original if isinstance(original, GPTLiteForCausalLM) else from_native(original)
    return Material(model, loaded_tokenizer, original, Path(source).resolve().name, _recorded_license(Path(source)))


def _recorded_license(folder: Path) -> str | None:
    """The licence in the run's record, if the folder has a readable one."""
    try:
        return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))["data"]["license"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def write_pretrained(convert: Callable[[GPTLiteForCausalLM], PreTrainedModel]) -> Callable[[Material, Path], None]:
    """A function that converts the model by `convert` and saves it with its tokenizer."""

    def write(material: Material, folder: Path) -> None:
        model = convert(material.model)
        model.save_pretrained(folder)
        if model is not material.model:
            write_rope_theta(model.config, folder)
        save_tokenizer(material.tokenizer, folder)

    return write


# The class of transformers that computes the same, whichever it is: what a push `--as native` publishes.
write_native = write_pretrained(to_native)


def write_rope_theta(config: PreTrainedConfig, folder: Path) -> None:
    """Repeat `rope_theta` at the top level of a saved `config.json`: mlx-lm and transformers 4 read it only there."""
    rope = getattr(config, "rope_parameters", None)
    if rope and "rope_theta" in rope:
        path = folder / "config.json"
        saved = json.loads(path.read_text(encoding="utf-8"))
        saved["rope_theta"] = rope["rope_theta"]
        path.write_text(json.dumps(saved, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def pretrained_logits(folder: Path, input_ids: torch.Tensor, model: GPTLiteForCausalLM) -> torch.Tensor:
    return logits_of(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), input_ids)


TRANSFORMERS = Engine("transformers", pretrained_logits)
