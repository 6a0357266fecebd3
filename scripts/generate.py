"""Generate text with a saved model, printed while it is generated.

gptlite generate --model out/quickstart --prompt "ROMEO:"
cat prompt.txt | gptlite generate --model out/quickstart --num_samples 4 --temperature 0.9
"""

import sys
from dataclasses import dataclass, field

from modeling_gptlite.errors import UserError, check
from modeling_gptlite.files import UserPath
from modeling_gptlite.runs.generate import GenerationSettings, LoadSettings

from .cli import printable, run, shown
from .parser import Parser


@dataclass
class GenerateArguments:
    """What the model continues."""

    prompt: str | None = field(
        default=None, metadata={"help": "The text to continue. Default: standard input if it is piped, else a newline."}
    )
    prompt_file: UserPath | None = field(default=None, metadata={"help": "A UTF-8 file that holds the prompt."})
    num_samples: int = field(
        default=1, metadata={"help": "Texts to generate. A single one is printed while it is generated."}
    )


def main(argv: list[str] | None = None) -> None:
    source, args, settings = Parser((LoadSettings, GenerateArguments, GenerationSettings), __doc__).parse(argv)
    check_arguments(args, settings)
    prompt = read_prompt(args)

    import transformers

    from modeling_gptlite.runs import generate

    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = generate.load(source, settings)
    if tokenizer.chat_template:
        hint = f"the model's chat template is not applied; gptlite chat --model {source.model} applies it"
        print(printable(hint), file=sys.stderr)
    length = generate.tokens_to_generate(model, tokenizer, prompt, settings.max_new_tokens)
    if length < settings.max_new_tokens:
        print(f"the text ends after {length} tokens, at the model's context length", file=sys.stderr)
    if args.num_samples == 1:
        generate.stream(model, tokenizer, prompt, settings, lambda text: print(shown(text), end="", flush=True))
        return
    texts = generate.samples(model, tokenizer, prompt, settings, args.num_samples)
    for index, text in enumerate(texts, 1):
        print(f"{'' if index == 1 else chr(10)}--- {index} of {args.num_samples} ---\n{shown(text)}", flush=True)


def check_arguments(args: GenerateArguments, settings: GenerationSettings) -> None:
    rules = [
        ("num_samples", args.num_samples >= 1, "at least 1"),
        ("num_samples", args.num_samples == 1 or not settings.greedy, "1 with --greedy: all would be the same"),
    ]
    check(args, rules)
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
