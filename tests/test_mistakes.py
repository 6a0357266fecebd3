"""Bad input to every command, in tables: exit code 2, one line that names it, nothing changed on disk."""

import json
import shutil

import pytest
from helpers import ROOT, files, refused
from transformers import ByT5Tokenizer

from scripts import generate, push_to_hub, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained):
    """A good text, a good model, and files that are not what they claim to be; every test leaves it as it was."""
    tmp_path = tmp_path_factory.mktemp("mistakes")
    shutil.copytree(trained, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoint-*"))
    (tmp_path / "good.txt").write_text("all work and no play\n" * 100)
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait" * 100)
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "empty_folder").mkdir()
    (tmp_path / "stories").mkdir()
    (tmp_path / "stories" / "train.jsonl").write_text('{"title": "a", "story": "b"}\n' * 50)
    (tmp_path / "typo.yaml").write_text("learning_rat: 0.1\n")
    (tmp_path / "list.yaml").write_text("- preset\n")
    (tmp_path / "broken.yaml").write_text("preset: [\n")
    (tmp_path / "word.yaml").write_text("learning_rate: many\n")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (tmp_path / "one.txt").write_text("x")
    (tmp_path / "a.out").write_text("a file")
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text('{"text": 3}\n' * 5)
    (tmp_path / "broken_rows").mkdir()
    (tmp_path / "broken_rows" / "train.jsonl").write_text('{"text": "a"\n')
    (tmp_path / "false_rows").mkdir()
    (tmp_path / "false_rows" / "train.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "empty_rows").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"# caf\xe9\npreset: modern-1m\n")
    (tmp_path / "empty.yaml").write_text("")
    (tmp_path / "number.yaml").write_text("3: 4\n")
    (tmp_path / "python.yaml").write_text("preset: !!python/object/apply:os.system ['touch executed']\n")
    (tmp_path / "bomb.yaml").write_text("a: &a [x, x]\nb: &b [*a, *a]\npreset: *b\n")
    (tmp_path / "nested.yaml").write_text("preset: {name: modern-1m}\n")
    ByT5Tokenizer().save_pretrained(tmp_path / "slow_tokenizer")
    for name, change in BROKEN_MODELS.items():
        shutil.copytree(tmp_path / "model", tmp_path / name)
        change(tmp_path / name)
    return tmp_path


@pytest.fixture
def cwd(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def edit(name, **values):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def write(name, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def sharded(name):
    def change(folder):
        (folder / "model.safetensors").rename(folder.parent / f"{folder.name}.safetensors")
        index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


BROKEN_MODELS = {
    "no_config": without("config.json"),
    "config_is_text": write("config.json", b"hello"),
    "config_is_list": write("config.json", b"[]"),
    "config_is_latin": write("config.json", b'{"model_type": "gptlit\xe9"}'),
    "no_model_type": write("config.json", b"{}"),
    "unknown_type": edit("config.json", model_type="gptlight"),
    "many_layers": edit("config.json", num_hidden_layers=10**12),
    "wide": edit("config.json", hidden_size=10**12),
    "large_vocabulary": edit("config.json", vocab_size=10**12),
    "no_layers": edit("config.json", num_hidden_layers=0),
    "negative": edit("config.json", hidden_size=-32),
    "text_for_number": edit("config.json", hidden_size="32"),
    "wrong_width": edit("config.json", hidden_size=64),
    "unknown_activation": edit("config.json", hidden_act="sillu"),
    "no_tokenizer": without("tokenizer.json", "tokenizer_config.json"),
    "tokenizer_is_text": write("tokenizer.json", b"hello"),
    "tokenizer_is_empty": write("tokenizer.json", b""),
    "tokenizer_without_model": write("tokenizer.json", b'{"version": "1.0"}'),
    "weights_are_text": write("model.safetensors", b"hello"),
    "weights_are_empty": write("model.safetensors", b""),
    "weights_cut": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-100]
    ),
    "weights_header_lies": write("model.safetensors", b"\xff" * 8 + b"{}"),
    "shards_outside": sharded("../shards_outside.safetensors"),
    "shards_absolute": sharded("/etc/passwd"),
    "shards_missing": sharded("model-00001-of-00001.safetensors"),
    "index_is_list": lambda folder: (
        (folder / "model.safetensors.index.json").write_text("[]"),
        (folder / "model.safetensors").unlink(),
    ),
    "pickled_weights": lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
}

TRAIN = {
    "missing file": (["--train_file=nowhere.txt"], ["nowhere.txt"]),
    "empty file": (["--train_file=empty.txt"], ["empty.txt is empty"]),
    "folder without text": (["--train_file=empty_folder"], ["no file that can be read"]),
    "not UTF-8": (["--train_file=latin.txt"], ["latin.txt is not UTF-8", "0xe9", "offset 3"]),
    "UTF-16 without a mark": (["--train_file=good.txt", "--encoding=utf-16"], ["good.txt", "--encoding utf-16-le"]),
    "empty path": (["--train_file="], ["the path of a text is empty"]),
    "too short": (["--train_file=short.txt"], ["8 tokens", "129"]),
    "no network": (["--dataset=someone/books"], ["someone/books"]),
    "no such column": (["--dataset=stories", "--text_column=text"], ["'text'", "title", "story"]),
    "column of a text": (["--train_file=good.txt", "--text_column=text"], ["--text_column", "tables"]),
    "streamed text": (["--dataset=python-docs", "--streaming"], ["--streaming", "--dataset"]),
    "file and data set": (["--train_file=good.txt", "--dataset=stories"], ["--train_file", "--dataset"]),
    "unknown preset": (["--train_file=good.txt", "--preset=modern-1"], ["modern-1", "did you mean 'modern-1m'"]),
    "unknown flag": (["--train_file=good.txt", "--max_step=3"], ["--max_step", "max_steps"]),
    "unknown recipe key": (["--config=typo.yaml"], ["learning_rat", "typo.yaml", "learning_rate"]),
    "no recipe": (["--config=nowhere.yaml"], ["nowhere.yaml"]),
    "no path of a recipe": (["--config"], ["--config"]),
    "recipe is a list": (["--config=list.yaml"], ["list.yaml"]),
    "recipe is no YAML": (["--config=broken.yaml"], ["broken.yaml"]),
    "recipe value": (["--config=word.yaml"], ["learning_rate", "many"]),
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
    "no such model": (["--train_file=good.txt", "--model_name_or_path=empty_folder"], ["empty_folder"]),
    "no such tokenizer": (["--train_file=good.txt", "--tokenizer=empty_folder"], ["empty_folder"]),
    "BPE too small": (["--train_file=good.txt", "--tokenizer=bpe", "--vocab_size=99"], ["259", "99"]),
    "checkpoints out of step": (["--train_file=good.txt", "--eval_steps=3", "--save_steps=4"], ["3", "4"]),
    "binary": (["--train_file=binary.txt"], ["binary.txt is not UTF-8", "0x80"]),
    "one character": (["--train_file=one.txt"], ["0 tokens"]),
    "second file missing": (["--train_file", "good.txt", "nowhere.txt"], ["nowhere.txt"]),
    "no file named": (["--train_file"], ["train_file"]),
    "rows without text": (["--dataset=rows"], ["not text"]),
    "rows are no JSON": (["--dataset=broken_rows"], ["broken_rows"]),
    "rows are no Parquet": (["--dataset=false_rows"], ["false_rows"]),
    "no rows": (["--dataset=empty_rows"], ["empty_rows"]),
    "streamed rows without text": (["--dataset=rows", "--streaming"], ["not text"]),
    "streamed rows are no JSON": (["--dataset=broken_rows", "--streaming"], ["broken_rows"]),
    "output is a file": (["--train_file=good.txt", "--output_dir=a.out"], ["a.out is not a folder"]),
    "output in a file": (["--train_file=good.txt", "--output_dir=a.out/run"], ["a.out"]),
    "recipe in Latin-1": (["--config=latin.yaml"], ["latin.yaml"]),
    "empty recipe": (["--config=empty.yaml"], ["empty.yaml"]),
    "recipe with a number for a key": (["--config=number.yaml"], ["number.yaml", "3"]),
    "recipe with Python": (["--config=python.yaml"], ["python.yaml"]),
    "recipe with aliases": (["--config=bomb.yaml"], ["bomb.yaml", "aliases"]),
    "recipe with a map for a name": (["--config=nested.yaml", "--train_file=good.txt"], ["modern-1m"]),
    "recipe is a folder": (["--config=rows"], ["rows"]),
    "no batch": (["--train_file=good.txt", "--per_device_train_batch_size=0"], ["per_device_train_batch_size", "0"]),
    "negative batch": (["--train_file=good.txt", "--per_device_train_batch_size=-4"], ["batch_size", "-4"]),
    "no evaluation batch": (["--train_file=good.txt", "--per_device_eval_batch_size=0"], ["eval_batch_size", "0"]),
    "no accumulation": (["--train_file=good.txt", "--gradient_accumulation_steps=0"], ["accumulation_steps", "0"]),
    "negative learning rate": (["--train_file=good.txt", "--learning_rate=-1"], ["learning_rate", "-1"]),
    "learning rate is no number": (["--train_file=good.txt", "--learning_rate=nan"], ["learning_rate", "nan"]),
    "endless learning rate": (["--train_file=good.txt", "--learning_rate=inf"], ["learning_rate", "inf"]),
    "negative Muon rate": (["--train_file=good.txt", "--muon_learning_rate=-1"], ["muon_learning_rate", "-1"]),
    "negative decay": (["--train_file=good.txt", "--weight_decay=-1"], ["weight_decay", "-1"]),
    "momentum of one": (["--train_file=good.txt", "--adam_beta2=1"], ["adam_beta2", "1"]),
    "negative warm-up": (["--train_file=good.txt", "--warmup_steps=-1"], ["warmup_steps"]),
    "negative seed": (["--train_file=good.txt", "--seed=-1"], ["seed", "-1"]),
    "huge seed": (["--train_file=good.txt", f"--seed={2**64}"], ["seed"]),
    "negative save steps": (["--train_file=good.txt", "--save_steps=-5"], ["save_steps"]),
    "no logging steps": (["--train_file=good.txt", "--logging_steps=0"], ["logging_steps"]),
    "negative epochs": (
        ["--train_file=good.txt", "--num_train_epochs=-1", "--max_steps=-1"],
        ["num_train_epochs", "-1"],
    ),
    "negative sample": (["--train_file=good.txt", "--sample_length=-1"], ["sample_length", "-1"]),
    "no context": (["--train_file=good.txt", "--context_length=0"], ["context_length", "0"]),
    "no validation": (["--train_file=good.txt", "--validation_fraction=0"], ["validation_fraction"]),
    "unknown schedule": (["--train_file=good.txt", "--lr_scheduler_type=cosinus"], ["cosinus"]),
    "unknown precision": (["--train_file=good.txt", "--precision=int4"], ["precision", "int4"]),
    "overrides are a list": (["--train_file=good.txt", "--model_overrides=[1]"], ["model_overrides"]),
    "many layers": (
        ["--train_file=good.txt", '--model_overrides={"num_hidden_layers": 1000000}'],
        ["num_hidden_layers"],
    ),
    "too wide": (["--train_file=good.txt", '--model_overrides={"hidden_size": 1000000000000}'], ["hidden_size"]),
    "dropout over one": (["--train_file=good.txt", '--model_overrides={"hidden_dropout": 2}'], ["hidden_dropout", "2"]),
    "empty vocabulary": (["--train_file=good.txt", "--tokenizer=word", "--vocab_size=0"], ["vocabulary", "0"]),
    "negative vocabulary": (["--train_file=good.txt", "--tokenizer=bpe", "--vocab_size=-9"], ["-9"]),
    "vocabulary without a tokenizer": (["--train_file=good.txt", "--vocab_size=300"], ["--vocab_size", "bpe or word"]),
    "preset of an old model": (
        ["--train_file=good.txt", "--model_name_or_path=model", "--preset=modern-1m"],
        ["--preset", "--model_name_or_path"],
    ),
    "slow tokenizer": (["--train_file=good.txt", "--tokenizer=slow_tokenizer"], ["ByT5Tokenizer", "--tokenizer"]),
    "new tokenizer, old model": (["--train_file=good.txt", "--model_name_or_path=model", "--tokenizer=char"], ["char"]),
    "resume from nowhere": (["--train_file=good.txt", "--resume_from_checkpoint=nowhere"], ["nowhere"]),
    "resume from a model": (["--train_file=good.txt", "--resume_from_checkpoint=model"], ["manifest.json"]),
    "escape in a flag": (["--\x1b[31mred=1"], ["\\x1b[31mred"]),
    "escape in a file name": (["--train_file=\x1b]0;owned\x07.txt"], ["\\x1b]0;owned\\x07.txt"]),
    "escape in a preset": (["--train_file=good.txt", "--preset=\x1b[2J"], ["\\x1b[2J"]),
    **{f"model: {name}": (["--train_file=good.txt", f"--model_name_or_path={name}"], [name]) for name in BROKEN_MODELS},
}


@pytest.mark.parametrize(("argv", "told"), TRAIN.values(), ids=TRAIN)
def test_train_refuses(argv, told, cwd, capsys):
    before = files(cwd)
    refused(train.main, "--output_dir=out", "--max_steps=1", *argv, capsys=capsys, told=told)
    assert files(cwd) == before
    assert not (cwd / "executed").exists()


GENERATE = {
    **{f"model: {name}": ([f"--model={name}", "--prompt=1"], [name]) for name in BROKEN_MODELS},
    "model is a file": (["--model=good.txt", "--prompt=1"], ["good.txt"]),
    "no model": (["--prompt=1"], ["--model"]),
    "prompt file is a folder": (["--model=model", "--prompt_file=rows"], ["rows"]),
    "escape in a prompt": (["--model=model", "--prompt=\x1b[2J"], ["\\x1b"]),
    "escape in a model's name": (["--model=\x1b[2J", "--prompt=1"], ["\\x1b[2J"]),
    "temperature is no number": (["--model=model", "--prompt=1", "--temperature=nan"], ["temperature", "nan"]),
    "endless temperature": (["--model=model", "--prompt=1", "--temperature=inf"], ["temperature", "inf"]),
    "negative seed": (["--model=model", "--prompt=1", "--seed=-1"], ["seed", "-1"]),
    "top_p is no number": (["--model=model", "--prompt=1", "--top_p=nan"], ["top_p", "nan"]),
}


@pytest.mark.parametrize(("argv", "told"), GENERATE.values(), ids=GENERATE)
def test_generate_refuses(argv, told, cwd, capsys):
    before = files(cwd)
    refused(generate.main, *argv, capsys=capsys, told=told)
    assert files(cwd) == before


PUSH = {
    "no folder": (["--model=nowhere", "--repo_id=ada/x"], ["nowhere"]),
    "file": (["--model=good.txt", "--repo_id=ada/x"], ["good.txt"]),
    "repository of three parts": (["--model=model", "--repo_id=a/b/c"], ["a/b/c"]),
    "repository with an escape": (["--model=model", "--repo_id=a/\x1b[2J"], ["USER/NAME"]),
    "no weights": (["--model=pickled_weights", "--repo_id=ada/x", "--dry_run"], ["model.safetensors"]),
    "unknown kind": (["--model=model", "--repo_id=ada/x", "--as=tar"], ["--as", "gguf"]),
    "unknown flag": (["--model=model", "--repo_id=ada/x", "--privat"], ["--privat", "private"]),
}


@pytest.mark.parametrize(("argv", "told"), PUSH.values(), ids=PUSH)
def test_push_to_hub_refuses(argv, told, cwd, capsys):
    before = files(cwd)
    refused(push_to_hub.main, *argv, capsys=capsys, told=told)
    assert files(cwd) == before


# ---- Hostile files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["model", "tokenizer", "known type"])
def test_the_code_that_comes_with_a_model_is_not_run(kind, cwd, tmp_path, monkeypatch, capsys):
    evil = tmp_path / "evil"
    shutil.copytree("model", evil)
    monkeypatch.chdir(tmp_path)
    for name in ("modeling_gptlite.py", "configuration_gptlite.py", "tokenization_evil.py"):
        (evil / name).write_text("import pathlib\npathlib.Path('executed').touch()\n")
    if kind == "known type":  # this package's own class is taken, not that of the folder
        generate.main(["--model=evil", "--prompt=1", "--max_new_tokens=3"])
    else:
        if kind == "model":
            edit("config.json", model_type="evil")(evil)
        else:
            auto_map = {"AutoTokenizer": ["tokenization_evil.Evil", None]}
            edit("tokenizer_config.json", auto_map=auto_map, tokenizer_class="Evil")(evil)
        refused(generate.main, "--model=evil", "--prompt=1", capsys=capsys, told=["evil"])
    assert not (tmp_path / "executed").exists()


def test_a_data_set_with_a_program_does_not_run_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("import pathlib\npathlib.Path('executed').touch()\n")
    refused(train.main, "--dataset=scripted", capsys=capsys, told=["scripted"])
    assert not (tmp_path / "executed").exists()


def test_no_source_file_loads_a_pickle_or_trusts_remote_code():
    """The one exception: the demo's flag, which a person gives."""
    for path in [*ROOT.glob("scripts/*.py"), *ROOT.glob("modeling_gptlite/**/*.py"), *ROOT.glob("tokenization/*.py")]:
        text = path.read_text(encoding="utf-8")
        assert "pickle.load" not in text, path
        assert "trust_remote_code=True" not in text, path
        assert all("weights_only=True" in call for call in text.split("torch.load(")[1:]), path


def test_a_terminal_gets_visible_escapes_and_a_pipe_gets_them_unchanged(tmp_path, monkeypatch, capsys):
    import sys

    from helpers import train_tiny

    (tmp_path / "text.txt").write_text("\x1b[31mred\x1b[0m text\n" * 200)
    train_tiny(tmp_path / "text.txt", tmp_path / "run")
    capsys.readouterr()
    argv = [f"--model={tmp_path / 'run'}", "--prompt=\x1b[31mred", "--greedy", "--max_new_tokens=5"]
    generate.main(argv)
    assert capsys.readouterr().out.startswith("\x1b[31mred")
    for samples in ([], ["--num_samples=2"]):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        generate.main([*(argv if not samples else [flag for flag in argv if flag != "--greedy"]), *samples])
        out = capsys.readouterr().out
        assert "\\x1b[31mred" in out
        assert "\x1b" not in out
