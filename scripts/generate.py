"""Generate text with a saved model, printed while it is generated.

gptlite generate --model out/quickstart --prompt "ROMEO:"
cat prompt.txt | gptlite generate --model out/quickstart --num_samples 4 --temperature 0.9
"""

import sys
from dataclasses import dataclass, field

from modeling_gptlite.errors import UserError
from modeling_gptlite.runs.generate import DTYPES, ENGINES, GenerationSettings

from .cli import run, shown
from .parser import Parser


@dataclass
class GenerateArguments:
    """The model, and what it continues."""

    model: str = field(metadata={"help": "Folder, or repository id on the Hub, of the model."})
    prompt: str | None = field(
        default=None, metadata={"help": "The text to continue. Default: standard input if it is piped, else a newline."}
    )
    prompt_file: str | None = field(default=None, metadata={"help": "A UTF-8 file that holds the prompt."})
    num_samples: int = field(
        default=1, metadata={"help": "Texts to generate. A single one is printed while it is generated."}
    )
    seed: int | None = field(default=None, metadata={"help": "Repeats a text. Default: another text each time."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda, mps, ... Default: the fastest available."})
    dtype: str = field(
        default="auto",
        metadata={
            "help": "float32, bfloat16, float16, or int8 (weights; onnx only). Default: that of the saved weights."
        },
    )
    engine: str = field(
        default="auto",
        metadata={
            "help": "torch, or onnx: faster on a CPU, in float32 or int8. Default: onnx where it gives the same text."
        },
    )


def main(argv: list[str] | None = None) -> None:
    args, settings = Parser((GenerateArguments, GenerationSettings), __doc__).parse(argv)
    check(args, settings)
    prompt = read_prompt(args)

    import transformers

    from modeling_gptlite.loading import check_generation
    from modeling_gptlite.runs import generate

    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = generate.load_generator(args.model, args.device, args.dtype, args.engine)
    check_generation(model, args.model, **settings.arguments(tokenizer))
    if args.seed is not None:
        transformers.set_seed(args.seed)
    length = generate.tokens_to_generate(model, tokenizer, prompt, settings.max_new_tokens)
    if length < settings.max_new_tokens:
        print(f"the text ends after {length} tokens, at the model's context length", file=sys.stderr)
    if args.num_samples == 1:
        generate.stream(model, tokenizer, prompt, settings, lambda text: print(shown(text), end="", flush=True))
        return
    texts = generate.samples(model, tokenizer, prompt, settings, args.num_samples)
    for index, text in enumerate(texts, 1):
        print(f"{'' if index == 1 else chr(10)}--- {index} of {args.num_samples} ---\n{shown(text)}", flush=True)


def check(args: GenerateArguments, settings: GenerationSettings) -> None:
    rules = [
        ("num_samples", args.num_samples >= 1, "at least 1"),
        ("num_samples", args.num_samples == 1 or not settings.greedy, "1 with --greedy: all would be the same"),
        ("seed", args.seed is None or 0 <= args.seed < 1 << 32, "between 0 and 4,294,967,295"),
        ("engine", args.engine in ENGINES, f"{', '.join(ENGINES[:-1])} or {ENGINES[-1]}"),
        ("dtype", args.dtype in DTYPES, f"{', '.join(DTYPES[:-1])} or {DTYPES[-1]}"),
    ]
    for name, is_right, allowed in rules:
        if not is_right:
            raise UserError(f"--{name} must be {allowed}, got {getattr(args, name)}")
    if args.prompt is not None and args.prompt_file is not None:
        raise UserError("give either --prompt or --prompt_file, not both")


def read_prompt(args: GenerateArguments) -> str:
    from modeling_gptlite.data.files import read_text

    if args.prompt is not None:
        return args.prompt
    try:
        if args.prompt_file is not None:
            return "".join(read_text(args.prompt_file))
        if sys.stdin is None or sys.stdin.isatty():
            return "\n"
        return sys.stdin.buffer.read().decode("utf-8") or "\n"
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt on standard input is not UTF-8: {error}") from error
    except OSError as error:
        raise UserError(
            f"cannot read the prompt from {args.prompt_file or 'standard input'}: {error.strerror}"
        ) from error


if __name__ == "__main__":
    run(main)
