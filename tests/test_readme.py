"""The README and the pages under docs/: every command and block in them runs, and their numbers are the code's."""

import importlib
import io
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from unittest import mock

import pytest
import torch
from helpers import ROOT, TEXT, save_nanogpt, tiny_model

from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM, configuration_gptlite
from modeling_gptlite.configuration_gptlite import PRESETS
from modeling_gptlite.data.sources import SOURCES, BuiltIn, DataError, SourceArguments, TextFile, open_source
from modeling_gptlite.interchange import FORMATS, to_native
from modeling_gptlite.runs import train as runs_train
from modeling_gptlite.runs.model import add_lora
from modeling_gptlite.training.timing import Costs
from scripts import train
from tokenization import build_char_tokenizer


README = (ROOT / "README.md").read_text(encoding="utf-8")
ROOT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
PATHS = {path.name: path for path in [*(ROOT / name for name in ROOT_PAGES), *sorted(ROOT.glob("docs/*.md"))]}
PAGES = {name: path.read_text(encoding="utf-8") for name, path in PATHS.items()}
# Figures that are not in the generated table, and why they are right
COMPUTED = {
    "README.md": ("3.2 MB",),  # test_the_sizes_in_the_readme_are_those_of_the_quickstart
    "jobs.md": ("8 minutes",),  # test_jobs.py::test_a_job_trains_for_less_than_its_timeout
    "hub.md": ("15 seconds",),  # transformers' TIME_OUT_REMOTE_CODE
    "CHANGELOG.md": ("15 seconds",),
    "demo.md": ("100 MB",),  # page/website.py's LARGEST_FLOAT
}
# Names of the pages, and what stands for them in the toy folder
NAMES = {"ROMEO": "12", "JULIET": "3", "USER": "ada", " ->": "", "checkpoint-750": "checkpoint-10"}
REVIEWS = {"green bottles": "good", "should fall": "bad"}
MODULES = {"push": "push_to_hub"}  # of `gptlite push`; the other commands are called like their modules
QUICK = ["--max_steps=2", "--sample_length=5", "--per_device_train_batch_size=2", "--eval_steps=2", "--save_steps=2"]
SLOW = Costs(
    start=1, step=200, short_step=200, evaluation=1, checkpoint=1, tokens_per_step=1536
)  # two steps in ten minutes


def blocks(language):
    """Every fenced block of `language`, named by its page and its last line."""
    return [
        pytest.param(block, id=f"{name}: {block.splitlines()[-1]}")
        for name, page in PAGES.items()
        for block in re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
    ]


def lines(*starts):
    """The commands of all shell blocks that begin with one of `starts`; a backslash at a line's end continues it."""
    shell = "\n".join(param.values[0] for param in blocks("bash")).replace("\\\n", " ")
    commands = (line.split("  #")[0].strip() for line in shell.splitlines())
    return [command for command in dict.fromkeys(commands) if command.startswith(starts)]


def module_of(command: list[str]) -> tuple[str, list[str]]:
    """The module that runs `gptlite NAME ...` or `python -m MODULE ...`, and its arguments."""
    if command[0] == "gptlite":
        return f"scripts.{MODULES.get(command[1], command[1])}", command[2:]
    return command[2], command[3:]


@pytest.fixture
def cwd(tmp_path, trained, talking, monkeypatch):
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
    book = tmp_path / "my_book.txt"
    monkeypatch.setitem(SOURCES, "tinyshakespeare", BuiltIn(lambda: [TextFile(book)], "en", "mit"))
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    book.write_text(TEXT)
    monkeypatch.setenv("GPTLITE_DATA", str(tmp_path))  # no tiny Shakespeare there: read the book instead
    return tmp_path


def make_models(cwd):
    """Those that docs/export.md converts."""
    tokenizer = build_char_tokenizer(TEXT, special_tokens=False)
    save_nanogpt(cwd / "out-shakespeare-char", sorted(tokenizer.vocab))
    (cwd / "data" / "shakespeare_char").mkdir(parents=True)
    (cwd / "out-shakespeare-char" / "meta.pkl").rename(cwd / "data" / "shakespeare_char" / "meta.pkl")
    model = tiny_model("nanogpt-10m", vocab_size=len(tokenizer))
    for name, saved in {"out/nanogpt_cpu": model, "my-gpt2": to_native(model)}.items():
        saved.save_pretrained(cwd / name)
        tokenizer.save_pretrained(cwd / name)
    tokenizer = build_char_tokenizer(TEXT)
    to_native(tiny_model("modern-1m", vocab_size=len(tokenizer), qk_norm=False)).save_pretrained(cwd / "out/smollm2")
    tokenizer.save_pretrained(cwd / "out/smollm2")


@pytest.mark.parametrize("line", lines("gptlite ", "python -m scripts."))
def test_a_command_of_the_pages_runs(line, cwd, hub, monkeypatch, capsys):
    for name, value in NAMES.items():
        line = line.replace(name, value)
    module, argv = module_of(shlex.split(line))
    if "finetune_lora" in line:
        pytest.importorskip("peft")
        if module != "scripts.train":
            train.main(["--config=recipes/finetune_lora.yaml", *QUICK])
    main = importlib.import_module(module).main
    if module == "scripts.convert":
        make_models(cwd)
    if "static" in line:
        pytest.importorskip("onnxscript")
    elif module == "scripts.demo":
        gradio = pytest.importorskip("gradio")
        monkeypatch.setattr(gradio.Blocks, "launch", lambda *_, **__: print("launched"))
    if module == "scripts.chat":
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"31 green")))
    if "tensorboard" in argv:
        pytest.importorskip("tensorboard")
    if module == "scripts.train" and "--help" not in argv:
        argv += [*QUICK, f"--output_dir={cwd / 'result'}"]
    if "--minutes" in argv:
        argv.remove("--max_steps=2")
        monkeypatch.setattr(runs_train, "time_run", lambda *_, **__: SLOW)
    if "--help" in argv:
        with pytest.raises(SystemExit, match="0"):
            main(argv)
    else:
        main(argv)
        assert capsys.readouterr().out


@pytest.mark.parametrize("line", lines("python -m pytest", "python -m benchmarks."))
def test_a_command_for_contributors_runs(line, monkeypatch):
    if line == "python -m benchmarks.table":  # it writes the README, which a test of its own compares
        return
    done = subprocess.run([sys.executable, *shlex.split(line)[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize("line", lines("torchrun", "accelerate launch"))
def test_a_launch_of_the_pages_trains(line, tmp_path):
    launcher, *argv = shlex.split(line)
    module = "torch.distributed.run" if launcher == "torchrun" else "accelerate.commands.launch"
    quick = [
        *("--dataset=python-docs", "--validation_fraction=0.005", f"--output_dir={tmp_path / 'run'}"),
        *("--max_steps=2", "--eval_steps=2", "--save_steps=2", "--sample_length=5"),
    ]
    argv = argv[1:] if launcher == "accelerate" else argv
    port = ["--main_process_port=0"] if launcher == "accelerate" else []
    result = subprocess.run(
        [sys.executable, "-m", module, *port, *argv, *quick], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "2 x cpu" in result.stdout
    assert (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("line", lines("make "))
def test_a_make_target_of_the_pages_exists(line):
    assert re.search(rf"^{line.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_recipe_of_the_pages_trains(block, cwd):
    (cwd / "recipe.yaml").write_text(block)
    train.main(["--config=recipe.yaml", *QUICK])


@pytest.mark.parametrize("block", blocks("python"))
def test_a_block_of_the_pages_runs(block, cwd, monkeypatch):
    monkeypatch.setattr(configuration_gptlite, "PRESETS", dict(PRESETS))  # one of them adds a preset
    if "load_fast" in block:
        pytest.importorskip("onnxruntime")
    if 'target_format="onnx"' in block:
        pytest.importorskip("transformers", minversion="5.23")
    for package in {"optuna", "peft", "torchao", "trl"} & set(re.findall(r"^(?:from|import) (\w+)", block, re.M)):
        pytest.importorskip(package)
    if "finetune_lora" in block:
        train.main(["--config=recipes/finetune_lora.yaml", *QUICK])
    with mock.patch.dict(FORMATS):  # one of them adds a format
        exec(block.replace("ROMEO", "12").replace("max_steps=50", "max_steps=2"), {})


@pytest.mark.parametrize("path", [*ROOT.glob("notebooks/*.ipynb"), *PATHS.values()], ids=lambda path: path.name)
def test_examples_load_the_tokenizer_without_a_question(path):
    """Why: tests/test_tokenizer_on_a_terminal.py"""
    for call in re.findall(r"AutoTokenizer\.from_pretrained\([^)]*\)", path.read_text(encoding="utf-8")):
        assert "trust_remote_code=False" in call, call


def test_the_commands_and_a_picture_come_first():
    head = "\n".join(README.splitlines()[:20])
    assert all(text in head for text in ("make train", "make test", "docs/images/demo.png"))


def test_the_table_of_presets_has_the_exact_sizes():
    rows = re.findall(
        r"^\| `([\w-]+)` \| (\d+) x (\d+) x (\d+), (\d+) \|.*\| ([\d,]+) \(vocabulary (\d+)\) \|$",
        PAGES["models.md"],
        re.M,
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


def test_the_table_of_fine_tuning_has_the_exact_sizes():
    pytest.importorskip("peft")
    page = PAGES["fine_tuning.md"]
    model = GPTLiteForCausalLM(GPTLiteConfig.from_preset("modern-1m", vocab_size=68 + 39))
    assert f"adds 39 characters | {model.num_parameters():,} |" in page
    adapted = add_lora(GPTLiteForCausalLM(GPTLiteConfig.from_preset("modern-1m", vocab_size=68)), 8, None, 0.0)
    assert f"rank 8, without new characters | {adapted.num_parameters(only_trainable=True):,} |" in page


def test_the_table_of_recipes_is_complete():
    table = README.split("| recipe |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == {path.stem for path in (ROOT / "recipes").glob("*.yaml")}


def test_the_sizes_in_the_readme_are_those_of_the_quickstart():
    parameters = int(re.search(r"([\d,]+) parameters, 1,536 tokens", README)[1].replace(",", ""))
    assert f"({4 * parameters / 1e6:.1f} MB" in README.replace("\n", " ")


@pytest.mark.parametrize("name", PAGES)
def test_prose_gives_no_time_speed_or_memory_that_is_not_recorded(name):
    """Measurements stand in the generated table, or in a page whose figures a test computes (docs/scaling.md)."""
    prose = re.sub(r"```.*?```|<!-- (measurements|fine-tuning).*?end of \1 -->", "", PAGES[name], flags=re.DOTALL)
    if name == "scaling.md":  # all of it, by tests/test_scaling.py
        return
    found = re.findall(r"[\d.,]+ (?:s|seconds|minutes|tokens/s|[kMG]B|MB/s)\b", prose)
    assert [figure for figure in found if figure not in COMPUTED.get(name, ())] == []


def headings(page: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", page, re.M)}


@pytest.mark.parametrize("name", PAGES)
def test_no_link_of_a_page_leads_nowhere(name):
    folder = PATHS[name].parent
    for target in re.findall(r"\]\(([^)]+)\)", PAGES[name]):
        path, _, anchor = target.partition("#")
        assert path.startswith("http") or (folder / path).exists(), target
        assert not anchor or anchor in headings((folder / path).read_text(encoding="utf-8")), target


@pytest.mark.parametrize("name", PAGES)
def test_a_table_has_as_many_cells_in_each_row_as_in_its_head(name):
    for table in re.findall(r"(?:^\|.*\n)+", PAGES[name], re.M):
        cells = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert len(set(cells)) == 1, table


def test_the_messages_in_the_questions_are_those_of_the_code():
    table = PAGES["questions.md"].split("| message or symptom |")[1]
    code = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*/**/*.py") if ".venv" not in str(path))
    for message in re.findall(r"^\| `([^`]+)`", table, re.M):
        assert all(part.strip(" ,") in code for part in message.split("...")), message


def test_the_losses_in_the_questions_are_those_of_counting():
    try:
        text = "".join(open_source(SourceArguments(dataset="tinyshakespeare")).texts())
    except DataError:
        pytest.skip("tiny Shakespeare is not in $GPTLITE_DATA")
    train, validation = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
    vocabulary, single, pairs = len(set(text)), Counter(train), Counter(pairwise(train))
    one = -sum(math.log((single[c] + 1) / (len(train) + vocabulary)) for c in validation) / len(validation)
    after = pairwise(validation)
    two = -sum(math.log((pairs[a, b] + 1) / (single[a] + vocabulary)) for a, b in after) / (len(validation) - 1)
    page = PAGES["questions.md"].replace("\n", " ")
    assert f"{math.log(vocabulary + 3):.1f} is a model that has learned nothing" in page
    assert f"{one:.1f} one that knows the frequency of each character" in page
    assert f"{two:.1f} one that knows the frequency of each pair" in page
