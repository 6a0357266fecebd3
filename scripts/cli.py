"""What the commands share: flags from dataclasses, recipes, the text, and mistakes told in one line."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser


# What transformers raises for a name, a file or a value that is wrong.
LOADING_ERRORS = (OSError, ValueError, TypeError, KeyError, StrictDataclassError)


class UserError(Exception):
    """The user's mistake: what was wrong, what is allowed, what to do."""


@dataclass
class SourceArguments:
    """The text: files, a data set, or a built-in source."""

    train_file: list[str] | None = field(
        default=None, metadata={"help": "UTF-8 text files, or folders of .txt files.", "nargs": "+"}
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Built in: auto, tinyshakespeare or python-docs; otherwise a data set's Hub name or local folder. "
            "Default: auto, unless --train_file is given."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Which configuration of the data set."})
    text_column: str = field(default="text", metadata={"help": "The data set's column that holds the text."})
    streaming: bool = field(default=False, metadata={"help": "Read the data set row by row, without a local copy."})
    validation_fraction: float = field(
        default=0.1, metadata={"help": "The last part of the text, as a fraction, that only validates."}
    )


class Parser(HfArgumentParser):
    """`HfArgumentParser` that also reads a recipe, suggests the nearest name, and errs in one line with exit code 2."""

    def __init__(self, dataclass_types, description: str):
        super().__init__(dataclass_types, description=description, allow_abbrev=False)
        self.add_argument(
            "--config", metavar="RECIPE.yaml", default=argparse.SUPPRESS, help="A recipe: flags as a YAML file."
        )

    def error(self, message):
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(2)

    def parse(self, argv: list[str] | None = None):
        """The dataclasses, filled from the flags; `--config FILE.yaml` anywhere fills in what no flag says.

        `self.given` then holds what recipe and flags said, without the defaults.
        """
        argv = list(sys.argv[1:] if argv is None else argv)
        recipe_argv, flags = self._split_recipe(argv)
        try:
            *parsed, unknown = self.parse_args_into_dataclasses(recipe_argv + flags, return_remaining_strings=True)
        except (ValueError, TypeError) as error:  # what a dataclass says of its values
            self.error(" ".join(str(error).split()))
        if unknown:
            self._reject(unknown[0].split("=")[0].lstrip("-"), f"unknown argument {unknown[0]!r}")
        named = [flag.split("=")[0].lstrip("-").replace("-", "_") for flag in recipe_argv + flags if flag[:2] == "--"]
        values = {name: value for group in parsed for name, value in vars(group).items()}
        self.given = {name: values[name] for name in named if name in values}
        return parsed

    def _split_recipe(self, argv: list[str]) -> tuple[list[str], list[str]]:
        flags, path = [], None
        arguments = iter(argv)
        for argument in arguments:
            if argument == "--config":
                path = next(arguments, None)
                if path is None:
                    self.error("--config needs the path of a recipe")
            elif argument.startswith("--config="):
                path = argument.split("=", 1)[1]
            else:
                flags.append(argument)
        return ([] if path is None else self._recipe_as_flags(Path(path))), flags

    def _recipe_as_flags(self, path: Path) -> list[str]:
        """A recipe is parsed as the flags it stands for, so both are checked by the same code."""
        try:
            recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            self.error(f"cannot read the recipe {path}: {error.strerror}")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            self.error(f"{path} is not a recipe: {' '.join(str(error).split())}")
        if not isinstance(recipe, dict):
            self.error(f"{path} is not a recipe: it must be a list of `name: value` lines")
        flags = [] if "output_dir" in recipe else [f"--output_dir=out/{path.stem}"]
        for name, value in recipe.items():
            if name not in self._names():
                self._reject(str(name), f"unknown key {name!r} in {path}")
            if isinstance(value, list):
                flags += [f"--{name}", *map(str, value)]
            elif value is not None:
                flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict | bool) else value}")
        return flags

    def _names(self) -> list[str]:
        return [action.dest for action in self._actions if action.dest != "help"]

    def _reject(self, name: str, message: str):
        nearest = difflib.get_close_matches(name.replace("-", "_"), [*self._names(), "config"], n=1)
        self.error(message + (f"; did you mean {nearest[0]!r}?" if nearest else "; see --help"))


def run(main: Callable[[], None]) -> None:
    """Run a command: a user's mistake ends in one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def load_tokenizer(name_or_path: str):
    """A tokenizer from a folder or the Hub, without running anybody's code."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise UserError(f"cannot load the tokenizer of {name_or_path!r}: {reason(error)}") from error


def load_pretrained(name_or_path: str, tokenizer: str | None = None, **kwargs):
    """A causal language model and its tokenizer (or another), from a folder or the Hub, without anybody's code.

    Args:
        kwargs: For the model's `from_pretrained`.
    """
    from transformers import AutoModelForCausalLM

    import modeling_gptlite  # noqa: F401  registers the classes

    loaded_tokenizer = load_tokenizer(tokenizer or name_or_path)
    try:
        return AutoModelForCausalLM.from_pretrained(name_or_path, trust_remote_code=False, **kwargs), loaded_tokenizer
    except LOADING_ERRORS as error:
        raise UserError(f"cannot load the model {name_or_path!r}: {reason(error)}") from error


def load_source(args: SourceArguments):
    """The text that the flags name.

    Raises:
        UserError: they name two texts.
        DataError: it cannot be had.
    """
    from modeling_gptlite.training import data

    if not 0 < args.validation_fraction < 1:
        raise UserError(f"--validation_fraction must lie between 0 and 1, got {args.validation_fraction}")
    if args.train_file:
        if args.dataset:
            raise UserError("give either --train_file or --dataset, not both")
        return data.load_files(args.train_file)
    name = args.dataset or "auto"
    if name in data.BUILT_IN_SOURCES:
        return data.load_source(name, on_fallback=lambda sentence: print(f"\n*** {sentence}\n", flush=True))
    return data.load_dataset_source(name, args.dataset_config, args.text_column, args.streaming)


def encode_splits(source, tokenizer, validation_fraction: float):
    """The two splits as packed ids, and what the reports say of them."""
    from modeling_gptlite.training.data import cache_dir, split_source
    from tokenization import describe_characters, encode_corpus, unknown_characters

    splits = split_source(source, tokenizer.eos_token or "", validation_fraction)
    try:
        train_ids, validation_ids = (encode_corpus(split, tokenizer, cache_dir()) for split in splits)
    except ValueError as error:  # a character without an id, and no unknown token to stand for it
        raise UserError(error) from error
    if any((ids == tokenizer.unk_token_id).any() for ids in (train_ids, validation_ids)):
        unknown = unknown_characters(splits[0], tokenizer) + unknown_characters(splits[1], tokenizer)
        share = sum(unknown.values()) / (len(train_ids) + len(validation_ids))
        print(f"not in the vocabulary, {share:.2%} of the tokens: {describe_characters(unknown)}", flush=True)
    data = {
        "name": source.name,
        "sha256": splits[0].sha256,
        "train_characters": len(splits[0]),
        "validation_characters": len(splits[1]),
        "train_tokens": len(train_ids),
        "validation_tokens": len(validation_ids),
    }
    return train_ids, validation_ids, data


def reason(error: Exception) -> str:
    """The telling part of a validation error, which wraps it in lines of its own."""
    cause = error.__cause__ or error
    return str(cause)
