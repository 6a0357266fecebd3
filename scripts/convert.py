"""Convert a model: nanoGPT, GPT-2 and Qwen3 checkpoints in; the same, GGUF and ONNX out. Exactly, or not at all.

python -m scripts.convert --from nanogpt out-shakespeare-char/ckpt.pt out/imported --meta meta.pkl
python -m scripts.convert --to gguf out/quickstart out/quickstart-gguf
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from scripts.cli import (
    CONFIGURATION_ERRORS,
    Parser,
    UserError,
    accept_older_transformers,
    load_pretrained,
    load_tokenizer,
    reason,
    run,
)


CHECKED_TOKENS = 256


@dataclass
class ConvertArguments:
    """What to convert, and into what."""

    source_format: Literal["gptlite", "nanogpt", "gpt2", "qwen3"] = field(
        default="gptlite",
        metadata={
            "aliases": ["--from"],
            "help": "What IN is: gptlite, gpt2 or qwen3 (a folder or a name on the Hub), or nanogpt (a ckpt.pt).",
        },
    )
    target_format: Literal["gptlite", "nanogpt", "gpt2", "qwen3", "gguf", "onnx"] = field(
        default="gptlite",
        metadata={
            "aliases": ["--to"],
            "help": "What OUT becomes: gptlite; transformers' own gpt2 or qwen3; nanogpt; gguf, for llama.cpp; onnx.",
        },
    )
    meta: str | None = field(
        default=None,
        metadata={"help": "nanoGPT's meta.pkl, which holds its characters. Default: the meta.pkl beside the ckpt.pt."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Folder or Hub name of the tokenizer. Default: the one in IN, or the characters of meta.pkl."
        },
    )
    check: bool = field(
        default=True, metadata={"help": "Run the result in its engine, and compare the logits with those of IN."}
    )


def main(argv: list[str] | None = None):
    parser = Parser((ConvertArguments,), __doc__)
    parser.add_argument("input", metavar="IN", help="The model: a folder, a file or a name on the Hub.")
    parser.add_argument("output", metavar="OUT", help="The folder to make; it must not exist, or be empty.")
    args, paths = parser.parse(argv)
    output = Path(os.path.abspath(paths.output))
    check(args, Path(paths.input), Path(paths.output))

    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, tokenizer, source = read(args, paths.input)
    try:
        # Aside, and moved into place when it is whole and checked.
        nearest = next(parent for parent in output.parents if parent.exists())
        with tempfile.TemporaryDirectory(dir=nearest, prefix=f".{output.name}-") as aside:
            folder = Path(aside) / output.name
            folder.mkdir()
            write(args.target_format, model, tokenizer, folder)
            if args.check:
                compare(args.target_format, model, source, folder)
            output.parent.mkdir(parents=True, exist_ok=True)
            folder.replace(output)
    except OSError as error:
        raise UserError(f"cannot write {paths.output}: {error.strerror or error}") from error
    print(f"{paths.output}: {model.num_parameters():,} parameters as {args.target_format}")
    if args.target_format == "nanogpt":
        print(f"to sample, in nanoGPT's folder: put meta.pkl, if there is one, into data/{output.name}, and run")
        print(f"python sample.py --out_dir={paths.output}")


def check(args: ConvertArguments, source: Path, output: Path) -> None:
    if args.source_format == args.target_format:
        raise UserError(f"--from and --to are both {args.source_format}: there is nothing to convert")
    if args.meta is not None and (args.source_format != "nanogpt" or args.tokenizer is not None):
        raise UserError("--meta goes with --from nanogpt, and not with --tokenizer")
    if args.source_format != "nanogpt" and source.is_file():
        raise UserError(f"{source} is a file; give the folder of the model (a nanoGPT checkpoint takes --from nanogpt)")
    if output.exists() and (output.is_file() or any(output.iterdir())):
        raise UserError(f"{output} exists already; name a new folder, or delete it first")


def read(args: ConvertArguments, source: str):
    """The model, its tokenizer, and what its logits must equal: the class that IN holds, if transformers has it."""
    from modeling_gptlite.conversion import ConversionError, from_native

    try:
        if args.source_format == "nanogpt":
            model, tokenizer = read_nanogpt(args, Path(source))
            original = model
        else:
            original, tokenizer = read_pretrained(args, source)
            model = original if args.source_format == "gptlite" else from_native(original)
    except OSError as error:
        raise UserError(f"cannot read {error.filename or source}: {error.strerror or error}") from error
    except CONFIGURATION_ERRORS as error:
        told = error if isinstance(error, ConversionError) else reason(error)
        raise UserError(f"cannot convert {source} from {args.source_format}: {told}") from error
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(f"the tokenizer has {len(tokenizer):,} tokens, the model {model.config.vocab_size:,}")
    return model, tokenizer, original


def read_pretrained(args: ConvertArguments, source: str):
    classes = {"gptlite": "GPTLiteForCausalLM", "gpt2": "GPT2LMHeadModel", "qwen3": "Qwen3ForCausalLM"}
    (model, loading), tokenizer = load_pretrained(source, args.tokenizer, output_loading_info=True)
    if type(model).__name__ != classes[args.source_format]:
        fitting = [name for name, of in classes.items() if of == type(model).__name__]
        advice = f"--from {fitting[0]}" if fitting else f"--from takes {', '.join(classes)} and nanogpt"
        raise UserError(f"{source} holds a {type(model).__name__}; {advice}")
    for problem in ("missing", "unexpected", "mismatched"):
        if keys := sorted(map(str, loading[f"{problem}_keys"])):
            raise UserError(f"{source} has {len(keys)} {problem} weights: {', '.join(keys[:3])}")
    return model, tokenizer


def read_nanogpt(args: ConvertArguments, path: Path):
    """The model, set to sample as nanoGPT does, and the characters of meta.pkl, or another tokenizer."""
    from transformers import GenerationConfig

    from modeling_gptlite import formats
    from modeling_gptlite.conversion import from_nanogpt
    from tokenization import char_tokenizer

    path = path / formats.CHECKPOINT_FILE if path.is_dir() else path
    checkpoint = formats.read_nanogpt(path)
    model = from_nanogpt(checkpoint)
    meta = Path(args.meta) if args.meta else path.with_name(formats.META_FILE)
    if args.tokenizer is not None:
        tokenizer = load_tokenizer(args.tokenizer)
    elif args.meta or meta.exists():
        tokenizer = char_tokenizer(formats.read_meta(meta))
    else:
        raise UserError(
            f"{path} has no {formats.META_FILE} beside it: give --meta with the one of its data set, or, for GPT-2's "
            "tokenizer, --tokenizer gpt2"
        )
    model.config.bos_token_id, model.config.pad_token_id = tokenizer.bos_token_id, tokenizer.pad_token_id
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=0.8,
        top_k=200,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model, tokenizer


def write(target: str, model, tokenizer, folder: Path) -> None:
    from modeling_gptlite import conversion, formats

    try:
        if target == "nanogpt":
            formats.write_nanogpt(model, tokenizer, folder)
        elif target == "gguf":
            formats.write_gguf(model, tokenizer, folder)
        elif target == "onnx":
            formats.write_onnx(model, folder)
        else:
            convert = {"gpt2": conversion.to_gpt2, "qwen3": conversion.to_qwen3}.get(target, lambda model: model)
            convert(model).save_pretrained(folder)
    except conversion.ConversionError as error:
        raise UserError(f"cannot convert into {target}: {error}") from error
    if target not in ("nanogpt", "gguf"):  # which have it in them
        tokenizer.save_pretrained(folder)
        accept_older_transformers(folder)


def compare(target: str, model, source, folder: Path) -> None:
    """Run what was written in every engine that is installed, on random ids; beyond rounding is a failure."""
    import torch

    is_half = model.dtype != torch.float32
    tokens = min(model.config.max_position_embeddings, CHECKED_TOKENS)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(model.config.vocab_size, (1, tokens), generator=generator)
    with torch.no_grad():
        expected = source.float().eval()(input_ids).logits
    largest = expected.abs().max().item()
    for engine, package, run_engine in engines(target, model):
        try:
            difference = (run_engine(folder, input_ids) - expected).abs().max().item()
        except ImportError:
            print(f"not checked in {engine}, which is not installed: pip install {package}")
            continue
        told = f"{engine}: logits differ by at most {difference:.1e} (the largest is {largest:.1f}; {tokens} tokens)"
        # llama.cpp looks its GELU up in a table of half precision, and multiplies half-precision weights in it.
        allowed = (5e-2 if is_half else 1e-2) if engine == "llama.cpp" else 1e-4
        if not difference <= allowed * max(largest, 1):
            raise SystemExit(f"error: the result is wrong, and was deleted. {told}")
        print(told)


def engines(target: str, model) -> Iterator[tuple]:
    """Name, package, and a function of folder and ids that gives logits."""
    from modeling_gptlite import conversion, formats

    if target == "nanogpt":
        yield "nanoGPT's file, read back", None, formats.nanogpt_logits
    elif target == "onnx":
        yield "ONNX Runtime", "'gptlite[export]'", formats.onnx_logits
    elif target == "gguf":
        config = conversion.to_native(model).config
        yield "transformers' GGUF loader", None, lambda folder, ids: formats.gguf_logits(folder, config, ids)
        yield "llama.cpp", "llama-cpp-python", formats.llama_cpp_logits
    else:
        yield "transformers", None, formats.pretrained_logits


if __name__ == "__main__":
    run(main)
