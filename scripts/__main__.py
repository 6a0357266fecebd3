"""The command `gptlite`, with one subcommand per module of this folder."""

import difflib
import importlib
import sys
from importlib import metadata

from .cli import after_imports, before_imports, fail, run


# Name -> module, and what the overview says.
COMMANDS = {
    "train": ("train", "Train a model on text, or fine-tune one."),
    "generate": ("generate", "Generate text with a saved model."),
    "chat": ("chat", "Talk to a model that has a chat template."),
    "evaluate": ("evaluate", "Compare models: loss, perplexity, bits per character, BLEU."),
    "convert": ("convert", "Import nanoGPT, GPT-2, Qwen3 and Llama; export the last three, GGUF and ONNX."),
    "push": ("push_to_hub", "Publish a model on the Hugging Face Hub."),
    "demo": ("demo", "Open a web page to try a model."),
}
OVERVIEW = "\n".join(
    [
        "usage: gptlite COMMAND [--flag value ...]",
        "",
        *(f"  {name:<10}{summary}" for name, (_, summary) in COMMANDS.items()),
        "",
        "gptlite COMMAND --help lists the flags of a command; gptlite --version prints the version.",
    ]
)


def main() -> None:
    name, *flags = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        sys.argv = [f"gptlite {name}", *flags]
        before_imports()
        command = importlib.import_module(f".{COMMANDS[name][0]}", __package__)
        after_imports()
        command.main()
    elif name in ("-h", "--help"):
        print(OVERVIEW)
    elif name == "--version":
        print(f"gptlite {version()}")
    else:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)  # importing `did_you_mean` would take seconds
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"commands are {', '.join(COMMANDS)}"
        fail(f"unknown command {name!r}; {hint}")


def version() -> str:
    try:
        return metadata.version("gptlite")
    except metadata.PackageNotFoundError:
        return "of a clone that is not installed"


def entry() -> None:
    """The installed command."""
    run(main)


if __name__ == "__main__":
    entry()
