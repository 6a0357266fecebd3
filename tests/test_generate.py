"""The command generate, and the functions behind it."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, call, files, load_saved, refused

from modeling_gptlite.interchange.native import to_qwen3
from modeling_gptlite.loading import load_for_inference
from modeling_gptlite.runs.generate import BATCH, ENGINES, GenerationSettings, load_generator, samples, stream
from scripts import generate


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


# ---- The engine ------------------------------------------------------------------------------------------------------


def class_of(trained, **settings):
    return type(load_generator(str(trained), **settings)[0]).__name__


@pytest.mark.parametrize("samples", [1, 3])
def test_a_seed_gives_the_same_text_in_every_engine(samples, trained, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    folder = shutil.copytree(trained, tmp_path / "model")  # which onnx keeps its graph in
    argv = ["--prompt=12", "--seed=3", f"--num_samples={samples}", "--max_new_tokens=80"]
    texts = [written(folder, *argv, f"--engine={engine}", capsys=capsys) for engine in ENGINES]
    assert texts[0] == texts[1] == texts[2]


def test_auto_is_the_engine_and_leaves_the_folder_as_it_is(trained):
    pytest.importorskip("onnxruntime")
    before = files(trained)
    assert class_of(trained) == "FastGPTLite"
    assert files(trained) == before


@pytest.mark.parametrize("settings", [{"engine": "torch"}, {"dtype": "bfloat16"}])
def test_auto_is_pytorch_where_the_text_would_be_another(settings, trained):
    assert class_of(trained, **settings) == "GPTLiteForCausalLM"


def test_auto_is_pytorch_without_onnx_runtime_or_for_a_large_model(trained, monkeypatch):
    monkeypatch.setattr("modeling_gptlite.runs.generate.LARGEST_IN_ENGINE", 1000)
    assert class_of(trained) == "GPTLiteForCausalLM"
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert class_of(trained) == "GPTLiteForCausalLM"


def test_auto_is_pytorch_for_a_model_that_the_engine_does_not_run(trained, tmp_path):
    model, tokenizer = load_saved(trained)
    to_qwen3(model).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert class_of(tmp_path) == "Qwen3ForCausalLM"


@pytest.mark.parametrize("engine", ["auto", "onnx"])
def test_int8_is_computed_in_onnx_runtime(engine, trained, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    folder = shutil.copytree(trained, tmp_path / "model")
    greedy = ["--prompt=12 green", "--greedy", "--max_new_tokens=30"]
    text = written(folder, *greedy, f"--engine={engine}", "--dtype=int8", capsys=capsys)
    assert text[:20] == written(folder, *greedy, "--engine=torch", capsys=capsys)[:20]
    assert [path.name for path in (folder / "engine").iterdir()] == ["int8.onnx"]


def test_int8_of_a_class_that_the_engine_does_not_run_is_refused(trained, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    model, tokenizer = load_saved(trained)
    to_qwen3(model).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    argv = [f"--model={tmp_path}", "--prompt=1", "--dtype=int8"]
    told = ["Qwen3ForCausalLM", "without --dtype int8, PyTorch generates"]
    refused(generate.main, *argv, capsys=capsys, told=told)


@pytest.mark.parametrize("flag", ["--engine=onnx", "--dtype=int8"])
def test_a_missing_package_is_named_where_onnx_is_asked_for(flag, trained, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    argv = [f"--model={trained}", "--prompt=1", flag]
    refused(generate.main, *argv, capsys=capsys, told=["onnxruntime", "gptlite[export]"])


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
    "unknown engine": (["--prompt=1", "--engine=gguf"], ["--engine", "gguf", "torch or onnx"]),
    "onnx elsewhere": (["--prompt=1", "--engine=onnx", "--device=cuda"], ["--engine onnx", "--device cuda"]),
    "onnx in bf16": (["--prompt=1", "--engine=onnx", "--dtype=bfloat16"], ["--engine onnx", "--dtype bfloat16"]),
    "int8 elsewhere": (["--prompt=1", "--dtype=int8", "--device=cuda"], ["--dtype int8", "--device cuda"]),
    "int8 in torch": (["--prompt=1", "--dtype=int8", "--engine=torch"], ["--engine torch", "--engine onnx"]),
    "a device without data": (["--prompt=1", "--device=meta"], ["--device meta", "no data"]),
    "unknown device": (["--prompt=1", "--device=toaster"], ["--device", "toaster"]),
    "temperature that overflows": (["--prompt=1", "--temperature=1e-300"], ["--temperature", "1e-300"]),
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


# ---- Paths and files -----------------------------------------------------------------------------------------------


def test_a_mistyped_folder_is_reported_with_the_models_beside_it(trained, here, capsys):
    (here / "out").mkdir()
    shutil.copytree(trained, here / "out" / "bottles")
    for name in (str(here / "nowhere"), "./nowhere", "out/bottle"):
        refused(generate.main, f"--model={name}", "--prompt=1", capsys=capsys, told=[f"no such folder: {name}"])
    refused(generate.main, "--model=out/bottle", "--prompt=1", capsys=capsys, told=["out holds bottles"])


def test_the_folder_of_an_unfinished_run_names_its_newest_checkpoint(here, capsys):
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11.partial"):
        (here / "run" / name).mkdir(parents=True)
    told = ["its run is not finished", str(Path("run", "checkpoint-10"))]
    refused(generate.main, "--model=run", "--prompt=1", capsys=capsys, told=told)


WRONG_TYPES = {
    "temperature": ("generation_config.json", {"do_sample": True, "temperature": "hot"}),
    "top_k": ("generation_config.json", {"do_sample": True, "top_k": "many"}),
    "temperature, read only when sampling": ("generation_config.json", {"do_sample": False, "temperature": "hot"}),
    "a list of sampling defaults": ("generation_config.json", None),
    "a list as configuration": ("config.json", None),
    "a list as tokenizer": ("tokenizer.json", None),
    "a list as tokenizer settings": ("tokenizer_config.json", None),
    "tiny temperature": ("generation_config.json", {"do_sample": True, "temperature": 1e-300}),
    "bos token": ("tokenizer_config.json", {"bos_token": 5}),
    "tokenizer class": ("tokenizer_config.json", {"tokenizer_class": ["a"]}),
    "layers": ("config.json", {"num_hidden_layers": "two"}),
    "model type": ("config.json", {"model_type": ["gptlite"]}),
}


@pytest.mark.parametrize(("name", "values"), WRONG_TYPES.values(), ids=WRONG_TYPES)
def test_a_value_of_the_wrong_type_in_a_file_of_the_model_is_one_line(name, values, trained, here, capsys):
    shutil.copytree(trained, here / "run")
    settings = [] if values is None else {**json.loads((trained / name).read_text()), **values}
    (here / "run" / name).write_text(json.dumps(settings))
    refused(generate.main, "--model=run", "--prompt=1", capsys=capsys, told=["run"])


# ---- Samples -------------------------------------------------------------------------------------------------------


def test_greedy_text_warns_of_nothing(trained, here):
    folder = shutil.copytree(trained, here / "run")
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "scripts.generate", "--model", folder, "--prompt=1", "--greedy"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_samples_without_end_start_at_once(trained):
    model, tokenizer = load_for_inference(str(trained))
    texts = samples(model, tokenizer, "12", GenerationSettings(max_new_tokens=3), count=999_999_999)
    assert len({next(texts) for _ in range(BATCH + 1)}) > 1


def test_samples_of_more_than_one_batch_are_all_generated(trained, monkeypatch):
    monkeypatch.setattr("modeling_gptlite.runs.generate.BATCH", 2)
    model, tokenizer = load_for_inference(str(trained))
    assert len(list(samples(model, tokenizer, "12", GenerationSettings(max_new_tokens=3), count=5))) == 5


def test_what_is_streamed_is_the_sample(trained):
    model, tokenizer = load_for_inference(str(trained))
    settings, pieces = GenerationSettings(max_new_tokens=40, greedy=True), []
    stream(model, tokenizer, "12 green", settings, pieces.append)
    assert "".join(pieces) == next(samples(model, tokenizer, "12 green", settings, count=1)) + "\n"
    assert len(pieces) > 2
