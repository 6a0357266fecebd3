"""Flags from dataclasses, recipes, and a `--help` that fits a person."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from modeling_gptlite.errors import UserError, did_you_mean
from modeling_gptlite.runs.recipes import as_flags, find_recipe, override, read_recipe


METAVARS: dict[Any, str] = {int: "N", float: "X", string_to_bool: "BOOL"}
HELP_COLUMN = 34
MOST_COLUMNS = 110
CONFIG_HELP = "A recipe: the name of one that comes with the package, or a YAML file of flags. Flags override it."
HELP_HELP = "Print this; all: every flag."


class Parser(HfArgumentParser):
    """`HfArgumentParser` that also reads a recipe, suggests the nearest name, and prints errors in one line.

    Args:
        dataclass_types: One field per flag; `metadata["help"]` is the flag's help.
        doc: The docstring of the command's module, printed with its line breaks.
        groups: Title -> flags that `--help` lists under it, in order; `--help all` lists the others as well. Default:
            one group per dataclass, with the first sentence of its docstring as the title.
        short_help: Flag -> what `--help` prints instead of the help in the flag's metadata.
    """

    def __init__(
        self,
        dataclass_types,
        doc: str,
        groups: Mapping[str, Iterable[str]] | None = None,
        short_help: Mapping[str, str] | None = None,
    ):
        super().__init__(dataclass_types, allow_abbrev=False, add_help=False)
        self.doc, self.short_help = doc.strip(), short_help or {}
        self.groups = groups or {
            str(group.__doc__).split(".")[0].lower(): list(group.__dataclass_fields__) for group in self.dataclass_types
        }
        if self._has_recipes():
            self.add_argument("--config", action=_Unset, metavar="RECIPE", help=CONFIG_HELP)
        self.add_argument("--help", "-h", action=_Help, nargs="?", choices=["all"], metavar="[all]", help=HELP_HELP)
        self.add_argument("--traceback", action=_Unset, nargs=0, help="Print the traceback of an error.")

    def _has_recipes(self) -> bool:
        return "output_dir" in self._names()  # that of a run, which is named after its recipe

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse(self, argv: list[str] | None = None) -> list:
        """The dataclasses, filled from the flags. `self.given` then holds the names of the fields that they set."""
        flags = self._read_flags(argv)
        self._check_known(flags)
        try:
            parsed = self.parse_args_into_dataclasses(flags, look_for_args_file=False)
        except (ValueError, TypeError) as error:  # raised by a dataclass for its values
            self.error(" ".join(str(error).split()))
        self.given = set(self._fields(flags))
        return list(parsed)

    def settings(self, argv: list[str] | None = None) -> dict[str, Any]:
        """The values that the flags give, by name, without the defaults."""
        flags = self._read_flags(argv)
        values = vars(self._check_known(flags))
        return {name: values[name] for name in self._fields(flags) if name in values}

    def _read_flags(self, argv: list[str] | None) -> list[str]:
        """The flags; before them, where there is no flag of the same name, those of the recipe of `--config`."""
        flags = list(sys.argv[1:] if argv is None else argv)
        return self._recipe_as_flags(flags) + flags

    def _check_known(self, flags: list[str]) -> argparse.Namespace:
        values, unknown = self.parse_known_args(flags)
        if unknown:
            self._reject(unknown[0].split("=")[0].lstrip("-"), f"unknown argument {unknown[0]!r}")
        return values

    def _fields(self, flags: list[str]) -> list[str]:
        """The fields that `flags` set."""
        options = (flag.split("=")[0] for flag in flags)
        return [self._option_string_actions[option].dest for option in options if option in self._option_string_actions]

    def _recipe_as_flags(self, flags: list[str]) -> list[str]:
        """The recipe that `flags` name, as the flags that it stands for: the same code checks both."""
        if (name := self._recipe(flags)) is None:
            return []
        path = find_recipe(name)
        recipe = read_recipe(path)
        for key in recipe:
            if key not in self._names():
                self._reject(str(key), f"unknown key {key!r} in {path}")
        recipe_flags = [] if "output_dir" in recipe else [f"--output_dir=out/{path.stem}"]
        return recipe_flags + as_flags(override(recipe, self._fields(flags)))

    def _recipe(self, flags: list[str]) -> str | None:
        if not self._has_recipes():
            return None
        finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        finder.error = self.error  # type: ignore[method-assign]
        finder.add_argument("--config")
        return finder.parse_known_args(flags)[0].config

    def _names(self) -> list[str]:
        return [flag[2:] for action in self._actions for flag in action.option_strings if flag.startswith("--")]

    def _reject(self, name: str, message: str) -> NoReturn:
        self.error(message + (did_you_mean(name.replace("-", "_"), self._names()) or "; see --help"))

    # ---- Help ------------------------------------------------------------------------------------------------------

    def format_usage(self) -> str:
        return f"usage: {self.prog}\n"

    def format_help(self, everything: bool = False) -> str:
        actions = {action.dest: action for action in self._actions if not _switches_off(action)}
        sections = {
            "arguments": [name for name, action in actions.items() if not action.option_strings],
            **self.groups,
            "all commands": ["help", "traceback"],
        }
        if everything:
            listed = {name for names in sections.values() for name in names}
            sections["everything else"] = [name for name in actions if name not in listed]
        lines = [self.doc]
        for title, names in sections.items():
            if names:
                lines += ["", f"{title}:", *(line for name in names for line in self._entry(actions[name]))]
        return "\n".join(lines) + "\n"

    def _entry(self, action: argparse.Action) -> list[str]:
        left = f"  {_flag(action)} {_metavar(action)}".rstrip()
        columns = min(shutil.get_terminal_size((MOST_COLUMNS, 24)).columns, MOST_COLUMNS)
        lines = textwrap.wrap(self._explain(action), max(columns - HELP_COLUMN, 30), break_on_hyphens=False) or [""]
        if len(left) >= HELP_COLUMN - 1:
            lines.insert(0, "")
        first, *others = lines
        return [f"{left:<{HELP_COLUMN}}{first}".rstrip(), *(" " * HELP_COLUMN + line for line in others)]

    def _explain(self, action: argparse.Action) -> str:
        """The help of a flag with its default, once."""
        text = self.short_help.get(action.dest) or " ".join((action.help or "").replace("%%", "%").split())
        default = getattr(action.default, "value", action.default)  # an Enum's
        if action.required and action.option_strings:
            return f"{text} Required."
        if "default" in text.lower() or default in (None, False, argparse.SUPPRESS, "", [], {}):
            return text
        if default is True:
            return f"{text} Default: true; --no_{action.dest} switches it off."
        return f"{text} Default: {default}."


def _switches_off(action: argparse.Action) -> bool:
    """Whether this is the `--no_X` that comes with a flag X whose default is true."""
    return bool(action.option_strings) and action.option_strings[0] == f"--no_{action.dest}"


def _flag(action: argparse.Action) -> str:
    """One spelling of a flag: its alias if it has one (`--from`), else `--a_b`, and not `--a-b` as well."""
    spellings = [flag for flag in action.option_strings if flag.startswith("--")]
    aliases = [flag for flag in spellings if flag[2:].replace("-", "_") != action.dest]
    return (aliases or spellings or [""])[0]


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str):
        return action.metavar
    if action.nargs == "?" or action.nargs == 0:  # a switch
        return ""
    if action.choices:
        return "|".join(map(str, action.choices)) if len(list(action.choices)) <= 4 else "NAME"
    many = " ..." if action.nargs == "+" else ""
    return METAVARS.get(action.type, "TEXT") + many


class _Unset(argparse.Action):
    """A flag that is documented here and read elsewhere."""

    def __init__(self, *args, **kwargs):
        kwargs["default"] = argparse.SUPPRESS
        super().__init__(*args, **kwargs)

    def __call__(self, parser, namespace, values, option_string=None):
        pass


class _Help(_Unset):
    """`--help` prints what most people need, `--help all` everything."""

    def __call__(self, parser, namespace, values, option_string=None):
        print(parser.format_help(everything=values == "all"), end="")
        parser.exit()
