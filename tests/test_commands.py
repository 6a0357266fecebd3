"""The commands: what they print, and that a mistake is one line, exit code 2, and changes nothing on disk."""

import json

import pytest
from helpers import ROOT, call, files, refused, train_tiny

from scripts import train


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    """A folder to make mistakes in, with the files that they need."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.txt").write_text("all work and no play\n" * 100)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait" * 100)
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "folder").mkdir()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"title": "a", "story": "b"}\n' * 50)
    (tmp_path / "typo.yaml").write_text("learning_rat: 0.1\n")
    (tmp_path / "list.yaml").write_text("- preset\n")
    (tmp_path / "broken.yaml").write_text("preset: [\n")
    (tmp_path / "word.yaml").write_text("max_steps: many\n")
    return tmp_path


MISTAKES = {
    "missing file": (["--train_file=nowhere.txt"], ["nowhere.txt"]),
    "empty file": (["--train_file=empty.txt"], ["empty.txt is empty"]),
    "folder without text": (["--train_file=folder"], ["no .txt file", "folder"]),
    "not UTF-8": (["--train_file=latin.txt"], ["latin.txt is not UTF-8", "0xe9", "offset 3"]),
    "too short": (["--train_file=short.txt"], ["8 tokens", "129"]),
    "no network": (["--dataset=someone/books"], ["someone/books"]),
    "no such column": (["--dataset=rows", "--text_column=text"], ["'text'", "title", "story"]),
    "file and data set": (["--train_file=good.txt", "--dataset=rows"], ["--train_file", "--dataset"]),
    "unknown preset": (["--train_file=good.txt", "--preset=modern-1"], ["modern-1", "did you mean 'modern-1m'"]),
    "unknown flag": (["--train_file=good.txt", "--max_step=3"], ["--max_step", "max_steps"]),
    "unknown recipe key": (["--config=typo.yaml"], ["learning_rat", "typo.yaml", "learning_rate"]),
    "no recipe": (["--config=nowhere.yaml"], ["nowhere.yaml"]),
    "no path of a recipe": (["--config"], ["--config"]),
    "recipe is a list": (["--config=list.yaml"], ["list.yaml"]),
    "recipe is no YAML": (["--config=broken.yaml"], ["broken.yaml"]),
    "recipe value": (["--config=word.yaml"], ["max_steps", "many"]),
    "flag value": (["--max_steps=many"], ["max_steps", "many"]),
    "unknown optimizer": (["--optimizer=sgd"], ["optimizer", "sgd", "muon"]),
    "heads do not divide": (
        ["--train_file=good.txt", '--model_overrides={"hidden_size": 100, "num_attention_heads": 7}'],
        ["hidden_size", "100", "num_attention_heads", "7"],
    ),
    "misspelt field": (
        ["--train_file=good.txt", '--model_overrides={"hiden_size": 64}'],
        ["hiden_size", "did you mean 'hidden_size'"],
    ),
    "wrong type": (["--train_file=good.txt", '--model_overrides={"hidden_size": "64"}'], ["hidden_size", "int"]),
    "not JSON": (["--train_file=good.txt", "--model_overrides=hidden_size"], ["--model_overrides", "JSON"]),
    "context too long": (["--train_file=good.txt", "--context_length=999"], ["--context_length", "128", "999"]),
    "pieces of the context": (["--train_file=good.txt", "--short_context=5"], ["--short_context", "128", "5"]),
    "no pieces": (["--train_file=good.txt", "--short_context=0"], ["short_context", "at least 1"]),
    "validation fraction": (["--train_file=good.txt", "--validation_fraction=1.5"], ["between 0 and 1", "1.5"]),
    "nothing to resume": (["--train_file=good.txt", "--resume_from_checkpoint=true"], ["no checkpoint"]),
    "no such model": (["--train_file=good.txt", "--model_name_or_path=folder"], ["folder"]),
    "no such tokenizer": (["--train_file=good.txt", "--tokenizer=folder"], ["folder"]),
    "BPE too small": (["--train_file=good.txt", "--tokenizer=bpe", "--vocab_size=99"], ["259", "99"]),
    "checkpoints out of step": (["--train_file=good.txt", "--eval_steps=3", "--save_steps=4"], ["3", "4"]),
}


@pytest.mark.parametrize(("argv", "told"), MISTAKES.values(), ids=MISTAKES)
def test_training_refuses_a_mistake_in_one_line_and_touches_nothing(argv, told, cwd, capsys):
    before = files(cwd)
    refused(train.main, "--output_dir=out", *argv, capsys=capsys, told=told)
    assert files(cwd) == before


def test_a_finished_run_is_not_written_over(trained, text_file, capsys):
    before = files(trained)
    refused(
        train.main,
        f"--train_file={text_file}",
        f"--output_dir={trained}",
        capsys=capsys,
        told=["finished run", "delete"],
    )
    assert files(trained) == before


def test_an_unfinished_run_is_not_written_over(text_file, tmp_path, capsys):
    (tmp_path / "run" / "checkpoint-10").mkdir(parents=True)
    refused(
        train.main,
        f"--train_file={text_file}",
        f"--output_dir={tmp_path / 'run'}",
        "--resume_from_checkpoint=false",
        capsys=capsys,
        told=["unfinished run", "--resume_from_checkpoint"],
    )


def test_a_flag_overrides_the_recipe(text_file, tmp_path):
    (tmp_path / "recipe.yaml").write_text("max_steps: 500\nlearning_rate: 1.0e-2\nlogging_steps: 7\n")
    train_tiny(text_file, tmp_path / "run", f"--config={tmp_path / 'recipe.yaml'}", "--max_steps=10")
    arguments = json.loads((tmp_path / "run" / "run.json").read_text())["arguments"]
    assert (arguments["max_steps"], arguments["learning_rate"]) == (10, 0.01)


@pytest.mark.parametrize("recipe", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_understood(recipe):
    from modeling_gptlite.runs.arguments import GROUPS
    from modeling_gptlite.runs.build import build_config
    from scripts.parser import Parser
    from tokenization import build_char_tokenizer

    model_args, _, args = Parser(GROUPS, "").parse([f"--config={recipe.stem}"])
    assert args.output_dir == f"out/{recipe.stem}"
    config = build_config(model_args, build_char_tokenizer("abc"))
    assert config.num_hidden_layers > 0


def test_characters_the_vocabulary_lacks_are_named(trained, tmp_path, capsys):
    (tmp_path / "more.txt").write_text("99 bottles for Zoë\n" * 100)
    train_tiny(tmp_path / "more.txt", tmp_path / "run", f"--model_name_or_path={trained}", "--max_steps=10")
    assert "'Z' (U+005A)" in capsys.readouterr().out


def test_auto_says_that_it_trains_on_python_docs(tmp_path, monkeypatch, capsys):
    import urllib.error
    import urllib.request

    def no_network(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    monkeypatch.delenv("GPTLITE_DATA", raising=False)
    tiny = '--model_overrides={"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}'
    code, out, _ = call(
        train.main, "--max_steps=1", tiny, f"--output_dir={tmp_path / 'run'}", "--sample_length=0", capsys=capsys
    )
    assert code == 0
    assert "python-docs, NOT on tinyshakespeare" in out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["name"] == "python-docs"
