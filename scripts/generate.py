"""Generate text with a saved model, printed while it is generated.

gptlite generate --model out/quickstart --prompt "ROMEO:"
gptlite generate --model out/quickstart --prompts prompts.txt --output out/texts.jsonl --seed 1
cat prompt.txt | gptlite generate --model out/quickstart --num_samples 4 --temperature 0.9
"""

import secrets
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from modeling_gptlite.errors import UserError, check, setting
from modeling_gptlite.files import UserPath
from modeling_gptlite.runs.generate import GenerationSettings, LoadSettings

from .cli import run, shown, tell
from .parser import Parser


@dataclass
class GenerateArguments:
    """What the model continues."""

    prompt: list[str] | None = setting(
        None,
        "The text to continue, or several. Default: standard input if it is piped, else a newline.",
        action="extend",
    )
    prompt_file: UserPath | None = setting(None, "A UTF-8 file that holds the prompt.")
    prompts: UserPath | None = setting(
        None, "A UTF-8 file with a prompt in each line; a .jsonl file has them in the field prompt."
    )
    num_samples: int = setting(1, "Texts for each prompt. A single one is printed while it is generated.")
    output: UserPath | None = setting(
        None,
        "Write the texts to this file; a .jsonl file also has prompts, seeds and settings. Repeating the "
        "command after an interruption continues the file.",
    )


def main(argv: list[str] | None = None) -> None:
    source, args, settings = Parser((LoadSettings, GenerateArguments, GenerationSettings), __doc__).parse(argv)
    check_arguments(args, settings)

    import transformers
    from tqdm import tqdm

    from modeling_gptlite.runs import generate, texts

    prompts = texts.read_prompts(args.prompts) if args.prompts else args.prompt or [read_prompt(args)]
    total, done, seed = len(prompts) * args.num_samples, 0, source.seed
    about = {"model": source.model, "dtype": source.dtype, "num_samples": args.num_samples, **asdict(settings)}
    if args.output:
        done, seed = texts.find_done(Path(args.output), prompts, args.num_samples, seed, about)
    transformers.utils.logging.disable_progress_bar()
    model, tokenizer = generate.load(source, settings)
    texts.check_prompts(model, tokenizer, prompts)
    if tokenizer.chat_template:
        tell(f"the model's chat template is not applied; gptlite chat --model {source.model} applies it")
    length = min(generate.tokens_to_generate(model, tokenizer, prompt, settings.max_new_tokens) for prompt in prompts)
    if length < settings.max_new_tokens:
        tell(f"the text ends after {length} tokens, at the model's context length")
    if total == 1 and not args.output:
        generate.stream(model, tokenizer, prompts[0], settings, lambda text: print(shown(text), end="", flush=True))
        return
    seed = secrets.randbelow(texts.SEEDS) if seed is None else seed
    records = texts.generate_texts(model, tokenizer, prompts, settings, args.num_samples, seed, done)
    if not args.output:
        for number, record in enumerate(records, 1):
            print(shown(texts.page(number, total, record["text"])), end="", flush=True)
        return
    if done:
        tell(f"{args.output}: continuing after {done} of {total} texts")
    bar = tqdm(records, total=total, initial=done, unit="text", disable=None)
    texts.append(Path(args.output), done, total, bar, about)
    print(f"{total} texts saved in {shown(args.output)}")


def check_arguments(args: GenerateArguments, settings: GenerationSettings) -> None:
    rules = [
        ("num_samples", args.num_samples >= 1, "at least 1"),
        ("num_samples", args.num_samples == 1 or not settings.greedy, "1 with --greedy: all would be the same"),
    ]
    check(args, rules)
    if sum(given is not None for given in (args.prompt, args.prompt_file, args.prompts)) > 1:
        raise UserError("give only one of --prompt, --prompt_file and --prompts")


def read_prompt(args: GenerateArguments) -> str:
    from modeling_gptlite.data.files import read_text

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
