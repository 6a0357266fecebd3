"""The README and the pages under docs/: every command and block in them runs, and their numbers are the code's."""

import importlib
import json
import re
import shlex
import shutil

import hub_server
import pytest
import torch
from conftest import ROOT, TEXT, tiny_model
from test_convert import save_nanogpt

from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM
from modeling_gptlite.configuration_gptlite import PRESETS
from modeling_gptlite.conversion import to_gpt2
from scripts import train
from tokenization import build_char_tokenizer


hub = hub_server.hub

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]}
REVIEWS = {"green bottles": "good", "should fall": "bad"}
QUICK = ["--max_steps=2", "--sample_length=5", "--per_device_train_batch_size=2", "--eval_steps=2", "--save_steps=2"]


def blocks(language):
    """Every fenced block of `language`, named by its page and its last line."""
    return [
        pytest.param(block, id=f"{name}: {block.splitlines()[-1]}")
        for name, page in PAGES.items()
        for block in re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    ]


def lines(start):
    """The lines of all shell blocks that begin with `start`; a backslash at a line's end continues it."""
    shell = "\n".join(param.values[0] for param in blocks("bash")).replace("\\\n", " ")
    commands = (line.split("#")[0].strip() for line in shell.splitlines())
    return [command for command in dict.fromkeys(commands) if command.startswith(start)]


@pytest.fixture
def place(tmp_path, trained, talking, monkeypatch):
    """A folder in which the README's names exist."""
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "tuned", "finetune_text", "finetune_instructions"):
        folder = shutil.copytree(trained, tmp_path / "out" / name)
        run = json.loads((folder / "run.json").read_text())
        run["data"]["name"] = "tinyshakespeare"
        (folder / "run.json").write_text(json.dumps(run))
    shutil.copytree(talking, tmp_path / "out" / "talking")
    reviews = [{"text": f"{n} {word}", "label": label} for n in range(40) for word, label in REVIEWS.items()]
    (tmp_path / "reviews.jsonl").write_text("\n".join(map(json.dumps, reviews)))
    answers = [{"prompt": f"{n} ->", "completion": f" {n + 1}"} for n in range(40)]
    (tmp_path / "instructions.jsonl").write_text("\n".join(map(json.dumps, answers)))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr("modeling_gptlite.training.data.load_source", lambda *_, **__: book(tmp_path))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "my_book.txt").write_text(TEXT)
    monkeypatch.setenv("GPTLITE_DATA", str(tmp_path))  # no tiny Shakespeare there: read the book instead
    return tmp_path


def make_models(place):
    """Those that docs/export.md converts."""
    tokenizer = build_char_tokenizer(TEXT, special_tokens=False)
    save_nanogpt(place / "out-shakespeare-char", sorted(tokenizer.vocab))
    (place / "data" / "shakespeare_char").mkdir(parents=True)
    (place / "out-shakespeare-char" / "meta.pkl").rename(place / "data" / "shakespeare_char" / "meta.pkl")
    model = tiny_model("nanogpt-10m", vocab_size=len(tokenizer))
    for name, saved in {"out/nanogpt_cpu": model, "my-gpt2": to_gpt2(model)}.items():
        saved.save_pretrained(place / name)
        tokenizer.save_pretrained(place / name)


@pytest.mark.parametrize("line", lines("python -m"))
def test_a_command_of_the_pages_runs(line, place, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    for name, value in {"ROMEO": "12", "JULIET": "3", "USER": "ada", " ->": ""}.items():
        line = line.replace(name, value)
    _, _, module, *argv = shlex.split(line)
    if "finetune_lora" in line:
        pytest.importorskip("peft")
        if module != "scripts.train":
            train.main(["--config=recipes/finetune_lora.yaml", *QUICK])
    main = importlib.import_module(module).main
    if module == "scripts.convert":
        make_models(place)
    if module == "scripts.demo":
        gradio = pytest.importorskip("gradio")
        monkeypatch.setattr(gradio.Blocks, "launch", lambda *_, **__: print("launched"))
    if "tensorboard" in argv:
        pytest.importorskip("tensorboard")
    if module == "scripts.train" and "--help" not in argv:
        argv += [*QUICK, f"--output_dir={place / 'result'}"]
    if "--help" in argv:
        with pytest.raises(SystemExit, match="0"):
            main(argv)
    else:
        main(argv)
        assert capsys.readouterr().out


def book(place):
    from modeling_gptlite.training.data import load_files

    return load_files([place / "my_book.txt"])


@pytest.mark.parametrize("line", lines("make"))
def test_a_make_target_of_the_pages_exists(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("block", blocks("python"))
def test_a_block_of_the_pages_runs(block, place, capsys):
    if "write_onnx" in block:
        pytest.importorskip("transformers", minversion="5.23")
    for package in {"optuna", "peft", "torchao", "trl"} & set(re.findall(r"^(?:from|import) (\w+)", block, re.M)):
        pytest.importorskip(package)
    if "finetune_lora" in block:
        train.main(["--config=recipes/finetune_lora.yaml", *QUICK])
    exec(block.replace("ROMEO", "12").replace("max_steps=50", "max_steps=2"), {})


def test_the_commands_and_their_output_come_first():
    head = README.splitlines()[:40]
    assert "make train" in "\n".join(head[:8])
    assert any(line.startswith("validation loss") for line in head)


def test_the_table_of_presets_tells_the_exact_sizes():
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\d+) x (\d+) x (\d+), (\d+) \|.*\| ([\d,]+) \(vocabulary (\d+)\) \|$", README, re.M
    )
    assert [row[0] for row in rows] == list(PRESETS)
    for preset, hidden, layers, heads, context, count, vocab_size in rows:
        config = GPTLiteConfig.from_preset(preset, vocab_size=int(vocab_size))
        with torch.device("meta"):
            assert GPTLiteForCausalLM(config).num_parameters() == int(count.replace(",", ""))
        sizes = (
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.max_position_embeddings,
        )
        assert sizes == (int(hidden), int(layers), int(heads), int(context))


def test_the_table_of_recipes_is_complete():
    assert set(re.findall(r"^\| `(\w+\.yaml)`", README, re.M)) == {
        path.name for path in (ROOT / "recipes").glob("*.yaml")
    }


@pytest.mark.parametrize("name", PAGES)
def test_no_link_of_a_page_leads_nowhere(name):
    folder = ROOT if name == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)#]+)\)", PAGES[name]):
        assert target.startswith("http") or (folder / target).exists(), target
