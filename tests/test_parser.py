"""Flags, recipes and `--help` of the commands."""

import importlib
import re
from collections import Counter
from dataclasses import dataclass, field

import pytest
from helpers import call

from modeling_gptlite.errors import UserError
from modeling_gptlite.runs import settings
from modeling_gptlite.runs.settings import GROUPS, CausalLMTrainingArguments
from scripts.parser import Parser


COMMANDS = ["train", "generate", "evaluate", "convert", "push_to_hub", "demo"]


@dataclass
class Run:
    """A run."""

    output_dir: str = field(default="out/model", metadata={"help": "Folder."})
    max_steps: int = field(default=5, metadata={"help": "Steps."})
    train_file: list[str] | None = field(default=None, metadata={"help": "Files.", "nargs": "+"})
    dataset: str | None = field(default=None, metadata={"help": "Data set."})
    streaming: bool = field(default=False, metadata={"help": "Row by row."})


def parse(*argv):
    parser = Parser((Run,), "A run.")
    return parser.parse(list(argv))[0], parser.settings(list(argv))


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("dataset: books\nstreaming: true\nmax_steps: 7\n")


# ---- Recipes -------------------------------------------------------------------------------------------------------


def test_a_recipe_fills_in_what_no_flag_gives(recipe):
    run, given = parse("--config=mine.yaml", "--max-steps", "9")
    assert run == Run("out/mine", 9, None, "books", True)
    assert given == {"output_dir": "out/mine", "dataset": "books", "streaming": True, "max_steps": 9}


def test_a_flag_replaces_the_text_of_the_recipe_whatever_its_kind(recipe):
    run, _ = parse("--config", "mine.yaml", "--train_file", "a.txt", "b.txt")
    assert run == Run("out/mine", 7, ["a.txt", "b.txt"], None, False)


def test_the_quickstart_trains_on_the_text_of_a_flag():
    _, data, args = Parser(GROUPS, "").parse(["--config=quickstart", "--train_file=my.txt"])
    assert (data.train_file, data.dataset, args.max_steps) == (["my.txt"], None, 900)


def test_a_recipe_for_a_new_model_fine_tunes_the_model_of_a_flag():
    given = Parser(GROUPS, "").settings(["--config=shakespeare_char", "--model_name_or_path=out/mine"])
    assert settings.parse(given).model.model_name_or_path == "out/mine"


@pytest.mark.parametrize("argv", [["--train_file=a.txt", "--train_file=b.txt"], ["--train_file", "a.txt", "b.txt"]])
def test_a_flag_of_several_files_may_be_repeated(argv):
    assert Parser(GROUPS, "").settings(argv)["train_file"] == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--max_step=3"], ["--max_step", "did you mean 'max_steps'"]),
        (["--xyz=3"], ["--xyz", "see --help"]),
        (["--max_steps=many"], ["--max_steps", "many"]),
        (["--config"], ["--config"]),
        (["--config=quickstrat"], ["quickstrat", "did you mean 'quickstart'"]),
        (["--config=quickstart"], ["unknown key 'preset'", "quickstart.yaml"]),
    ],
)
def test_a_typo_is_an_error_that_suggests_the_nearest_name(argv, told):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert all(word in str(error.value) for word in told)


# ---- Help ----------------------------------------------------------------------------------------------------------


def help_of(name, capsys, *argv):
    code, out, err = call(importlib.import_module(f"scripts.{name}").main, "--help", *argv, capsys=capsys)
    assert (code, err) == (0, "")
    return out


def flags(text):
    return re.findall(r"^  (--[\w-]+)", text, re.M)


@pytest.mark.parametrize("columns", ["80", "200"])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_a_person(name, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    lines = help_of(name, capsys).splitlines()
    assert len(lines) <= (120 if columns == "200" else 150)
    assert max(map(len, lines)) <= 120
    assert any(line.startswith("gptlite ") for line in lines[:5])  # the examples keep their lines


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_one_spelling_of_each_flag_and_each_default_once(name, capsys):
    text = help_of(name, capsys)
    assert Counter(flags(text)).most_common(1)[0][1] == 1
    assert not [flag for flag in flags(text) if "-" in flag[2:]]
    entries = re.split(r"^  (?=--)", text, flags=re.M)
    assert max(len(re.findall(r"[Dd]efault", entry)) for entry in entries) == 1
    assert all(entry.strip().endswith((".", ":")) for entry in entries[1:-1]), "a sentence each"


def test_help_all_lists_every_argument_of_the_trainer(capsys):
    short, everything = flags(help_of("train", capsys)), flags(help_of("train", capsys, "all"))
    assert set(short) < set(everything)
    fields = CausalLMTrainingArguments.__dataclass_fields__.values()
    assert {f"--{field.name}" for field in fields if field.init} <= set(everything)


def test_both_spellings_of_a_flag_are_accepted():
    assert parse("--max-steps=3") == parse("--max_steps=3")
