"""Several processes on one machine, over gloo: the same training as one process, and exact resume."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file

from modeling_gptlite.training.checkpointing import Checkpoints


MODEL = '{"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32}'
# `scripts.train`, with a record of what reaches the model: (step, rank, first ids of each window).
WATCHED = """
import json, os, sys
from modeling_gptlite.training import head
from modeling_gptlite.training.trainer import CausalLMTrainer
from scripts import train
from scripts.cli import run

rank, folder = int(os.environ.get("RANK", 0)), sys.argv.pop(1)
step = CausalLMTrainer.training_step

def watched(self, model, inputs, *args, **kwargs):
    loss = step(self, model, inputs, *args, **kwargs)
    with open(f"{folder}/{rank}.jsonl", "a") as file:
        for window in inputs["input_ids"][:, :12].tolist():
            file.write(json.dumps([self.state.global_step, rank, window]) + "\\n")
    return loss

CausalLMTrainer.training_step = watched
head.LARGE_VOCABULARY = int(os.environ.get("LARGE_VOCABULARY", head.LARGE_VOCABULARY))
run(train.main)
"""


def launch(processes: int, folder: Path, text: Path, *flags: str, engine: str = "ddp") -> subprocess.Popen:
    program = folder.parent / "watched.py"
    program.write_text(WATCHED)
    (folder.parent / "seen").mkdir(exist_ok=True)
    config = ROOT / "recipes" / "accelerate" / f"{engine}.yaml"
    launcher = {
        "one": [sys.executable],
        "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"],
    }.get(engine) or [
        *(sys.executable, "-m", "accelerate.commands.launch", f"--config_file={config}"),
        *(f"--num_processes={processes}", "--main_process_port=0"),
    ]
    argv = [
        *(str(program), str(folder.parent / "seen")),
        *(f"--train_file={text}", f"--output_dir={folder}", f"--model_overrides={MODEL}"),
        *("--precision=fp32", "--max_steps=8", "--warmup_steps=2", "--eval_steps=4", "--save_steps=4"),
        *("--logging_steps=1", f"--per_device_train_batch_size={8 // processes}", "--sample_length=5", *flags),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([*launcher, *argv], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def train(*args, **kwargs) -> str:
    process = launch(*args, **kwargs)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 0, out
    return out


def losses(folder: Path) -> list[float]:
    rows = json.loads((folder / "run.json").read_text())["log_history"]
    return [row[name] for row in rows for name in ("loss", "eval_loss") if name in row]


def windows(folder: Path) -> dict[int, list]:
    """By step, what all ranks together saw of it, sorted."""
    seen = {}
    for path in sorted((folder.parent / "seen").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            step, _, window = json.loads(line)
            seen.setdefault(step, []).append(window)
    return {step: sorted(rows) for step, rows in seen.items()}


@pytest.fixture(scope="module")
def alone(tmp_path_factory, text_file) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    train(1, folder, text_file, engine="one")
    return folder


def test_two_processes_train_as_one_does(alone, text_file, tmp_path):
    out = train(2, tmp_path / "run", text_file)
    assert "2 x cpu" in out
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=2e-5)
    one, two = (load_file(folder / "model.safetensors") for folder in (alone, tmp_path / "run"))
    torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-3)
    # The same eight windows a step: none twice, none left out; four to each.
    assert windows(tmp_path / "run") == windows(alone)
    assert all(len(rows) == 8 for rows in windows(alone).values())
    ranks = [(tmp_path / "seen" / f"{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    assert [len(rows) for rows in ranks] == [32, 32]
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in alone.iterdir()}


def test_two_processes_train_as_one_does_with_logits_in_chunks(alone, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("LARGE_VOCABULARY", "1")
    train(2, tmp_path / "run", text_file, "--gradient_accumulation_steps=2", "--per_device_train_batch_size=2")
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=2e-5)
    one, two = (load_file(folder / "model.safetensors") for folder in (alone, tmp_path / "run"))
    torch.testing.assert_close(two, one, atol=1e-4, rtol=1e-3)


def test_two_processes_learn_from_teachers_as_one_does(text_file, tmp_path):
    flags = ["--teachers=1", '--teacher_overrides={"max_steps": 4}']
    one, two = tmp_path / "one" / "run", tmp_path / "two" / "run"
    for processes, folder, engine in ((1, one, "one"), (2, two, "ddp")):
        folder.parent.mkdir()
        assert "teacher 1 of 1" in train(processes, folder, text_file, *flags, engine=engine)
    assert losses(two) == pytest.approx(losses(one), abs=2e-5)
    weights = [load_file(folder / "model.safetensors") for folder in (two, one)]
    torch.testing.assert_close(*weights, atol=1e-4, rtol=1e-3)


def test_a_rank_that_dies_ends_the_job_and_resume_works_on_another_number_of_processes(alone, text_file, tmp_path):
    process = launch(2, tmp_path / "run", text_file, "--max_steps=8", engine="torchrun")
    deadline = time.time() + 200
    while not (tmp_path / "run" / "checkpoint-4").exists():
        assert time.time() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    ranks = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[-1]), signal.SIGKILL)
    died = time.time()
    process.communicate(timeout=120)
    assert process.returncode != 0
    assert time.time() - died < 60
    assert not (tmp_path / "run" / "run.json").exists()
    out = train(1, tmp_path / "run", text_file, engine="one")  # 2 -> 1
    assert "resuming from checkpoint-" in out
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=2e-5)


def test_all_processes_stop_at_the_same_step_on_a_signal(text_file, tmp_path):
    long = ["--max_steps=5000", "--eval_steps=5000", "--save_steps=5000", "--logging_steps=5"]
    process = launch(2, tmp_path / "run", text_file, *long, engine="torchrun")
    deadline = time.time() + 200
    while not (tmp_path / "seen" / "0.jsonl").exists():
        assert time.time() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.terminate()
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    (checkpoint,) = Checkpoints(tmp_path / "run").all()
    assert Checkpoints.damage(checkpoint) is None
    assert f"stopped at step {checkpoint.name.split('-')[1]} with a checkpoint" in out


def test_a_run_of_one_process_resumes_on_two(alone, text_file, tmp_path):
    shutil.copytree(alone / "checkpoint-4", tmp_path / "run" / "checkpoint-4")
    out = train(2, tmp_path / "run", text_file, engine="torchrun")
    assert "resuming from checkpoint-4" in out
    assert losses(tmp_path / "run") == pytest.approx(losses(alone), abs=2e-5)


# ---- Sharded models ------------------------------------------------------------------------------------------------


def on_two_processes(program: str, folder: Path, *argv: str) -> None:
    """Run a program on two processes; it prints `equal` on each."""
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    result = subprocess.run(
        [*command, str(folder / "program.py"), *argv], env=env, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("equal") == 2


SHARDED = """
import sys
import torch
import torch.distributed as dist
from helpers import tiny_model
from torch.distributed.fsdp import fully_shard
from modeling_gptlite.training.optim import build_adamw, build_muon
from modeling_gptlite.training.trainer import whole_model

settings = {"learning_rate": 0.01, "weight_decay": 0.1}
build = build_adamw if sys.argv[1] == "adamw" else build_muon
if build is build_muon:
    settings["muon_learning_rate"] = 0.02
dist.init_process_group("gloo")
rank, ids = dist.get_rank(), torch.randint(65, (5, 4, 17), generator=torch.Generator().manual_seed(0))

def losses(model, batches):
    optimizer = build(model, **settings)
    for batch in batches:
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.detach()

alone = tiny_model("modern-1m")
expected = torch.stack(list(losses(alone, ids)))
sharded = tiny_model("modern-1m")
for layer in sharded.model.layers:
    fully_shard(layer)
fully_shard(sharded)
seen = torch.stack(list(losses(sharded, ids[:, 2 * rank : 2 * rank + 2])))
dist.all_reduce(seen)
# Muon orthogonalises in bfloat16, which rounds another order of summation otherwise.
torch.testing.assert_close(seen / 2, expected, atol=2e-5 if build is build_adamw else 5e-3, rtol=1e-5)
whole = whole_model(sharded)
if rank == 0:
    assert type(whole) is type(alone)
    for start, one, other in zip(*(m.parameters() for m in (tiny_model("modern-1m"), alone, whole)), strict=True):
        # A matrix that each process orthogonalised for itself would go another way.
        assert torch.cosine_similarity((one - start).flatten(), (other - start).flatten(), dim=0) > 0.995
print("equal")
"""


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_model_sharded_by_fsdp2_trains_as_a_whole_one_does(optimizer, tmp_path):
    on_two_processes(SHARDED, tmp_path, optimizer)


BUDGET = """
import sys
import torch.distributed as dist
from modeling_gptlite.runs.train import start_from

sizes = {"hidden_size": 32, "num_hidden_layers": 2, "max_position_embeddings": 32}
args = start_from(minutes=0.3, train_file=sys.argv[1], output_dir=sys.argv[2], model_overrides=sizes).args.training
found = [None] * 2
dist.all_gather_object(found, (args.max_steps, args.eval_steps))
assert found[0] == found[1], found
print("equal")
"""


def test_all_processes_get_the_steps_that_the_first_one_measured(text_file, tmp_path):
    on_two_processes(BUDGET, tmp_path, str(text_file), str(tmp_path / "run"))


TENSOR_PARALLEL = """
import sys
import torch
import modeling_gptlite
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

ids = torch.arange(24).reshape(2, 12) % 20
whole = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32").eval()
tensor_parallel = DistributedConfig(tp_plan="auto")
parallel = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32", distributed_config=tensor_parallel).eval()
half, full = (model.model.layers[0].mlp.down_proj.weight for model in (parallel, whole))
assert half.to_local().numel() * 2 == full.numel()
with torch.no_grad():
    torch.testing.assert_close(parallel(ids).logits, whole(ids).logits, atol=1e-5, rtol=1e-4)
print("equal")
"""


def test_tensor_parallel_logits_are_those_of_one_process(trained, tmp_path):
    on_two_processes(TENSOR_PARALLEL, tmp_path, str(trained))
