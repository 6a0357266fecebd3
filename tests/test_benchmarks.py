"""The benchmarks: their records make the README's table, and what needs a GPU runs at toy size without one."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, TEXT

from benchmarks import common, table


def test_the_readme_tells_what_was_recorded():
    readme = table.README.read_text(encoding="utf-8")
    assert table.with_table(readme) == readme


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_record_tells_what_was_measured_on_what(path):
    entry = json.loads(path.read_text(encoding="utf-8"))
    assert entry["what"]
    assert {"date", "commit", "versions", "hardware"} <= set(entry["environment"])


def test_measures_are_taken_in_turn_and_compared_round_by_round():
    calls, values = [], iter([10.0, 5.0, 30.0, 10.0])

    def measure(name):
        calls.append(name)
        return {"speed": next(values)}

    names = ("ours", "theirs")
    results = common.measure_in_turn({name: (lambda name=name: measure(name)) for name in names}, rounds=2)
    assert calls == ["ours", "theirs", "ours", "theirs"]
    assert common.ratios(results, "speed", [names])["ours / theirs"] == {"median": 2.5, "min": 2.0, "max": 3.0}


def python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_gpu_benchmark_says_that_it_needs_one():
    done = python("benchmarks.gpu")
    assert done.returncode == 2
    assert "no CUDA device" in done.stderr


@pytest.mark.parametrize("name", ["gptlite gpt2", "gptlite modern", "transformers GPT-2"])
def test_the_gpu_benchmark_measures_at_toy_size(name):
    from benchmarks import gpu

    device = torch.device("cpu")
    trained = gpu.training_speed(name, gpu.SIZES["toy"], "", device)
    assert trained["tokens_per_second"] > 0
    assert "model_flops_utilisation" not in trained  # nobody states a CPU's
    assert gpu.generation_speed(name, 2, True, "", device)["tokens_per_second"] > 0


def test_the_gpu_benchmark_trains_a_recipe_at_toy_size(tmp_path, monkeypatch):
    from benchmarks import gpu

    (tmp_path / "tinyshakespeare.txt").write_text(TEXT)
    monkeypatch.setattr(gpu, "TOY_RUN", [*gpu.TOY_RUN, "--dataset=python-docs"])
    figures = gpu.train_recipe("shakespeare_char", toy=True)
    assert 0 < figures["training_seconds"] < figures["whole_process_seconds"]
    assert figures["validation_loss"] > 1


def test_utilisation_is_of_the_peak_that_the_maker_states(monkeypatch):
    from benchmarks import gpu

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    assert gpu.peak_flops(torch.device("cuda")) == 312e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some other card")
    assert gpu.peak_flops(torch.device("cuda")) is None


@pytest.mark.parametrize("name", ["gptlite nanogpt fp32", "gptlite modern auto", "GPT-2, transformers' Trainer"])
def test_a_training_measurement_runs(name, tmp_path, monkeypatch):
    from benchmarks import train_speed

    monkeypatch.setattr(common, "corpus_ids", lambda: (torch.randint(65, (5000,)).numpy(), None))
    figures = train_speed.measure(name, "cpu", steps=2, nanogpt="")
    assert figures["tokens_per_second"] > 0


@pytest.mark.parametrize("name", ["transformers GPT-2", "modern-10m int8"])
def test_a_generation_measurement_runs(name):
    from benchmarks import generate_speed

    assert generate_speed.measure(name, streams=2, tokens=3, nanogpt="")["tokens_per_second"] > 0


def test_a_scaling_measurement_runs():
    done = python("benchmarks.scaling", "--one", '{"width": 32, "context": 16, "batch": 2, "processes": 1}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["milliseconds"] > 0
