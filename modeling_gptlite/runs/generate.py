"""Generating text with a saved model: one text while it is generated, or many in batches.

model, tokenizer = load_for_inference("out/quickstart")
stream(model, tokenizer, "ROMEO:", GenerationSettings(max_new_tokens=200), sys.stdout.write)
texts = list(samples(model, tokenizer, "ROMEO:", GenerationSettings(temperature=0.8), count=10))
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer, set_seed

from tokenization import describe_characters, unknown_characters

from ..decoding import prompt_ids
from ..engine import EngineError, in_engine, load_fast
from ..errors import UserError, check, setting
from ..files import UserPath
from ..loading import check_folder, check_generation, load_for_inference, load_tokenizer, longest_text


ENGINES = ("auto", "torch", "onnx")
DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")
BATCH = 64  # samples that are generated at the same time
LARGEST_IN_ENGINE = 50_000_000  # parameters; a larger model takes longer to build than a text gains
LOWEST_TEMPERATURE = 1e-6  # logits divided by less overflow


@dataclass
class LoadSettings:
    """The model, and where it runs."""

    model: UserPath = setting(help="Folder, or repository id on the Hub, of the model.")
    seed: int | None = setting(None, "Repeats a text. Default: another text each time.")
    device: str | None = setting(None, "cpu, cuda, mps, ... Default: the fastest available.")
    dtype: str = setting(
        "auto", "float32, bfloat16, float16, or int8 (weights; onnx only). Default: that of the saved weights."
    )
    engine: str = setting(
        "auto", "torch, or onnx: faster on a CPU, in float32 or int8. Default: onnx where it gives the same text."
    )

    def __post_init__(self):
        rules = [
            ("seed", self.seed is None or 0 <= self.seed < 1 << 32, "between 0 and 4,294,967,295"),
            ("engine", self.engine in ENGINES, f"{', '.join(ENGINES[:-1])} or {ENGINES[-1]}"),
            ("dtype", self.dtype in DTYPES, f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"),
        ]
        check(self, rules)


@dataclass
class SamplingSettings:
    """How to generate."""

    max_new_tokens: int = setting(500, "Tokens to generate; a GPTLite model can go past its context length.")
    greedy: bool = setting(False, "Always choose the most likely token instead of sampling.")
    temperature: float | None = setting(
        None, "Below 1: more predictable; above 1: more random. Default: the model's own."
    )
    top_k: int | None = setting(None, "Sample among this many most likely tokens; 0: all. Default: the model's own.")
    top_p: float | None = setting(
        None, "Sample among the most likely tokens with this total probability. Default: the model's own."
    )
    min_p: float | None = setting(
        None, "Sample among tokens at least this likely, relative to the likeliest. Default: the model's own."
    )
    repetition_penalty: float | None = setting(
        None, "Above 1: tokens that the text already has become less likely. Default: the model's own."
    )
    stop: list[str] | None = setting(None, "End a text before any of these texts; the prompt may contain them.")

    def __post_init__(self):
        lowest = f"at least {LOWEST_TEMPERATURE} (--greedy chooses the most likely token)"
        rules = [
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature is None or LOWEST_TEMPERATURE <= self.temperature < math.inf, lowest),
            ("top_k", self.top_k is None or self.top_k >= 0, "0 (all tokens) or more"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "between 0 and 1"),
            (
                "repetition_penalty",
                self.repetition_penalty is None or 0 < self.repetition_penalty < math.inf,
                "above 0 (1: no penalty)",
            ),
            ("stop", self.stop is None or all(self.stop), "texts of at least one character"),
        ]
        check(self, rules)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of `model.generate`; what is None comes from the model's `generation_config.json`."""
        given: dict[str, Any] = {"repetition_penalty": self.repetition_penalty}
        if self.greedy:  # the defaults of what has no effect: transformers warns about other values
            unused = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": None}
            return {"do_sample": False, "num_beams": 1, **unused, **_without_none(given)}
        given |= {name: getattr(self, name) for name in ("temperature", "top_k", "top_p", "min_p")}
        return {"do_sample": True, **_without_none(given)}


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


@dataclass
class GenerationSettings(SamplingSettings):
    """How to generate."""

    stop_at_eos: bool = setting(False, "Stop at the model's end-of-text token.")


def load(settings: LoadSettings, sampling: SamplingSettings):
    """The model and its tokenizer, known to generate as asked, and the random numbers of the seed.

    Raises:
        UserError: As for `load_generator`; or the model cannot generate.
    """
    model, tokenizer = load_generator(settings.model, settings.device, settings.dtype, settings.engine)
    check_generation(model, settings.model, **sampling.arguments())
    if settings.seed is not None:
        set_seed(settings.seed)
    return model, tokenizer


def load_generator(name_or_path: str, device: str | None = None, dtype: str = "auto", engine: str = "auto"):
    """Load a model and its tokenizer to generate text.

    Args:
        device: Default: the accelerator if there is one, else the CPU.
        dtype: One of `DTYPES`; int8 needs ONNX Runtime.
        engine: One of `ENGINES`. "auto" is ONNX Runtime for int8, and where it is faster and gives the same text;
            otherwise PyTorch.

    Raises:
        UserError: It cannot be loaded, or the engine cannot run it.
    """
    if engine == "torch" and dtype == "int8":
        raise UserError("--engine torch does not take --dtype int8; use --engine onnx")
    if engine == "onnx" or dtype == "int8":
        return _load_in_onnx(name_or_path, device, dtype)
    model, tokenizer = load_for_inference(name_or_path, device, dtype)
    if engine == "auto":
        model = _faster_if_equal(model)
    return model, tokenizer


def _load_in_onnx(name_or_path: str, device: str | None, dtype: str):
    chosen = "--dtype int8" if dtype == "int8" else "--engine onnx"
    if device not in (None, "cpu"):
        raise UserError(f"{chosen} takes --device cpu, got --device {device}")
    if dtype not in ("auto", "float32", "int8"):
        raise UserError(f"{chosen} takes --dtype float32 or int8, got --dtype {dtype}")
    check_folder(name_or_path)
    tokenizer = load_tokenizer(name_or_path)
    try:
        model = load_fast(name_or_path, int8=dtype == "int8")
    except EngineError as error:
        raise UserError(f"{chosen}: {error}; without {chosen}, PyTorch generates") from error
    check_generation(model, name_or_path)
    return model, tokenizer


def _faster_if_equal(model):
    """The model in ONNX Runtime if that is faster and writes the same text, else the model.

    A seed must give the same text on every computer, with or without ONNX Runtime: so the engine computes in float32
    here, as the model does, and its faster int8 is for those who ask for it.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if model.device.type != "cpu" or model.dtype != torch.float32 or parameters > LARGEST_IN_ENGINE:
        return model
    try:
        fast = in_engine(model, int8=False)
        check_generation(fast, model.name_or_path)
    except UserError:  # another architecture, no kernels, no ONNX Runtime
        return model
    return fast


def stream(model, tokenizer, prompt: str, settings: GenerationSettings, write: Callable[[str], Any]) -> None:
    """Generate one text; `write` is called with the prompt, and then with each piece as soon as it is complete.

    Raises:
        UserError: The model cannot read the prompt.
    """
    arguments = _arguments(model, tokenizer, prompt, settings)
    begin = len(tokenizer.decode(arguments["input_ids"][0], skip_special_tokens=True))
    streamer = Streamer(tokenizer, write, settings.stop, begin)
    model.generate(**arguments, num_return_sequences=1, streamer=streamer)


def samples(model, tokenizer, prompt: str, settings: GenerationSettings, count: int) -> Iterator[str]:
    """Generate `count` texts that begin with the prompt, up to `BATCH` at the same time.

    Raises:
        UserError: The model cannot read the prompt.
    """
    arguments = _arguments(model, tokenizer, prompt, settings)
    begin = len(tokenizer.decode(arguments["input_ids"][0], skip_special_tokens=True))
    for done in range(0, count, BATCH):
        outputs = model.generate(**arguments, num_return_sequences=min(BATCH, count - done))
        for text in tokenizer.batch_decode(outputs, skip_special_tokens=True):
            yield text[: _find_stop(text, settings.stop, begin)]


def read_prompt(model, tokenizer, prompt: str) -> dict[str, torch.Tensor]:
    """The encoded prompt, `(1, tokens)` with its attention mask, on the model's device.

    Raises:
        UserError: The prompt has characters outside the vocabulary, is empty and the tokenizer has no token that begins
            a text, or fills the context of a model that cannot go past it.
    """
    check_characters(tokenizer, "the prompt", prompt)
    ids = prompt_ids(tokenizer, prompt)
    if not ids:
        raise UserError("the prompt is empty, and the model's tokenizer has no token that begins a text")
    longest, tokens = longest_text(model), len(ids)
    if longest is not None and tokens >= longest:
        raise UserError(f"the prompt has {tokens} tokens, which fill the model's context length of {longest}")
    return as_inputs(model, ids)


def check_characters(tokenizer, what: str, text: str) -> None:
    """Raise `UserError` if the tokenizer can encode a character neither as a token nor as bytes."""
    has_bytes = tokenizer.convert_tokens_to_ids("<0x00>") not in (None, tokenizer.unk_token_id)
    if not has_bytes and (unknown := unknown_characters(text, tokenizer)):
        raise UserError(f"{what} has characters outside the model's vocabulary: {describe_characters(unknown)}")


def as_inputs(model, ids: list[int]) -> dict[str, torch.Tensor]:
    """A batch of one text, `(1, tokens)` with its attention mask, on the model's device."""
    input_ids = torch.tensor([ids], device=model.device)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def tokens_to_generate(model, tokenizer, prompt: str, max_new_tokens: int) -> int:
    """`max_new_tokens`, or fewer if the model cannot go past its context length."""
    longest = longest_text(model)
    if longest is None:
        return max_new_tokens
    return min(max_new_tokens, longest - read_prompt(model, tokenizer, prompt)["input_ids"].shape[1])


class Streamer(TextStreamer):
    """Calls `write` with each piece of the text as soon as it is complete, and with a line break at the end.

    Args:
        stop: The text ends before any of these.
        begin: Characters of the prompt, which are written and not searched; None: the prompt is not written.
    """

    def __init__(
        self, tokenizer, write: Callable[[str], Any], stop: Sequence[str] | None = None, begin: int | None = None
    ):
        super().__init__(tokenizer, skip_prompt=begin is None, skip_special_tokens=True)
        self.write, self.stop, self.begin = write, stop, begin or 0
        self.held_back = max(map(len, stop or [" "])) - 1  # characters that may be the start of a stop text
        self.text, self.written, self.is_over = "", 0, False

    def on_finalized_text(self, text: str, stream_end: bool = False):
        self.text += "" if self.is_over else text
        end = _find_stop(self.text, self.stop, max(self.begin, self.written))
        if end is None:
            end = len(self.text) if stream_end or self.is_over else max(self.written, len(self.text) - self.held_back)
        else:
            self.text, self.is_over = self.text[:end], True
        self.write(self.text[self.written : end] + ("\n" if stream_end else ""))
        self.written = end


def _find_stop(text: str, stop: Sequence[str] | None, begin: int) -> int | None:
    """Where the first of the stop texts is, after the prompt; None: nowhere."""
    found = [text.find(one, begin) for one in stop or ()]
    return min((position for position in found if position >= 0), default=None)


class StopTexts(StoppingCriteria):
    """Ends each text of a batch as soon as the new part has one of the stop texts.

    Other than transformers' `stop_strings`, it works for any tokenizer and does not look at the prompt.
    """

    def __init__(self, tokenizer, stop: Sequence[str], prompt_tokens: int):
        self.tokenizer, self.stop, self.prompt_tokens = tokenizer, stop, prompt_tokens
        self.window = max(len(text.encode()) for text in stop) + 4  # a token has a byte at least

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor, **kwargs: Any) -> torch.BoolTensor:
        newest = input_ids[:, max(self.prompt_tokens, input_ids.shape[1] - self.window) :]
        texts = self.tokenizer.batch_decode(newest, skip_special_tokens=True)
        stops = [any(one in text for one in self.stop) for text in texts]
        return torch.tensor(stops, device=input_ids.device)  # type: ignore[return-value]


def ends(model, tokenizer) -> dict[str, Any]:
    """The keyword arguments of `model.generate` that end a text at any token that ends one."""
    config = model.generation_config
    own = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    found = sorted({*own, tokenizer.eos_token_id} - {None})
    # Without a token to pad with, transformers warns at each text.
    pads = (config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, *found)
    pad = next((token_id for token_id in pads if token_id is not None), None)
    return {"eos_token_id": found, "pad_token_id": pad} if found else {}


def stopping(tokenizer, settings: SamplingSettings, inputs) -> dict[str, Any]:
    """The keyword arguments of `model.generate` that end a text before the stop texts."""
    if not settings.stop:
        return {}
    return {
        "stopping_criteria": StoppingCriteriaList([StopTexts(tokenizer, settings.stop, inputs["input_ids"].shape[1])])
    }


def _arguments(model, tokenizer, prompt: str, settings: GenerationSettings) -> dict[str, Any]:
    length = tokens_to_generate(model, tokenizer, prompt, settings.max_new_tokens)
    inputs = read_prompt(model, tokenizer, prompt)
    stops = stopping(tokenizer, settings, inputs)
    if settings.stop_at_eos:
        stops |= ends(model, tokenizer)
    return {**inputs, **settings.arguments(), **stops, "max_new_tokens": length}
