"""`runs/settings.py`: settings from Python, a recipe or the command line are the same."""

import pytest

from modeling_gptlite.runs.resume import resume_mode
from modeling_gptlite.runs.settings import DataArguments, defaults, parse, read
from modeling_gptlite.training.arguments import ArgumentError


def test_settings_are_parsed_as_the_flags_of_the_same_names():
    settings = read(
        {
            "model_overrides": {"num_hidden_layers": 2},
            "train_file": ["a.txt", "b.txt"],
            "learning_rate": "1e-2",
            "use_cpu": True,
            "lr_scheduler_kwargs": {"min_lr_rate": 0.2},
            "sample_prompt": None,
        }
    )
    model, data, training = args = parse(settings)
    assert model.model_overrides == '{"num_hidden_layers": 2}'
    assert data.train_file == ["a.txt", "b.txt"]
    assert (training.learning_rate, training.use_cpu) == (0.01, True)
    assert training.lr_scheduler_kwargs == {"min_lr_rate": 0.2}
    assert args.values(settings)["learning_rate"] == settings["learning_rate"] == 0.01
    assert set(settings) == {"model_overrides", "train_file", "learning_rate", "use_cpu", "lr_scheduler_kwargs"}


def test_one_file_may_be_given_without_a_list():
    assert parse(read({"train_file": "a book.txt"})).data.train_file == ["a book.txt"]
    assert DataArguments(train_file="a book.txt").train_file == ["a book.txt"]


def test_a_tilde_is_the_home_folder_in_every_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    names = ("train_file", "model_name_or_path", "tokenizer", "dataset", "output_dir", "resume_from_checkpoint")
    model, data, training = parse(read(dict.fromkeys(names, "~/x") | {"sample_prompt": "~/x"}))
    home = str(tmp_path / "x")
    assert (data.train_file, data.dataset, model.model_name_or_path, model.tokenizer) == ([home], home, home, home)
    assert (training.output_dir, resume_mode(training)) == (home, home)
    assert data.sample_prompt == "~/x"


MISTAKES = {
    "a misspelt name": ({"learning_rat": 1}, "unknown setting 'learning_rat'; did you mean 'learning_rate'"),
    "a wrong type": ({"max_steps": "many"}, "max_steps"),
    "a value that is not allowed": ({"sample_length": -1}, "--sample_length must be 0 (none) or more, got -1"),
    "LoRA without a model": ({"lora_r": 4}, "--lora_r needs --model_name_or_path"),
    "a preset beside a model": ({"preset": "modern-1m", "model_name_or_path": "x"}, "--preset is for a new model"),
    "overrides beside a model": ({"model_overrides": {}, "model_name_or_path": "x"}, "--model_overrides is for"),
    "a size without a tokenizer": ({"vocab_size": 300}, "--vocab_size needs --tokenizer bpe or word"),
    "a size of characters": ({"vocab_size": 300, "tokenizer": "char"}, "--vocab_size needs --tokenizer bpe or word"),
    "a size of a model": ({"vocab_size": 300, "model_name_or_path": "x"}, "--vocab_size needs --tokenizer bpe or word"),
    "alpha without LoRA": ({"lora_alpha": 4}, "need --lora_r"),
    "rank 0": ({"lora_r": 0, "model_name_or_path": "x"}, "--lora_r must be at least 1, got 0"),
}


@pytest.mark.parametrize(("settings", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_an_error_of_one_line(settings, message):
    with pytest.raises(ArgumentError) as error:
        parse(read(settings))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_every_setting_has_a_default():
    assert defaults()["preset"] == "modern-1m"
    assert {"train_file", "learning_rate", "lora_r"} <= defaults().keys()
