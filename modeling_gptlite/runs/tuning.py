"""How to fine-tune a pretrained model: context, batch, rates and passes for a text, a time and a memory.

chosen = tune({"model_name_or_path": "HuggingFaceTB/SmolLM2-135M"}, Base(longest=8192), 305_111, memory)
print(chosen)  # {"context_length": 768, "learning_rate": 0.0002, ...}

`benchmarks/tuning.md` says how the values were found.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from transformers.utils import is_peft_available

from ..training.arguments import ArgumentError
from .settings import defaults, left_open


TUNED = "tuned"  # in the record of a run: how to fine-tune, as it was chosen
CONTEXT = 768  # tokens; a longer window lowers the loss, and takes more time and memory: 4 GB with 135M parameters
TOKENS_PER_STEP, MOST_TOKENS_PER_STEP = 1024, 8192
STEPS = 200  # if there is time and text for more, steps get larger first
PASSES = 2.0  # over the text; in more, it is memorized
RATE, LORA_RATE, LORA_RANK = 2e-4, 1e-3, 16
EVALUATIONS = 4
WARMUP = 0.05  # of the steps
FREE_SHARE = 0.9  # of the free memory; predictions are up to 10 % too low
COMMON: dict[str, Any] = {
    "lr_scheduler_type": "linear",
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "eval_on_start": True,
    "per_device_eval_batch_size": 4,
    "logging_steps": 1,
    "eval_sample_length": 32,
    "sample_length": 200,
}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in defaults() else "gradient_checkpointing"

Memory = Callable[[Mapping[str, Any]], tuple[int, int]]


@dataclass(frozen=True)
class Base:
    """A pretrained model."""

    longest: int | None  # tokens of its context; None if there is no limit
    new_tokens: int = 0  # characters of the text that joined its vocabulary


# ---- Which base ----------------------------------------------------------------------------------------------------


class Named(NamedTuple):
    """A pretrained model on the Hub that suits small machines, with what a user wants to know before the download."""

    name: str
    megabytes: int
    license: str
    is_english: bool
    memory: int  # bytes; its fine-tuning needs at least this many


BASES = (  # the best one for a text and a memory comes first
    Named("HuggingFaceTB/SmolLM2-135M", 269, "apache-2.0", True, 2 * 10**9),
    Named("EleutherAI/pythia-70m", 166, "apache-2.0", True, 10**9),
    Named("Qwen/Qwen3-0.6B-Base", 1192, "apache-2.0", False, 8 * 10**9),
)


def is_english(text: str) -> bool:
    """Whether the beginning of a text has the commonest words of English as often as English has."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    return bool(words) and sum(word in _ENGLISH for word in words) > 0.1 * len(words)


_ENGLISH = frozenset(
    re.findall(r"\w+", "the of and to in is that it for as was with be by on not he his you at this are")
)


def choose_base(language: str | None, beginning: str, free: int) -> Named:
    """The base to fine-tune for a text.

    Args:
        language: As it was given, `en` for example; None to look at the text.
        beginning: Of the text.
        free: Bytes of memory.

    Raises:
        ArgumentError: None of `BASES` suits.
    """
    english = is_english(beginning) if language is None else language.lower().split("-")[0] in ("en", "english")
    for base in BASES:
        if base.memory <= free and (base.is_english is english):
            return base
    text = "a text in English" if english else "a text in another language than English"
    raise ArgumentError(
        f"--model_name_or_path auto knows no model for {text} that {free / 1e9:.1f} GB of memory are enough for; "
        "name one, or train from scratch without it"
    )


# ---- How to fine-tune it -------------------------------------------------------------------------------------------


def tune(settings: Mapping[str, Any], base: Base, train_tokens: float, memory: Memory) -> dict[str, Any]:
    """The settings that a run leaves open, but for the number of steps.

    All weights except the embeddings are trained if there is memory for it, else LoRA matrices; with activations that
    are computed twice if it must be, in shorter windows if not even that is enough.

    Args:
        memory: Returns the bytes that a run with some settings needs, and those that are free.

    Raises:
        ArgumentError: There is not enough memory.
    """
    needed = free = 0
    for option in _options(settings, base, train_tokens):
        needed, free = memory({**option, **settings})
        if needed <= FREE_SHARE * free:
            return left_open(option, settings)
    least = needed / FREE_SHARE
    lora = "" if is_peft_available() else ', or pip install "gptlite[finetune]" for LoRA, which needs less'
    raise ArgumentError(
        f"training needs at least {least / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: close "
        f"other programs, or give a smaller model with --model_name_or_path{lora}"
    )


def _options(settings: Mapping[str, Any], base: Base, train_tokens: float) -> Iterator[dict[str, Any]]:
    """Ways to train, the best one first; the last one needs the least memory."""
    context = min(CONTEXT, base.longest or CONTEXT)
    while context > 32 and 10 * context > train_tokens:  # the validation split has a ninth of the tokens
        context //= 2
    contexts = [settings["context_length"]] if "context_length" in settings else [context, context // 2, context // 4]
    full: dict[str, Any] = {"learning_rate": RATE, "freeze_embeddings": not base.new_tokens}
    lora: dict[str, Any] = {"learning_rate": LORA_RATE, "lora_r": LORA_RANK}
    ways = [lora] if "lora_r" in settings else [full, lora] if is_peft_available() else [full]
    for way, length, twice in itertools.product(ways, contexts, (False, True)):
        windows = max(1, TOKENS_PER_STEP // contexts[0])
        batch = {"context_length": length, "per_device_train_batch_size": windows}
        if not settings.keys().isdisjoint({"gradient_checkpointing", "activation_checkpointing"}):
            yield {**COMMON, **way, **batch}
        else:
            yield {**COMMON, **way, **batch, CHECKPOINTING: twice}


def spread(chosen: Mapping[str, Any], steps: float) -> int:
    """How many batches to accumulate, where there is time and text for `steps` steps of one batch.

    Few steps of few tokens learn more than fewer steps of more; with many, less noise is worth more.
    """
    tokens = chosen["per_device_train_batch_size"] * chosen["context_length"]
    return max(1, min(int(steps / STEPS), MOST_TOKENS_PER_STEP // tokens))


def intervals(steps: int, evaluations: int) -> dict[str, int]:
    """The numbers of steps of a run of about `steps` steps whose last one is evaluated and saved.

    Args:
        evaluations: As many, or fewer.
    """
    every = steps = max(1, steps)
    for count in range(evaluations, 0, -1):
        every = max(1, steps // count)
        if steps // every <= evaluations:
            break
    whole = steps - steps % every
    return {
        "max_steps": whole,
        "warmup_steps": math.ceil(WARMUP * whole),
        "eval_steps": every,
        "save_steps": every,
    }


def describe(settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """What was chosen and why, in one line."""
    rank = settings.get("lora_r")
    way = "all weights" if rank is None else f"LoRA of rank {rank}"
    if rank is None and settings.get("freeze_embeddings"):
        way = "all weights but the embeddings"
    if "lora_r" in chosen:
        way += ", because there is too little memory to train all weights"
    if settings.get(CHECKPOINTING):
        way += ", with activations computed twice to save memory"
    windows = settings["per_device_train_batch_size"] * settings.get("gradient_accumulation_steps", 1)
    return (
        f"fine-tuning {way}: {windows} x {settings['context_length']} tokens per step, "
        f"peak learning rate {settings['learning_rate']:g}"
    )
