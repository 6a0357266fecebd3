"""Generate text with a saved model, as it is written.

python -m scripts.generate --model out/quickstart --prompt "ROMEO:"
cat prompt.txt | python -m scripts.generate --model out/quickstart --num_samples 4 --temperature 0.9
"""

import math
import shutil
import sys
from dataclasses import dataclass, field

from scripts.cli import Parser, UserError, load_pretrained, longest_text, run, shown


DTYPES = ("auto", "float32", "bfloat16", "float16", "int8")


@dataclass
class GenerateArguments:
    """What to continue, and how."""

    model: str = field(metadata={"help": "Folder or Hub name of the model."})
    prompt: str | None = field(
        default=None, metadata={"help": "The text to continue. Default: standard input if it is piped, else a newline."}
    )
    prompt_file: str | None = field(default=None, metadata={"help": "A UTF-8 file that holds the prompt."})
    max_new_tokens: int = field(
        default=500, metadata={"help": "Tokens to write; the context of a GPTLite is no limit."}
    )
    num_samples: int = field(default=1, metadata={"help": "Texts to write, in one batch; a single one is streamed."})
    greedy: bool = field(default=False, metadata={"help": "Always take the likeliest token instead of sampling."})
    temperature: float | None = field(
        default=None, metadata={"help": "Below 1 safer, above 1 wilder. Default: the model's own."}
    )
    top_k: int | None = field(
        default=None, metadata={"help": "Sample among so many likeliest tokens; 0 for all. Default: the model's own."}
    )
    top_p: float | None = field(
        default=None,
        metadata={"help": "Sample among the likeliest tokens that make up this probability. Default: the model's own."},
    )
    stop_at_eos: bool = field(default=False, metadata={"help": "Stop where the model writes its end-of-text token."})
    seed: int | None = field(default=None, metadata={"help": "For the same text twice. Default: a new one each time."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, mps, ... Default: the fastest there is."})
    dtype: str = field(
        default="auto",
        metadata={"help": "float32, bfloat16, float16, or int8 (weights; on a CPU). Default: as it was saved."},
    )
    torch_compile: bool = field(
        default=False,
        metadata={"help": "Compile the step of one token first: half a minute that pays for long texts."},
    )


def main(argv: list[str] | None = None):
    (args,) = Parser((GenerateArguments,), __doc__).parse(argv)
    check(args)
    prompt = read_prompt(args)

    import torch
    import transformers

    from tokenization import describe_characters, unknown_characters

    transformers.utils.logging.disable_progress_bar()
    dtype = "float32" if args.dtype == "int8" else args.dtype
    model, tokenizer = load_pretrained(args.model, dtype=dtype)
    context = longest_text(model)
    device = args.device or (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    try:
        model = model.to(device).eval()
    except RuntimeError as error:
        raise UserError(f"--device {args.device}: {error}") from error
    if args.dtype == "int8":
        model = quantize(model)
    if unknown := unknown_characters(prompt, tokenizer):
        raise UserError(f"the prompt has characters outside the model's vocabulary: {describe_characters(unknown)}")
    if not prompt and tokenizer.bos_token is None:
        raise UserError("the prompt is empty, and the model's tokenizer has no token that begins a text")
    if args.seed is not None:
        transformers.set_seed(args.seed)

    if args.torch_compile:
        model = compile_step(model, args.num_samples)
    inputs = tokenizer(prompt or tokenizer.bos_token, return_tensors="pt", add_special_tokens=False).to(device)
    inputs.pop("token_type_ids", None)
    settings = sampling_settings(args, tokenizer)
    length = inputs["input_ids"].shape[1]
    if context is not None and length + args.max_new_tokens > context:
        if length >= context:
            raise UserError(f"the prompt has {length} tokens, which fill the model's context of {context}")
        settings["max_new_tokens"] = context - length
        print(f"the text ends where the model's context of {context} tokens does", file=sys.stderr)
    if args.num_samples == 1:
        streamer = transformers.TextStreamer(tokenizer, skip_special_tokens=True)
        write = streamer.on_finalized_text
        streamer.on_finalized_text = lambda text, stream_end=False: write(shown(text), stream_end)
        model.generate(**inputs, **settings, streamer=streamer)
        return
    outputs = model.generate(**inputs, **settings, num_return_sequences=args.num_samples)
    for index, text in enumerate(tokenizer.batch_decode(outputs, skip_special_tokens=True), 1):
        print(f"{'' if index == 1 else chr(10)}--- {index} of {args.num_samples} ---\n{shown(text)}")


def quantize(model):
    from modeling_gptlite.decoding import quantize_int8

    try:
        return quantize_int8(model)
    except ValueError as error:
        raise UserError(f"--dtype int8: {error}") from error


def compile_step(model, batch_size: int):
    from modeling_gptlite.decoding import compile_decoding

    if shutil.which("g++") is None and model.device.type == "cpu":
        raise UserError("--torch_compile needs a C++ compiler, and there is no g++; install it, or leave the flag out")
    return compile_decoding(model, batch_size)


def check(args: GenerateArguments) -> None:
    rules = [
        ("max_new_tokens", args.max_new_tokens >= 1, "at least 1"),
        ("num_samples", args.num_samples >= 1, "at least 1"),
        (
            "temperature",
            args.temperature is None or 0 < args.temperature < math.inf,
            "above 0 (--greedy takes the likeliest)",
        ),
        ("top_k", args.top_k is None or args.top_k >= 0, "0 (all tokens) or more"),
        ("top_p", args.top_p is None or 0 < args.top_p <= 1, "above 0 and at most 1"),
        ("seed", args.seed is None or 0 <= args.seed < 1 << 32, "between 0 and 4,294,967,295"),
        ("dtype", args.dtype in DTYPES, f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"),
        ("num_samples", not (args.greedy and args.num_samples > 1), "1 with --greedy: all samples would be the same"),
    ]
    for name, is_right, allowed in rules:
        if not is_right:
            raise UserError(f"--{name} must be {allowed}, got {getattr(args, name)}")
    if args.prompt is not None and args.prompt_file is not None:
        raise UserError("give either --prompt or --prompt_file, not both")


def read_prompt(args: GenerateArguments) -> str:
    from modeling_gptlite.training.data import DataError, read_text

    try:
        if args.prompt_file is not None:
            return "".join(read_text(args.prompt_file))
        if args.prompt is not None:
            return args.prompt
        return "\n" if sys.stdin.isatty() else sys.stdin.buffer.read().decode("utf-8") or "\n"
    except OSError as error:
        raise UserError(f"cannot read {args.prompt_file}: {error.strerror}") from error
    except (DataError, UnicodeDecodeError) as error:
        raise UserError(f"the prompt is not UTF-8: {error}") from error


def sampling_settings(args: GenerateArguments, tokenizer) -> dict:
    settings = {
        "max_new_tokens": args.max_new_tokens,
        "do_sample": not args.greedy,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "eos_token_id": tokenizer.eos_token_id if args.stop_at_eos else None,
    }
    if args.greedy:
        settings |= {"temperature": 1.0, "top_k": 0, "top_p": 1.0}  # silent: they have no effect
    return {name: value for name, value in settings.items() if value is not None}


if __name__ == "__main__":
    run(main)
