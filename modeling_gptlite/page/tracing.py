"""Text generation that records what the model computed: the probability of each token, its alternatives, attention.

model = load("out/quickstart")
for samples in model.write(model.encode("ROMEO:"), samples=1, length=100, temperature=0.8, top_k=0, top_p=1, seed=1):
    print(samples[0].tokens[-1])
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..decoding import prompt_ids
from ..errors import UserError
from ..loading import load_pretrained
from .settings import MOST_PROMPTS, PROMPTS


ALTERNATIVES = 5
CHECKPOINT = "checkpoint-"  # how the Trainer names the folders inside a run's


@dataclass(frozen=True)
class Token:
    """A token that was written, and the model's prediction for its place, at temperature 1."""

    text: str
    probability: float
    best: list[tuple[str, float]]  # the likeliest tokens, likeliest first
    window: slice  # of `Sample.ids`: the tokens that the model read to write this one


@dataclass
class Sample:
    """A text in the making. `ids` are those of the prompt followed by those of `tokens`; more after it has ended."""

    ids: list[int]
    tokens: list[Token] = field(default_factory=list)
    has_ended: bool = False  # the model predicted the end of the text

    def __post_init__(self):
        self.decoded = len(self.ids)  # ids that are text already
        self.begin = self.decoded - 1  # from here on ids are decoded together

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


@dataclass(frozen=True)
class TracedModel:
    """A causal language model with its tokenizer, and what is known about it."""

    label: str
    model: Any
    tokenizer: Any
    facts: dict[str, Any] = field(default_factory=dict)  # see `read_facts`

    @property
    def context(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def ends(self) -> list[int]:
        """The tokens that end a text; none unless the model was trained to predict one."""
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [] if ends is None else [ends]

    @cached_property
    def unit(self) -> str:
        """What a token is: a character, if the vocabulary holds nothing longer."""
        special = set(self.tokenizer.all_special_tokens)
        return (
            "token" if any(len(name) > 1 for name in self.tokenizer.get_vocab() if name not in special) else "character"
        )

    def encode(self, prompt: str) -> list[int]:
        """The ids of a prompt; an empty one begins a text.

        Raises:
            UserError: The vocabulary lacks one of its characters, or there is no token that begins a text.
        """
        if unknown := [c for c in dict.fromkeys(prompt) if not self._knows(c)]:
            named = ", ".join(f"{c!r} (U+{ord(c):04X})" for c in unknown[:8])
            others = " and others" if unknown[8:] else ""
            raise UserError(
                f"Not in the vocabulary of {self.label}: {named}{others}. Please remove them from the prompt."
            )
        ids = prompt_ids(self.tokenizer, prompt)
        if not ids:
            raise UserError(f"{self.label} has no token that begins a text. Please write a prompt.")
        return ids

    def _knows(self, character: str) -> bool:
        try:
            return self.tokenizer.unk_token_id not in self.tokenizer(character, add_special_tokens=False)["input_ids"]
        except Exception:  # what `tokenizers` raises if there is no unknown token
            return False

    @torch.inference_mode()
    def write(
        self, ids: list[int], samples: int, length: int, temperature: float, top_k: int, top_p: float, seed: int
    ) -> Iterator[list[Sample]]:
        """Continue a prompt; yields all samples after every token, until all have ended or are long enough.

        Sample i draws from a generator of its own, seeded with `seed + i`, so concurrent visitors do not affect each
        other. When the context is full, the newest half is kept and read again, as in the model's own `generate`.
        """
        texts = [Sample(list(ids)) for _ in range(samples)]
        generators = [torch.Generator().manual_seed((seed + i) % 2**63) for i in range(samples)]
        start = max(0, len(ids) - self.context)
        unread, cache = [text.ids[start:] for text in texts], None
        for _ in range(length):
            if len(texts[0].ids) - start > self.context:
                start = len(texts[0].ids) - max(self.context // 2, 1)
                unread, cache = [text.ids[start:] for text in texts], None
            input_ids = torch.tensor(unread, device=self.model.device)
            output = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True)
            cache, logits = output.past_key_values, output.logits[:, -1].float().cpu()
            for text, row, generator in zip(texts, logits, generators, strict=True):
                self._append(text, row, draw(row, temperature, top_k, top_p, generator), start)
            unread = [text.ids[-1:] for text in texts]
            yield texts
            if all(text.has_ended for text in texts):
                return

    def _append(self, sample: Sample, logits: torch.Tensor, token_id: int, start: int) -> None:
        if sample.has_ended or token_id in self.ends:
            sample.has_ended = True
            sample.ids.append(token_id)  # it is read beside the samples that go on
            return
        probabilities = logits.softmax(-1)
        values, indices = probabilities.topk(min(ALTERNATIVES, len(logits)))
        names = [self.tokenizer.decode([i]) for i in indices.tolist()]
        best = list(zip(names, values.tolist(), strict=True))
        window = slice(start, len(sample.ids))
        sample.ids.append(token_id)
        sample.tokens.append(Token(self._newest_text(sample), probabilities[token_id].item(), best, window))

    def _newest_text(self, sample: Sample) -> str:
        """What the last token adds to the text: with the tokens before it, which decide about spaces.

        A character of several tokens is the text of the last one.
        """
        before = self.tokenizer.decode(sample.ids[sample.begin : sample.decoded])
        text = self.tokenizer.decode(sample.ids[sample.begin :])[len(before) :]
        if text.endswith("\ufffd") and self.tokenizer.convert_ids_to_tokens(sample.ids[-1]) != "\ufffd":
            return ""
        sample.begin, sample.decoded = sample.decoded, len(sample.ids)
        return text

    @torch.inference_mode()
    def attention(self, ids: list[int], layer: int, head: int) -> tuple[list[str], list[float]]:
        """The tokens of a window, and how much its last one attends to each of them, in one head of one layer, from 0.

        The weights sum to 1. A layer or head past the last one means the last one.
        """
        *before, last = ids
        device, cache = self.model.device, None
        if before:
            cache = self.model(input_ids=torch.tensor([before], device=device), use_cache=True).past_key_values
        # The last token alone: the weights of all of them would need memory quadratic in the context.
        attentions = self.model(
            input_ids=torch.tensor([[last]], device=device), past_key_values=cache, output_attentions=True
        ).attentions
        heads = attentions[min(layer, len(attentions) - 1)][0, :, -1].float().cpu()  # heads, tokens
        return [self.tokenizer.decode([i]) for i in ids], heads[min(head, len(heads) - 1)].tolist()


def draw(logits: torch.Tensor, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """A token from logits `(vocab_size,)`, as transformers' `generate` samples: temperature, then top-k, then top-p."""
    weights, order = (logits / temperature).softmax(-1).sort(descending=True)
    if top_k:
        weights[top_k:] = 0
        weights /= weights.sum()
    weights[weights.cumsum(-1) - weights >= top_p] = 0
    return int(order[weights.multinomial(1, generator=generator)].item())


def load(name: str, trust_remote_code: bool = False) -> TracedModel:
    """Load a model from a folder or the Hub, on the accelerator if there is one.

    Raises:
        UserError: It cannot be loaded.
    """
    # Only eager attention returns its weights.
    model, tokenizer = load_pretrained(name, attn_implementation="eager", trust_remote_code=trust_remote_code)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return TracedModel(label_of(name), model.to(device).eval(), tokenizer, read_facts(name))


def label_of(name: str) -> str:
    """What a model is called on the page: the last part of its name; a checkpoint has its run before it."""
    parts = Path(name).resolve().parts if Path(name).exists() else Path(name).parts
    return "/".join(parts[-2:]) if parts[-1].startswith(CHECKPOINT) else parts[-1]


def unit_of(models: Sequence[TracedModel]) -> str:
    return "token" if any(model.unit == "token" for model in models) else "character"


def example_prompts(models: Sequence[TracedModel]) -> list[str]:
    """Prompts that all models can read, the recorded ones first."""
    recorded = [model.facts["prompt"] for model in models if model.facts.get("prompt", "").strip()]

    def is_readable(prompt: str) -> bool:
        try:
            return all(model.encode(prompt) for model in models)
        except UserError:
            return False

    return [prompt for prompt in dict.fromkeys([*recorded, *PROMPTS]) if is_readable(prompt)][:MOST_PROMPTS]


def read_facts(name: str) -> dict[str, Any]:
    """What a run recorded about a model, of a folder or the Hub: its validation `loss` and the `prompt` of its samples.

    A checkpoint has the loss of its own step. Facts that are not recorded are left out.
    """
    folder = Path(name)
    if not folder.name.startswith(CHECKPOINT):
        record = _read_json(name, "run.json")
        return _known(loss=record.get("results", {}).get("loss"), prompt=record.get("prompt"))
    state = _read_json(name, "trainer_state.json")
    losses = [entry["eval_loss"] for entry in state.get("log_history", []) if "eval_loss" in entry]
    return read_facts(str(folder.parent)) | _known(loss=losses[-1] if losses else None)


def _known(**facts: Any) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value is not None}


def _read_json(name: str, file: str) -> dict[str, Any]:
    from transformers.utils import cached_file

    try:
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
        content = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError):  # a damaged record must not keep its model from being shown
        return {}
    return content if isinstance(content, dict) else {}
