"""A run folder that version 0.1.0 (commit 6776882) left: every later version loads it, resumes it and pushes it.

The archive in `tests/fixtures/` holds `bottles.txt` and `run/`: a finished run of 20 steps with dropout and its
checkpoint of step 10. It must never be written again by a later version.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from helpers import FOLDER_FILES, files, published, push, refused, run_python, same_weights
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.golden import cpu_kind
from modeling_gptlite.runs.record import read_run
from scripts import evaluate, generate, train


ARCHIVE = Path(__file__).parent / "fixtures" / "run-6776882.tar.xz"
MADE_WITH = ("2.13.0", "intel-avx512-bf16-amx")


@pytest.fixture
def old(tmp_path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old", **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return tmp_path / "old"


def repeat(old: Path, folder: Path) -> None:
    """Run the command that made the old run again, with another output folder."""
    arguments = {**read_run(old / "run")["arguments"], "train_file": old / "bottles.txt", "output_dir": folder}
    train.main([f"--{name}={value}" for name, value in arguments.items()])


def test_the_fixtures_are_small():
    assert sum(path.stat().st_size for path in ARCHIVE.parent.rglob("*")) < 200_000


def test_it_loads_to_the_logits_of_its_own_code(old, tmp_path):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(old / "run"), AutoTokenizer.from_pretrained(old / "run")
    assert type(model).__module__ == "modeling_gptlite.modeling_gptlite"
    # With gradients: without them, few tokens are multiplied in another order today.
    torch.save(model(**tokenizer("12 green bottles", return_tensors="pt")).logits.detach(), tmp_path / "logits.pt")
    run_python(
        f"""
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(old / "run")!r})
model = AutoModelForCausalLM.from_pretrained({str(old / "run")!r}, trust_remote_code=True)
logits = model(**tokenizer("12 green bottles", return_tensors="pt")).logits
assert torch.equal(logits, torch.load("logits.pt"))
""",
        tmp_path,
    )


@pytest.mark.parametrize("order", ["old, new", "new, old"])
def test_each_of_two_folders_with_one_name_gets_its_own_code(order, old, trained, tmp_path):
    """transformers keeps the classes of a remote configuration, and finds that by name and content of its file."""
    shutil.copytree(trained, tmp_path / "new" / "run")
    run_python(
        f"""
import inspect
from pathlib import Path
from transformers import AutoModel, AutoModelForCausalLM
for name in {order.split(", ")!r}:
    for load in (AutoModelForCausalLM, AutoModel):
        model = load.from_pretrained(Path(name, "run"), trust_remote_code=True)
        for object in (model, model.config):
            code = Path(inspect.getfile(type(object)))
            assert code.read_bytes() == Path(name, "run", code.name).read_bytes(), (name, code)
""",
        tmp_path,
    )


def test_it_evaluates_to_its_recorded_loss_and_generates(old, capsys):
    text, output = old / "bottles.txt", old / "result.json"
    evaluate.main([f"--model={old / 'run'}", f"--train_file={text}", f"--output={output}", "--num_samples=0"])
    (result,) = json.loads((old / "result.json").read_text())["models"]
    assert result["loss"] == pytest.approx(read_run(old / "run")["results"]["loss"], abs=1e-5)
    capsys.readouterr()
    generate.main([f"--model={old / 'run'}", "--prompt=12 green", "--max_new_tokens=40"])
    assert capsys.readouterr().out.startswith("12 green")


def test_its_checkpoint_resumes_to_the_weights_of_the_finished_run(old, tmp_path, capsys):
    """Windows were drawn with replacement then."""
    shutil.copytree(old / "run" / "checkpoint-10", tmp_path / "resumed" / "checkpoint-10")
    repeat(old, tmp_path / "resumed")
    assert "checkpoint-10" in capsys.readouterr().out
    if (torch.__version__.split("+")[0], cpu_kind()) == MADE_WITH:
        assert same_weights(tmp_path / "resumed", old / "run")
    resumed, finished = (load_file(folder / "model.safetensors") for folder in (tmp_path / "resumed", old / "run"))
    torch.testing.assert_close(resumed, finished, rtol=0, atol=1e-2)


def test_it_is_known_as_finished_and_left_alone(old, capsys):
    before = files(old)
    argv = [f"--train_file={old / 'bottles.txt'}", f"--output_dir={old / 'run'}", "--preset=modern-1m"]
    refused(train.main, *argv, capsys=capsys, told=["finished run"])
    assert files(old) == before


def test_it_can_be_pushed(old, hub, capsys):
    push(old / "run", capsys=capsys)
    assert published(hub) == FOLDER_FILES
