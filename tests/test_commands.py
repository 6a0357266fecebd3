"""The commands: what they print, and that a mistake is one line, exit code 2, and changes nothing on disk."""

import io
import json
import shutil
import sys

import pytest
import torch
from conftest import ROOT, train_tiny

from scripts import evaluate, generate, train
from scripts.cli import run


def call(main, *argv, capsys=None):
    """Run a command as `python -m` does; returns its exit code, standard output and standard error."""
    code = 0
    try:
        run(lambda: main([str(argument) for argument in argv]))
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def refused(main, *argv, capsys, told=()):
    code, _, err = call(main, *argv, capsys=capsys)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in err
    for word in told:
        assert word in err
    return err


@pytest.fixture
def place(tmp_path, monkeypatch):
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
def test_training_refuses_a_mistake_in_one_line_and_touches_nothing(argv, told, place, capsys):
    before = files(place)
    refused(train.main, "--output_dir=out", *argv, capsys=capsys, told=told)
    assert files(place) == before


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
    from scripts.cli import Parser

    groups = (train.ModelArguments, train.DataArguments, train.CausalLMTrainingArguments)
    model_args, _, args = Parser(groups, "").parse([f"--config={recipe}"])
    assert args.output_dir == f"out/{recipe.stem}"
    config = train.build_config(model_args, vocab_size=68)
    assert config.num_hidden_layers > 0


@pytest.mark.parametrize("main", [train.main, generate.main, evaluate.main])
def test_help_explains_every_flag(main, capsys):
    code, out, _ = call(main, "--help", capsys=capsys)
    assert code == 0
    assert "python -m scripts." in out


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
    assert "python-docs, NOT on tiny Shakespeare" in out
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["name"] == "python-docs"


# ---- generate ------------------------------------------------------------------------------------------------------


def written(trained, *argv, capsys):
    code, out, err = call(generate.main, f"--model={trained}", *argv, capsys=capsys)
    assert code == 0, err
    return out


def test_greedy_text_is_what_the_model_generates(trained, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    ids = model.generate(**tokenizer("12 green", return_tensors="pt"), max_new_tokens=80, do_sample=False)
    expected = tokenizer.decode(ids[0], skip_special_tokens=True)
    out = written(trained, "--prompt=12 green", "--greedy", "--max_new_tokens=80", capsys=capsys)
    assert out == expected + "\n"


def test_int8_and_a_compiled_step_write_text(trained, monkeypatch, capsys):
    greedy = ["--prompt=12 green", "--greedy", "--max_new_tokens=30"]
    plain = written(trained, *greedy, capsys=capsys)
    assert written(trained, *greedy, "--dtype=int8", capsys=capsys)[:20] == plain[:20]
    if shutil.which("g++"):
        assert written(trained, *greedy, "--torch_compile=true", capsys=capsys) == plain
    monkeypatch.setattr(shutil, "which", lambda name: None)
    refused(generate.main, f"--model={trained}", *greedy, "--torch_compile=true", capsys=capsys, told=["C++ compiler"])


def test_a_seed_repeats_the_text(trained, capsys):
    texts = [written(trained, "--prompt=1", f"--seed={seed}", capsys=capsys) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


def test_several_samples_are_written_one_after_the_other(trained, capsys):
    out = written(trained, "--prompt=12", "--num_samples=3", "--max_new_tokens=20", "--top_k=5", capsys=capsys)
    assert [f"--- {i} of 3 ---\n12" in out for i in (1, 2, 3)] == [True] * 3


def test_the_prompt_comes_from_a_file_or_from_standard_input(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "prompt.txt").write_text("7 green")
    assert written(trained, f"--prompt_file={tmp_path / 'prompt.txt'}", capsys=capsys).startswith("7 green")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"8 green")))
    assert written(trained, capsys=capsys).startswith("8 green")


def test_an_empty_prompt_begins_with_the_beginning_of_text(trained, capsys):
    assert written(trained, "--prompt=", "--max_new_tokens=5", capsys=capsys)


def test_stop_at_eos_is_opt_in(trained, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    with torch.no_grad():  # nothing but the end of text, from the first token on
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id] = 1.0
        model.model.norm.weight.zero_()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    stopped = written(tmp_path, "--prompt=12", "--stop_at_eos", "--max_new_tokens=200", "--seed=0", capsys=capsys)
    assert len(stopped) < len(written(tmp_path, "--prompt=12", "--max_new_tokens=200", "--seed=0", capsys=capsys))


GENERATE_MISTAKES = {
    "characters outside the vocabulary": (["--prompt=naïve ☃"], ["'ï' (U+00EF)", "'☃' (U+2603)"]),
    "negative temperature": (["--prompt=1", "--temperature=-1"], ["--temperature", "-1"]),
    "negative top_k": (["--prompt=1", "--top_k=-1"], ["--top_k", "-1"]),
    "top_p over one": (["--prompt=1", "--top_p=1.5"], ["--top_p", "1.5"]),
    "no tokens": (["--prompt=1", "--max_new_tokens=0"], ["--max_new_tokens", "0"]),
    "no samples": (["--prompt=1", "--num_samples=0"], ["--num_samples", "0"]),
    "greedy samples": (["--prompt=1", "--greedy", "--num_samples=2"], ["--greedy"]),
    "two prompts": (["--prompt=1", "--prompt_file=x"], ["--prompt", "--prompt_file"]),
    "missing prompt file": (["--prompt_file=nowhere.txt"], ["nowhere.txt"]),
    "unknown dtype": (["--prompt=1", "--dtype=int4"], ["--dtype", "int4", "bfloat16", "int8"]),
    "int8 elsewhere": (["--prompt=1", "--dtype=int8", "--device=meta"], ["--dtype int8", "on meta"]),
    "unknown device": (["--prompt=1", "--device=toaster"], ["--device", "toaster"]),
    "unknown flag": (["--prompt=1", "--temprature=1"], ["--temprature", "temperature"]),
}


@pytest.mark.parametrize(("argv", "told"), GENERATE_MISTAKES.values(), ids=GENERATE_MISTAKES)
def test_generate_refuses_a_mistake_in_one_line(argv, told, trained, capsys):
    refused(generate.main, f"--model={trained}", *argv, capsys=capsys, told=told)


def test_generate_refuses_a_folder_without_weights(trained, tmp_path, capsys):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((trained / name).read_bytes())
    refused(generate.main, f"--model={tmp_path}", "--prompt=1", capsys=capsys, told=["model.safetensors"])


@pytest.mark.parametrize("name", ["nowhere/at/all", "."])
def test_generate_refuses_a_folder_without_a_model(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    refused(generate.main, f"--model={name}", "--prompt=1", capsys=capsys, told=[name])
