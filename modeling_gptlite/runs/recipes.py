"""Recipes: the settings of a run as a YAML file. Those in `recipes/` are part of the package and found by name.

from modeling_gptlite.runs.recipes import find_recipe, read_recipe

settings = read_recipe(find_recipe("quickstart"))
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError, did_you_mean
from ..files import UserPath


_PACKAGE = Path(__file__).parents[1]
# An installed package holds the recipes; in a clone they are in the root.
RECIPES = next(folder for folder in (_PACKAGE / "recipes", _PACKAGE.parent / "recipes") if folder.is_dir())

TEXT = ("train_file", "dataset")
# Settings that exclude each other, and those that have a meaning only beside them. Giving one of the former drops
# what a recipe says about the whole group.
ALTERNATIVES = (
    # First, because the minutes also replace intervals that suit another number of steps, and the next group does not.
    (("minutes",), ("max_steps", "num_train_epochs", "warmup_steps", "eval_steps", "save_steps")),
    (("max_steps", "num_train_epochs", "minutes"), ("teacher_overrides",)),
    (TEXT, ("dataset_config", "text_column", "streaming", "documents", "encoding")),
    (TEXT, ("sample_prompt", "language", "license")),  # they suit the text
    (("model_name_or_path",), ("tokenizer", "vocab_size")),  # before the next, which a preset begins, too
    (("preset", "model_name_or_path"), ("model_overrides",)),
    (("model_name_or_path",), ("teachers", "teacher_overrides")),
    (("optimizer",), ("muon_momentum_warmup",)),
)


class RecipeError(UserError, ValueError):
    """A recipe does not exist, or is not a recipe."""


def find_recipe(name_or_path: str) -> Path:
    """The file `name_or_path`, or the packaged recipe of that name.

    Raises:
        RecipeError: There is neither.
    """
    path = Path(UserPath(name_or_path))
    if path.is_file():
        return path
    packaged = {recipe.stem: recipe for recipe in sorted(RECIPES.glob("*.yaml"))}
    if name_or_path in packaged:
        return packaged[name_or_path]
    hint = did_you_mean(path.stem, packaged) or f"; the packaged recipes are {', '.join(packaged)}"
    raise RecipeError(f"no such recipe: {name_or_path}{hint}")


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings in a recipe.

    Raises:
        RecipeError: The file cannot be read, is not a YAML mapping, or uses YAML aliases.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise RecipeError(
                f"{path} is not a recipe: it has YAML aliases, of which a few lines can expand to gigabytes"
            )
        recipe = yaml.safe_load(text)
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not a recipe: {' '.join(str(error).split())}") from error
    if not isinstance(recipe, dict):
        raise RecipeError(f"{path} is not a recipe: it must be a list of `name: value` lines")
    return recipe


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the flags with the same names, so that one parser checks recipes, Python and the command line."""
    flags = []
    for name, value in settings.items():
        if isinstance(value, list | tuple):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict | bool) else value}")
    return flags


def override(recipe: dict[str, Any], given: Iterable[str]) -> dict[str, Any]:
    """The settings of a recipe that remain when the settings `given` replace its own.

    A setting replaces its whole group in `ALTERNATIVES`: with `--train_file` the recipe's `dataset` is dropped, too.
    """
    replaced = set(given)
    for alternatives, companions in ALTERNATIVES:
        names_one = alternatives != TEXT or not recipe.keys().isdisjoint(TEXT)  # else what it says is for any text
        if names_one and replaced.intersection(alternatives):
            replaced |= {*alternatives, *companions}
    return {name: value for name, value in recipe.items() if name not in replaced}
