"""The training command: what it prints, and the runs that it does not write over."""

import json

import pytest
from helpers import ROOT, call, files, refused, train_tiny

from scripts import train


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
    from modeling_gptlite.runs.model import build_config
    from modeling_gptlite.runs.settings import GROUPS
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
