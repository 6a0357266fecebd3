"""The benchmarks: the README's table follows from their records, and each runs at toy size, without a GPU."""

import argparse
import functools
import json
import os
import subprocess
import sys
import time

import pytest
import torch
from helpers import ROOT, tiny_model

from benchmarks import common, gpu, pretrained, table, time_to_loss


@pytest.mark.parametrize(("path", "name"), table.TABLES, ids=lambda part: getattr(part, "name", part))
def test_the_table_in_a_page_is_that_of_the_records(path, name):
    page = path.read_text(encoding="utf-8")
    assert table.with_table(page, name, table.TABLES[path, name]()) == page


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_record_names_what_was_measured_and_where(path):
    entry = json.loads(path.read_text(encoding="utf-8"))
    assert entry["what"]
    assert {"date", "commit", "versions", "hardware"} <= set(entry["environment"])


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"capability": "AVX2", "bf16": True, "amx": True}, "avx2"),  # what PyTorch does not use does not count
        ({"capability": "AVX512", "bf16": False, "amx": False, "zen": None}, "avx512"),
        ({"capability": "AVX512", "bf16": True, "amx": False, "zen": None}, "avx512-bf16"),
        ({"capability": "AVX512", "bf16": True, "amx": False, "zen": "zen5"}, "avx512-bf16-zen5"),
        ({"capability": "AVX512", "bf16": True, "amx": True, "zen": None}, "avx512-amx"),
    ],
)
def test_a_record_is_named_after_the_kind_of_cpu(facts, kind, monkeypatch):
    monkeypatch.setattr(common, "cpu_facts", lambda: facts)
    assert common.cpu_kind() == kind


def test_a_record_says_what_the_cpu_can_do(tmp_path):
    common.record("speed", "what", tmp_path)
    cpu = json.loads((tmp_path / "speed.json").read_text())["environment"]["cpu"]
    assert cpu == common.cpu_facts()
    assert cpu.keys() == {"capability", "bf16", "amx", "vnni", "zen"}


@pytest.mark.parametrize(
    ("vendor", "family", "zen"),
    [
        ("AuthenticAMD", 25, "zen4"),
        ("AuthenticAMD", 26, "zen5"),
        ("AuthenticAMD", 23, None),
        ("GenuineIntel", 25, None),
    ],
)
def test_the_generation_of_an_amd_processor_is_known(vendor, family, zen, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\n")
    assert common.amd_core(tmp_path / "cpuinfo") == zen
    assert common.amd_core(tmp_path / "missing") is None


def test_the_page_has_a_section_for_each_machine(tmp_path, monkeypatch):
    for path in common.RESULTS.glob("*_*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    known = table.MACHINES[-1]
    (tmp_path / "generate_speed-new.json").write_bytes((tmp_path / f"generate_speed{known}.json").read_bytes())
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr(table, "MACHINES", [known, "-new"])
    first, second = table.page_tables().split("## ")[1:]
    assert second.startswith(first.split(",")[0] + ", new\n")
    assert "| generation" in first
    assert "| training" in first
    assert "| generation" in second
    assert "| training" not in second  # not measured there


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


BREAK_WITHOUT_A_GPU = {"paths": {"precision fp16"}, "parallel": {"deepspeed"}}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", gpu.PARTS)
def test_each_part_of_the_gpu_benchmark_runs_at_toy_size(part, tmp_path, capsys):
    gpu.main(["--toy", "--parts", part, f"--results={tmp_path}"])
    results = json.loads((tmp_path / f"gpu_{part}.json").read_text())["results"]
    broke = {name for name, figures in results.items() if "error" in figures}
    assert broke <= BREAK_WITHOUT_A_GPU.get(part, set())
    assert f"{len(broke)} measurements broke" in capsys.readouterr().out
    for figures in results.values():
        assert figures.get("tokens_per_second", 1) > 0
        assert figures.get("validation_loss", 2) > 1
        assert figures.get("bit_identical", True)
        assert "model_flops_utilisation" not in figures  # nobody states a CPU's


def test_the_parts_of_the_gpu_benchmark_fit_into_eight_minutes():
    assert sum(seconds for _, seconds in gpu.PARTS.values()) <= 8 * 60


def test_the_first_paths_measured_differ_from_the_usual_one_in_one_choice():
    names = [name for name, _ in gpu.paths(argparse.Namespace(toy=False))]
    assert names[0] == "bf16, muon, sdpa"
    assert sorted(names.index(name) for name in ("torch_compile True", "precision fp16", "optimizer adamw")) <= [9] * 3
    assert "precision fp16, torch_compile True" in names


def broken_part(options):
    """Measurements that raise, end the process, and work."""
    yield "raises", lambda: 1 / 0
    yield "ends", lambda: os._exit(3)
    yield "works", lambda: {"figure": 1}


def test_what_breaks_is_recorded_and_the_next_measurement_takes_place():
    results = dict(gpu.measurements(broken_part, 200, argparse.Namespace()))
    assert results.keys() == {"raises", "ends", "works"}
    assert results["raises"]["error"] == "ZeroDivisionError: division by zero"
    assert "line" in results["raises"]["traceback"]
    assert "exit code 3" in results["ends"]["error"]
    assert results["works"] == {"figure": 1}


def test_a_part_ends_at_its_time_limit():
    began = time.perf_counter()
    results = dict(gpu.measurements(broken_part, 0.1, argparse.Namespace()))
    assert results == {"start of the process": {"stopped": "at the time limit"}}
    assert time.perf_counter() - began < 60


def test_a_nanogpt_is_evaluated_as_every_model(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(
        """
import torch

class GPTConfig:
    def __init__(self, block_size, vocab_size):
        self.block_size, self.vocab_size = block_size, vocab_size

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.table = config, torch.nn.Embedding(config.vocab_size, config.vocab_size)

    def forward(self, ids, targets=None):
        return self.table(ids), None
"""
    )
    ids = torch.randint(5, (1000,), generator=torch.Generator().manual_seed(0))
    weight = torch.randn(5, 5)
    saved = {"model_args": {"block_size": 16, "vocab_size": 5}, "model": {"_orig_mod.table.weight": weight}}
    torch.save(saved, tmp_path / "ckpt.pt")
    monkeypatch.setattr(common, "corpus_ids", lambda: (None, ids.numpy()))
    found = time_to_loss.evaluate_nanogpt(str(tmp_path), str(tmp_path / "ckpt.pt"))
    expected = torch.nn.functional.cross_entropy(weight[ids[:-1]], ids[1:]).item()
    assert found["validation_loss"] == pytest.approx(expected, abs=1e-5)


def test_nanogpt_is_ended_at_its_time_limit(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(
        "import time\nwhile True: print('step 0: train loss 4, val loss 4.1'); time.sleep(0.1)"
    )
    monkeypatch.setattr(time_to_loss, "evaluate_nanogpt", lambda checkout, checkpoint: {"validation_loss": 4.1})
    figures = time_to_loss.run_nanogpt(str(tmp_path), "", limit=0.5)
    assert figures["validation_loss"] == figures["curve"][-1][1] == 4.1
    assert 0.5 < figures["seconds"] < 60


def test_the_pages_say_what_was_measured_on_which_card(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    assert "Nothing has been measured on a GPU" in table.gpu_table()
    monkeypatch.setattr("modeling_gptlite.runs.record._hardware", lambda device: "1 x Some Card")
    rounds = {f"modern-124m, round {n}": {"tokens_per_second": 1000.0 * n} for n in (1, 2, 3)}
    common.record("gpu_speed", "what", tmp_path, toy=False, results={**rounds, "GPT-2": {"error": "no memory"}})
    lines = table.gpu_table().splitlines()
    assert "| speed, all | 1 x Some Card | 3 of 4 ran |" in lines
    assert "| speed, modern-124m | 1 x Some Card | tokens per second 2,000 |" in lines


def test_utilisation_is_of_the_peak_that_the_maker_states(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    assert gpu.peak_flops() == 312e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some other card")
    assert gpu.peak_flops() is None


def test_whole_runs_are_measured_and_drawn(tmp_path):
    from benchmarks import picture

    time_to_loss.write_gpt2(str(tmp_path / "gpt2"), "python-docs")
    recipe = "nanogpt_cpu --dataset=python-docs --max_steps=4 --eval_steps=2 --eval_sample_length=0 --sample_length=0"
    recipe += " --eval_on_start=false"
    figures = time_to_loss.run_recipe(recipe, 1, f"--model_name_or_path={tmp_path / 'gpt2'}")
    curve = figures["curve"]
    assert len(curve) == 2
    assert 0 < curve[0][0] < curve[1][0] <= figures["training_seconds"] < figures["seconds"]
    assert curve[1][1] == pytest.approx(figures["validation_loss"], abs=0.01)
    record = {"environment": {"hardware": "a CPU"}, "curves": {"GPT-2": curve, "sprint": curve}}
    picture.draw({"avx2": record}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_both_roads_are_drawn_over_the_minutes(tmp_path, monkeypatch):
    from benchmarks import picture

    runs = {
        "docs, 20 minutes, pretrained": {"bits_per_character": 1.2, "before": 1.4, "peak_gigabytes": 3.7},
        "docs, 1 minutes, scratch": {"bits_per_character": 2.2, "before": None, "peak_gigabytes": 0.7},
        "docs, 1 minutes, pretrained": {"bits_per_character": 1.3, "before": 1.4, "peak_gigabytes": 3.6},
    }
    picture.draw_roads(runs, tmp_path / "roads.png")
    assert (tmp_path / "roads.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(table, "pretrained_records", lambda: iter([{"runs": runs}]))
    rows = table.runs_table().splitlines()[2:]
    assert rows == ["| docs | 1 | 1.400 | 1.300 | 2.200 | 3.6 / 0.7 |", "| docs | 20 | 1.400 | 1.200 |  | 3.7 |"]


def test_a_time_budget_is_measured(text_file):
    from benchmarks import budgets

    small = [
        '--model_overrides={"hidden_size": 32, "num_hidden_layers": 1}',
        "--eval_sample_length=0",
        "--sample_length=0",
    ]
    figures = budgets.run(str(text_file), 0.1, "auto", *small)
    assert 0 < figures["training_seconds"] < 10
    assert figures["steps"] > 0


def test_the_record_of_budgets_is_completed_cell_by_cell(tmp_path, monkeypatch):
    from benchmarks import budgets

    monkeypatch.setattr(common, "record", functools.partial(common.record, folder=tmp_path))
    monkeypatch.setattr(common, "recorded", functools.partial(common.recorded, folder=tmp_path))
    for steps, model in [(1, "auto"), (2, "modern-1m"), (3, "auto")]:
        monkeypatch.setattr(budgets, "run", lambda *_, steps=steps: {"steps": steps})
        monkeypatch.setattr(sys, "argv", ["budgets", "--minutes", "5", "--text", "a.txt", "--models", model])
        budgets.main()
    record = common.recorded(f"budgets-{common.cpu_kind()}")
    assert record["results"] == {"a, 5 minutes, auto": {"steps": 3}, "a, 5 minutes, modern-1m": {"steps": 2}}


@pytest.mark.parametrize("name", ["gptlite nanogpt fp32", "gptlite modern auto", "GPT-2, transformers' Trainer"])
def test_a_training_measurement_runs(name, tmp_path, monkeypatch):
    from benchmarks import train_speed

    monkeypatch.setattr(common, "corpus_ids", lambda: (torch.randint(65, (5000,)).numpy(), None))
    figures = train_speed.measure(name, "cpu", steps=2, nanogpt="")
    assert figures["tokens_per_second"] > 0


@pytest.mark.parametrize("name", ["transformers GPT-2", "modern-10m plain", "modern-10m engine int8"])
def test_a_generation_measurement_runs(name):
    from benchmarks import generate_speed

    if "engine" in name:
        pytest.importorskip("onnxruntime")
    assert generate_speed.measure(name, streams=2, tokens=3, nanogpt="")["tokens_per_second"] > 0


def test_a_scaling_measurement_runs():
    done = python("benchmarks.scaling", "--one", '{"width": 32, "context": 16, "batch": 2, "processes": 1}')
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["milliseconds"] > 0


def test_64_visitors_of_the_demo_get_their_texts_beside_a_slow_one_and_one_that_disconnects(trained, tmp_path):
    pytest.importorskip("gradio")
    from benchmarks import demo_load

    demo_load.main([f"--model={trained}", "--rounds=1", "--tokens=10"], tmp_path)
    record = json.loads((tmp_path / "demo_load.json").read_text())
    assert (record["clients"], len(record["seconds"])) == (64, 1)


@pytest.mark.parametrize("kind", ["file", "folder", "streamed rows"])
def test_times_read_are_the_bytes_of_the_text_alone(kind, tmp_path, monkeypatch):
    from benchmarks import read_text

    def run(code, flags, work):
        folder = work / ("large" if "/large" in flags[0] else "small")
        size = sum(path.stat().st_size for path in folder.iterdir())
        return {"bytes": 50_000_000 + 2 * size, "peak_megabytes": 1.0}

    monkeypatch.setattr(read_text, "run", run)
    figures = read_text.measure(tmp_path, kind, 3 * read_text.MEGABYTE)
    assert [figures[state]["times_read"] for state in ("fresh", "cached")] == [2, 2]


def test_fine_tuning_is_measured_beside_transformers(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = tiny_model("modern-1m", vocab_size=20_000, max_position_embeddings=256)
    model.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(pretrained, "STEPS", 3)
    for side in pretrained.SIDES:
        figures = pretrained.speed(side, str(tmp_path / "base"))
        assert figures["tokens_per_second"] > 0
        assert figures["peak_gigabytes"] > 0
    monkeypatch.setitem(pretrained.CLASSES, "gpt2", {"n_layer": 1, "n_embd": 16, "n_head": 2, "vocab_size": 20_000})
    for way in pretrained.PREDICTIONS:
        assert pretrained.memory("gpt2", way)["predicted"] > 0
