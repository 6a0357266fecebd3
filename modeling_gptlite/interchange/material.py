"""What travels between the formats: a model with its tokenizer, and the engines that run a written folder."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..modeling_gptlite import GPTLiteForCausalLM
from .native import ConversionError


@dataclass
class Material:
    """A model to write."""

    model: GPTLiteForCausalLM  # the model as GPTLite
    tokenizer: PreTrainedTokenizerBase
    # The model as it was read; the written files must give its logits. Default: `model`.
    original: PreTrainedModel | None = None
    name: str = "model"  # for the metadata and for file names
    license: str | None = None  # the license as an SPDX identifier, None if it is unknown


@dataclass(frozen=True)
class Engine:
    """A program that runs a written folder.

    Args:
        name: Its name in reports.
        logits: Called with the folder, token ids `(batch, tokens)` and the GPTLite model that was written; returns the
            logits `(batch, tokens, vocab_size)`. Raises `ImportError` if the program is not installed.
        tolerance: Largest allowed difference of the logits, as a fraction of the largest logit.
            package: What `pip install` needs for it.
    """

    name: str
    logits: Callable[[Path, torch.Tensor, GPTLiteForCausalLM], torch.Tensor]
    tolerance: float = 1e-4
    package: str | None = None


def logits_of(model: PreTrainedModel, input_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids).logits


@contextlib.contextmanager
def from_extra(what: str) -> Iterator[None]:
    """Turn a missing optional package into a `ConversionError` that says what to install."""
    try:
        yield
    except ImportError as error:
        raise ConversionError(
            f"{what} needs {error.name}: pip install --upgrade transformers 'gptlite[export]'"
        ) from error
