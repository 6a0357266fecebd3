"""Recipes: found by name or path, read, and overridden."""

import pytest

from modeling_gptlite.runs.recipes import RECIPES, RecipeError, as_flags, find_recipe, override, read_recipe


def test_a_recipe_is_found_by_name_or_path(here):
    assert find_recipe("quickstart") == RECIPES / "quickstart.yaml"
    (here / "mine.yaml").write_text("max_steps: 5\n")
    assert read_recipe(find_recipe("mine.yaml")) == {"max_steps": 5}


def test_a_folder_does_not_hide_a_recipe_of_its_name(here):
    (here / "quickstart").mkdir()
    assert find_recipe("quickstart") == RECIPES / "quickstart.yaml"


@pytest.mark.parametrize(
    ("name", "told"),
    [("quikstart", "did you mean 'quickstart'"), ("quickstart.yml", "did you mean 'quickstart'"), ("xyz", "sprint")],
)
def test_a_recipe_that_does_not_exist_is_an_error_with_a_hint(name, told):
    with pytest.raises(RecipeError, match=told):
        find_recipe(name)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"- a\n", "name: value"),
        (b"a: [\n", "not a recipe"),
        (b"a: \xe9\n", "not a recipe"),
        (b"a: &x 1\nb: *x\n", "aliases"),
    ],
)
def test_a_file_that_is_no_recipe_is_an_error(text, told, here):
    (here / "r.yaml").write_bytes(text)
    with pytest.raises(RecipeError, match=told):
        read_recipe(here / "r.yaml")


@pytest.mark.parametrize(
    ("given", "left"),
    [
        ([], {"dataset", "streaming", "preset", "model_overrides", "max_steps", "seed"}),
        (["seed"], {"dataset", "streaming", "preset", "model_overrides", "max_steps"}),
        (["train_file"], {"preset", "model_overrides", "max_steps", "seed"}),
        (["dataset"], {"preset", "model_overrides", "max_steps", "seed"}),
        (["model_name_or_path"], {"dataset", "streaming", "max_steps", "seed"}),
        (["num_train_epochs"], {"dataset", "streaming", "preset", "model_overrides", "seed"}),
    ],
)
def test_a_setting_replaces_its_alternatives_in_the_recipe(given, left):
    recipe = dict.fromkeys(["dataset", "streaming", "preset", "model_overrides", "max_steps", "seed"], 1)
    assert set(override(recipe, given)) == left


OF_THE_TEXT = {"sample_prompt", "language", "license", "documents", "encoding", "text_column", "dataset_config"}


@pytest.mark.parametrize(
    ("given", "dropped"),
    [
        ("train_file", {"train_file", *OF_THE_TEXT}),
        ("dataset", {"train_file", *OF_THE_TEXT}),
        ("model_name_or_path", {"preset", "tokenizer", "vocab_size"}),
        ("tokenizer", {"tokenizer"}),
        ("preset", {"preset"}),
    ],
)
def test_what_suits_a_text_or_a_tokenizer_is_dropped_with_it(given, dropped):
    recipe = dict.fromkeys(["train_file", *OF_THE_TEXT, "preset", "tokenizer", "vocab_size", "max_steps"], 1)
    assert recipe.keys() - override(recipe, [given]) == dropped


def test_a_recipe_for_any_text_keeps_how_it_is_read():
    recipe = {"documents": "lines", "sample_prompt": "Once", "max_steps": 3}
    assert override(recipe, ["train_file"]) == recipe


def test_another_tokenizer_is_for_the_model_of_the_recipe():
    recipe = {"model_name_or_path": "out/quickstart", "tokenizer": "out/quickstart"}
    assert override(recipe, ["tokenizer"]) == {"model_name_or_path": "out/quickstart"}


def test_another_optimizer_drops_what_only_muon_has():
    recipe = {"optimizer": "muon", "muon_momentum_warmup": 1.0, "learning_rate": 6e-3}
    assert override(recipe, ["optimizer"]) == {"learning_rate": 6e-3}


def test_settings_become_the_flags_that_they_stand_for():
    settings = {"a": 1, "b": True, "c": ["x", "y"], "d": None, "e": {"n": 2}, "f": "2"}
    assert as_flags(settings) == ["--a=1", "--b=true", "--c", "x", "y", '--e={"n": 2}', "--f=2"]
