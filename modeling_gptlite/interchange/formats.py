"""The table of formats, and `convert`, which reads one of them and writes another.

    convert("out/quickstart", "out/quickstart-gguf", target_format="gguf")

To add a format, write a module with its functions and add one entry to `FORMATS`. The command's choices and help, the
checks of its flags and the comparison with other engines all come from that entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from transformers import GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel, Qwen3ForCausalLM

from ..files import new_folder
from ..loading import CONFIGURATION_ERRORS, reason
from ..modeling_gptlite import GPTLiteForCausalLM
from . import gguf, nanogpt, onnx, pretrained
from .material import Engine, Material, logits_of
from .native import (
    GPT2,
    LLAMA,
    QWEN3,
    WHOLE_MODEL,
    ConversionError,
    Target,
    require_supported,
    to_gpt2,
    to_llama,
    to_qwen3,
)


CHECKED_TOKENS = 256


class VerificationError(RuntimeError):
    """An engine computes other logits from the written files than the model's."""


@dataclass(frozen=True)
class Format:
    """How one format is read, written and verified.

    Args:
        summary: What it is, for the help text.
        read: Called with a path or Hub name, and a tokenizer's path or Hub name or None. None if the format cannot be
            read.
        write: Called with the model and an empty folder, and with `dtype` if `dtypes` has any. None if the format
            cannot be written.
        supported_fields: The configuration fields that `write` knows; a model with another field is refused. None if
            `write` saves the whole configuration.
        holds: The class of transformers that such a folder holds.
        dtypes: Precisions that `write` can round to, and how far a logit may move, relative to the largest logit.
        engines: Programs that run a written folder.
    """

    summary: str
    read: Callable[..., Material] | None = None
    write: Callable[..., None] | None = None
    supported_fields: frozenset[str] | None = frozenset()
    holds: type[PreTrainedModel] | None = None
    dtypes: Mapping[str, float] = field(default_factory=dict)
    engines: tuple[Engine, ...] = ()


def _of_transformers(target: Target, holds: type[PreTrainedModel], convert: Callable[..., PreTrainedModel]) -> Format:
    return Format(
        f"transformers' {target.name} class",
        read=pretrained.read_pretrained,
        write=partial(pretrained.write_pretrained, convert=convert),
        supported_fields=target.supported_fields,
        holds=holds,
        engines=(pretrained.TRANSFORMERS,),
    )


FORMATS: dict[str, Format] = {
    "gptlite": Format(
        "this package's class",
        read=pretrained.read_pretrained,
        write=pretrained.write_pretrained,
        supported_fields=None,
        holds=GPTLiteForCausalLM,
        engines=(pretrained.TRANSFORMERS,),
    ),
    "nanogpt": Format("nanoGPT's ckpt.pt", read=nanogpt.read_nanogpt),
    "gpt2": _of_transformers(GPT2, GPT2LMHeadModel, to_gpt2),
    "qwen3": _of_transformers(QWEN3, Qwen3ForCausalLM, to_qwen3),
    "llama": _of_transformers(LLAMA, LlamaForCausalLM, to_llama),
    "gguf": Format(
        "for llama.cpp and Ollama",
        write=gguf.write_gguf,
        supported_fields=WHOLE_MODEL,
        dtypes=gguf.DTYPES,
        engines=gguf.ENGINES,
    ),
    "onnx": Format(
        "for ONNX Runtime and transformers.js",
        write=onnx.write_onnx,
        supported_fields=WHOLE_MODEL,
        engines=onnx.ENGINES,
    ),
}


def readable() -> list[str]:
    return [name for name, format in FORMATS.items() if format.read]


def writable() -> list[str]:
    return [name for name, format in FORMATS.items() if format.write]


def convert(
    source: str | Path,
    output: str | Path,
    source_format: str | None = None,
    target_format: str = "gptlite",
    tokenizer: str | None = None,
    meta: str | None = None,
    dtype: str | None = None,
    check: bool = True,
    report: Callable[[str], None] = print,
) -> None:
    """Convert a model into a new folder, and compare the result with the model in the engines that it is for.

    The folder is written under a temporary name and renamed when it is complete and checked; a failure leaves nothing.

    Args:
        source: Folder, file or Hub name of the model.
        output: The folder to write; it must not exist, or be empty.
        source_format: A name in `readable()`. Default: the class that the folder or repository holds.
        target_format: A name in `writable()`.
        tokenizer: Folder or Hub name of another tokenizer than the source's.
        meta: nanoGPT's `meta.pkl`.
        dtype: Precision of the weights, for formats that offer a choice. Default: the model's.
        check: Run the result, and compare its logits with the model's.
        report: Called with each line about the progress.

    Raises:
        UserError: The source cannot be read, the target cannot be written, or the conversion would not be exact.
        VerificationError: The result gives other logits.
    """
    _check_request(source_format, target_format, meta, dtype)
    with new_folder(output, ConversionError) as folder:
        material = read(str(source), source_format, tokenizer, **({"meta": meta} if meta is not None else {}))
        if type(material.original) is FORMATS[target_format].holds:
            raise ConversionError(f"{source} has the format {target_format} already: there is nothing to convert")
        write(material, folder, target_format, dtype)
        if check:
            verify(material, folder, target_format, dtype, report)
    report(f"{output}: {material.model.num_parameters():,} parameters as {target_format}")


def read(source: str, name: str | None = None, tokenizer: str | None = None, **options: str) -> Material:
    """Read a model in the format `name`, by default in that of the class of transformers that it holds.

    Raises:
        UserError: It cannot be read, or is of another format.
    """
    reader = FORMATS[name].read if name else pretrained.read_pretrained
    assert reader is not None, name
    try:
        material = reader(source, tokenizer, **options)
    except OSError as error:
        raise ConversionError(f"cannot read {error.filename or source}: {error.strerror or error}") from error
    except CONFIGURATION_ERRORS as error:
        cause = str(error) if isinstance(error, ConversionError) else reason(error)
        raise ConversionError(f"cannot convert {source}: {cause}") from error
    held = type(material.original)
    if name and FORMATS[name].holds not in (None, held):
        fitting = [other for other, format in FORMATS.items() if format.holds is held]
        raise ConversionError(f"{source} holds a {held.__name__}; use --from {fitting[0]}")
    if len(material.tokenizer) > material.model.config.vocab_size:
        raise ConversionError(
            f"the tokenizer has {len(material.tokenizer):,} tokens, the model {material.model.config.vocab_size:,}"
        )
    return material


def write(material: Material, folder: Path, name: str, dtype: str | None = None) -> None:
    """Write a model in the format `name` into an empty folder.

    Raises:
        ConversionError: The format cannot hold the model exactly.
    """
    target = FORMATS[name]
    assert target.write is not None, name
    try:
        if target.supported_fields is not None:
            require_supported(material.model.config, name, target.supported_fields)
        target.write(material, folder, **({"dtype": dtype} if dtype is not None else {}))
    except ConversionError as error:
        raise ConversionError(f"cannot convert to {name}: {error}") from error


def verify(
    material: Material, folder: Path, name: str, dtype: str | None = None, report: Callable[[str], None] = print
) -> None:
    """Run a written folder in each installed engine of the format `name`, on random ids, and compare the logits.

    Raises:
        VerificationError: They differ by more than rounding.
    """
    model = material.model
    tokens = min(model.config.max_position_embeddings, CHECKED_TOKENS)
    input_ids = torch.randint(model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    expected = logits_of((material.original or model).float(), input_ids)
    largest = expected.abs().max().item()
    for engine in FORMATS[name].engines:
        try:
            difference = (engine.logits(folder, input_ids, model) - expected).abs().max().item()
        except ImportError:
            report(f"not checked in {engine.name}, which is not installed: pip install {engine.package}")
            continue
        line = (
            f"{engine.name}: logits differ by at most {difference:.1e} (largest logit {largest:.1f}, {tokens} tokens)"
        )
        if not difference <= max(engine.tolerance, FORMATS[name].dtypes.get(dtype or "", 0.0)) * max(largest, 1):
            raise VerificationError(f"the result is wrong, and was deleted: {line}")
        report(line)


def _check_request(source: str | None, target: str, meta: str | None, dtype: str | None) -> None:
    for name, allowed in ((source, [None, *readable()]), (target, writable())):
        if name not in allowed:
            raise ConversionError(f"unknown format {name!r}; choose from {', '.join(filter(None, allowed))}")
    if meta is not None and source != "nanogpt":
        raise ConversionError("--meta needs --from nanogpt")
    if dtype is not None and dtype not in FORMATS[target].dtypes:
        fitting = [f"{name} ({', '.join(format.dtypes)})" for name, format in FORMATS.items() if format.dtypes]
        raise ConversionError(f"--dtype {dtype} does not go with --to {target}; it goes with {' or '.join(fitting)}")
