"""What the commands share: flags from dataclasses, recipes, the text, and mistakes told in one line."""

import argparse
import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser


# What transformers raises for values of a configuration that are wrong, and for a name or a file, too.
CONFIGURATION_ERRORS = (ValueError, TypeError, StrictDataclassError)
LOADING_ERRORS = (OSError, KeyError, SafetensorError, *CONFIGURATION_ERRORS)


class UserError(Exception):
    """The user's mistake: what was wrong, what is allowed, what to do."""


@dataclass
class SourceArguments:
    """The text: files, a data set, or a built-in source."""

    train_file: list[str] | None = field(
        default=None,
        metadata={
            "help": "UTF-8 text files, or folders of .txt files; or .jsonl files with a column text, columns prompt "
            "and completion, or a column messages.",
            "nargs": "+",
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Built in: auto, tinyshakespeare or python-docs; otherwise a data set's Hub name or local folder. "
            "Default: auto, unless --train_file is given."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Which configuration of the data set."})
    text_column: str | None = field(
        default=None,
        metadata={
            "help": "The data set's column that holds the text. Default: text, unless there are columns of examples."
        },
    )
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
        print(f"error: {printable(message)}", file=sys.stderr)
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
            text = path.read_text(encoding="utf-8")
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
                self.error(f"{path} is not a recipe: it has YAML aliases, of which a few lines can make gigabytes")
            recipe = yaml.safe_load(text)
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
        flags = [flag[2:] for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        return [flag for flag in flags if flag != "help"]

    def _reject(self, name: str, message: str):
        nearest = difflib.get_close_matches(name.replace("-", "_"), [*self._names(), "config"], n=1)
        self.error(message + (f"; did you mean {nearest[0]!r}?" if nearest else "; see --help"))


def run(main: Callable[[], None]) -> None:
    """Run a command: a user's mistake ends in one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def printable(text: str) -> str:
    """`text` with what could command a terminal (escapes, other controls, reversals of direction) spelt out."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def shown(text: str) -> str:
    """Generated text as it goes to standard output: untouched into a file or pipe, `printable` on a terminal."""
    return printable(text) if sys.stdout.isatty() else text


def load_tokenizer(name_or_path: str):
    """A tokenizer from a folder or the Hub, without running anybody's code."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise UserError(f"cannot load the tokenizer of {name_or_path!r}: {reason(error)}") from error


def load_pretrained(name_or_path: str, tokenizer: str | None = None, **kwargs):
    """A causal language model and its tokenizer (or another), from a folder or the Hub, without anybody's code.

    Of the folder of a LoRA adapter: the model that it names, with the adapter.

    Args:
        kwargs: For the model's `from_pretrained`.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import is_peft_available

    import modeling_gptlite  # noqa: F401  registers the classes

    if (Path(name_or_path) / "adapter_config.json").is_file() and not is_peft_available():
        raise UserError(f'{name_or_path} is a LoRA adapter, which needs PEFT: pip install "gptlite[finetune]"')
    check_shards(Path(name_or_path))
    loaded_tokenizer = load_tokenizer(tokenizer or name_or_path)
    safely = {"trust_remote_code": False, "use_safetensors": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(name_or_path, **safely, **kwargs)
    except RuntimeError as error:  # weights of other shapes than the config's
        raise UserError(f"cannot load the model {name_or_path!r}: its weights do not fit its config.json") from error
    except LOADING_ERRORS as error:
        raise UserError(f"cannot load the model {name_or_path!r}: {reason(error)}") from error
    if getattr(model, "_hf_peft_config_loaded", False):
        with contextlib.suppress(OSError):  # transformers takes the base model's
            model.generation_config = GenerationConfig.from_pretrained(name_or_path)
    return model, loaded_tokenizer


def longest_text(model) -> int | None:
    """Tokens that `model` can generate up to, the prompt included; None for no limit, as GPTLite slides."""
    from modeling_gptlite import GPTLiteForCausalLM

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if isinstance(base, GPTLiteForCausalLM):
        return None
    return getattr(base.config.get_text_config(), "max_position_embeddings", None)


def accept_older_transformers(folder: Path) -> None:
    """transformers 5 writes a tokenizer class that 4 does not know; both know the one that is meant."""
    path = folder / "tokenizer_config.json"
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("tokenizer_class") == "TokenizersBackend":
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_source(args: SourceArguments):
    """The text that the flags name, or the examples.

    Raises:
        UserError: they name two, or texts and examples.
        DataError: it cannot be had.
    """
    from modeling_gptlite.training import data, examples

    if not 0 < args.validation_fraction < 1:
        raise UserError(f"--validation_fraction must lie between 0 and 1, got {args.validation_fraction}")
    if args.train_file:
        if args.dataset:
            raise UserError("give either --train_file or --dataset, not both")
        suffixes = {Path(name).suffix for name in args.train_file}
        if suffixes == {".jsonl"}:
            return examples.load_example_files(args.train_file, args.text_column)
        if ".jsonl" in suffixes:
            raise UserError("--train_file takes .jsonl files or text files, not both")
        return data.load_files(args.train_file)
    name = args.dataset or "auto"
    if name in data.BUILT_IN_SOURCES:
        return data.load_source(name, on_fallback=lambda sentence: print(f"\n*** {sentence}\n", flush=True))
    return examples.load_example_dataset(name, args.dataset_config, args.text_column, args.streaming)


def encode_splits(source, tokenizer, validation_fraction: float):
    """The two splits as packed ids, and what the reports say of them."""
    from modeling_gptlite.training.data import cache_dir, split_source
    from tokenization import encode_corpus

    splits = split_source(source, tokenizer.eos_token or "", validation_fraction)
    try:
        train_ids, validation_ids = (encode_corpus(split, tokenizer, cache_dir()) for split in splits)
    except ValueError as error:  # a character without an id, and no unknown token to stand for it
        raise UserError(error) from error
    except OSError as error:
        raise UserError(
            f"cannot keep the text's ids in {cache_dir()}: {error}; GPTLITE_CACHE names the folder"
        ) from error
    if any((ids == tokenizer.unk_token_id).any() for ids in (train_ids, validation_ids)):
        say_unknown(source.pieces(), tokenizer, len(train_ids) + len(validation_ids))
    data = {
        "name": source.name,
        "sha256": splits[0].sha256,
        "train_characters": len(splits[0]),
        "validation_characters": len(splits[1]),
        "train_tokens": len(train_ids),
        "validation_tokens": len(validation_ids),
        "validation_targets": len(validation_ids) - 1,
    }
    return train_ids, validation_ids, data


def say_unknown(texts, tokenizer, tokens: int) -> None:
    from tokenization import describe_characters, unknown_characters

    if unknown := unknown_characters(texts, tokenizer):
        share = sum(unknown.values()) / tokens
        print(f"not in the vocabulary, {share:.2%} of the tokens: {describe_characters(unknown)}", flush=True)


def check_shards(folder: Path) -> None:
    """A sharded model's weights lie in its own folder, whatever its index says."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        strayed = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot load the model {str(folder)!r}: {index.name} is no index of shards") from error
    if strayed:
        raise UserError(f"cannot load the model {str(folder)!r}: {index.name} leads out of the folder: {strayed[0]}")


def reason(error: Exception) -> str:
    """The telling part of a validation error, which wraps it in lines of its own."""
    cause = error.__cause__ or error
    return str(cause)
