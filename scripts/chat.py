"""Talk to a model that has a chat template; the replies are printed while they are generated.

gptlite chat --model out/talking
gptlite chat --model USER/NAME --system "Answer in one sentence." --temperature 0.7
printf '%s\\n' "Who are you?" "And who am I?" | gptlite chat --model out/talking

/reset starts a new conversation, Ctrl-C stops a reply, Ctrl-D ends. Each line of piped input is a message.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from modeling_gptlite.errors import UserError, setting
from modeling_gptlite.runs.generate import LoadSettings, SamplingSettings

from .cli import run, shown, tell
from .parser import Parser


@dataclass
class ChatArguments:
    """The conversation."""

    system: str | None = setting(None, "Instructions for the model, before the first message. Default: none.")


def main(argv: list[str] | None = None) -> None:
    source, args, settings = Parser((LoadSettings, ChatArguments, SamplingSettings), __doc__).parse(argv)

    import transformers

    from modeling_gptlite.loading import check_folder, load_tokenizer
    from modeling_gptlite.runs.chat import Chat, check_template
    from modeling_gptlite.runs.generate import load

    transformers.utils.logging.disable_progress_bar()
    check_folder(source.model)
    check_template(load_tokenizer(source.model), source.model)  # before the weights are downloaded
    model, tokenizer = load(source, settings)
    chat = Chat(model, tokenizer, settings, args.system, report=tell)
    if _on_a_terminal():
        tell("/reset starts a new conversation, Ctrl-C stops a reply, Ctrl-D ends")
    for message in _typed() if _on_a_terminal() else _piped():
        if message == "/reset":
            chat.reset()
        elif message:
            _answer(chat, message)


def _answer(chat, message: str) -> None:
    """Print the reply. On a terminal, Ctrl-C ends the reply and a mistake the message; else they end the command."""
    stays = (KeyboardInterrupt, UserError) if _on_a_terminal() else ()
    try:
        chat.reply(message, lambda text: print(shown(text), end="", flush=True))
    except stays as error:
        if isinstance(error, UserError):
            tell(f"error: {error}")


def _on_a_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


def _typed() -> Iterator[str]:
    """Messages from the terminal, until Ctrl-D; Ctrl-C empties the line."""
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  input() edits the line and remembers the earlier ones with it
    while True:
        try:
            yield input("> ").strip()
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return


def _piped() -> Iterator[str]:
    for number, line in enumerate([] if sys.stdin is None else sys.stdin.buffer, 1):
        try:
            yield line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"line {number} of standard input is not UTF-8: {error}") from error


if __name__ == "__main__":
    run(main)
