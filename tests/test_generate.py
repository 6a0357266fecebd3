"""The command generate, and the functions behind it."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TEXT, call, files, load_saved, refused, tiny_model

from modeling_gptlite.errors import UserError
from modeling_gptlite.interchange.native import to_qwen3
from modeling_gptlite.loading import load_for_inference
from modeling_gptlite.runs.generate import (
    BATCH,
    ENGINES,
    GenerationSettings,
    StopTexts,
    Streamer,
    ends,
    load_generator,
    read_prompt,
    samples,
    stream,
)
from scripts import generate
from tokenization import build_bpe_tokenizer, build_char_tokenizer


def written(trained, *argv, capsys):
    code, out, err = call(generate.main, f"--model={trained}", *argv, capsys=capsys)
    assert code == 0, err
    return out


def printed(trained, *argv, capsys):
    """The texts that the command prints."""
    out = written(trained, *argv, capsys=capsys)
    return [text.removesuffix("\n") for text in re.split(r"\n?--- \d of \d ---\n", out) if text]


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


def test_a_package_that_a_model_needs_is_named(trained, monkeypatch):
    def needs(*_, **__):
        raise ImportError("4-bit weights need bitsandbytes: pip install bitsandbytes")

    monkeypatch.setattr("modeling_gptlite.loading.AutoModelForCausalLM.from_pretrained", needs)
    with pytest.raises(UserError, match="pip install bitsandbytes"):
        load_for_inference(str(trained))


def test_an_end_of_text_beside_those_of_the_model_ends_a_text_too(trained):
    model, tokenizer = load_for_inference(str(trained))
    model.generation_config.eos_token_id = [7, 9]
    assert ends(model, tokenizer)["eos_token_id"] == sorted([7, 9, tokenizer.eos_token_id])


def test_a_prompt_of_characters_that_become_bytes_is_read():
    tokenizer = build_char_tokenizer("ab", byte_fallback=True)
    model = tiny_model("modern-1m", vocab_size=len(tokenizer))
    assert read_prompt(model, tokenizer, "aé")["input_ids"].shape == (1, 3)


# ---- What decides on a token, and what ends a text ------------------------------------------------------------------


def test_min_p_and_the_repetition_penalty_change_the_text_as_in_transformers(trained, capsys):
    model, tokenizer = load_for_inference(str(trained))
    inputs = tokenizer("12 green", return_tensors="pt")
    for flags in ({"min_p": 0.9}, {"repetition_penalty": 9.0}, {"repetition_penalty": 9.0, "do_sample": False}):
        torch.manual_seed(3)
        ids = model.generate(**inputs, max_new_tokens=40, **{"do_sample": True, **flags})
        argv = ["--greedy" if name == "do_sample" else f"--{name}={value}" for name, value in flags.items()]
        argv += ["--prompt=12 green", "--seed=3", "--max_new_tokens=40"]
        expected = tokenizer.decode(ids[0], skip_special_tokens=True)
        assert (
            written(trained, *argv, capsys=capsys)
            == expected + "\n"
            != written(trained, *[flag for flag in argv if not flag.startswith(("--min", "--rep"))], capsys=capsys)
        )


@pytest.mark.parametrize("engine", ["torch", "auto"])
@pytest.mark.parametrize("samples", [1, 5])
def test_a_text_ends_before_the_first_stop_text_that_is_not_in_the_prompt(samples, engine, trained, capsys):
    argv = ["--prompt=12 green", f"--num_samples={samples}", "--seed=3", "--max_new_tokens=120", f"--engine={engine}"]
    texts = printed(trained, *argv, capsys=capsys)
    stops = [texts[0][30:32], texts[-1][25:28], "green"]
    for text, short in zip(texts, printed(trained, *argv, "--stop", *stops, capsys=capsys), strict=True):
        ends = [text.find(stop, len("12 green")) for stop in stops]
        assert short == text[: min(end for end in [*ends, len(text)] if end >= 0)]


def test_generation_itself_ends_at_a_stop_text(trained):
    model, tokenizer = load_for_inference(str(trained))
    settings, steps, forward = GenerationSettings(stop=["e"], greedy=True, max_new_tokens=2000), [], model.forward
    model.forward = lambda *args, **kwargs: steps.append(1) or forward(*args, **kwargs)
    next(samples(model, tokenizer, "12 gr", settings, count=1))
    assert len(steps) < 20


def test_a_stop_text_is_found_across_tokens_of_several_characters_and_bytes():
    tokenizer = build_bpe_tokenizer(TEXT + "€uro", vocab_size=300)
    pieces = []
    streamer = Streamer(tokenizer, pieces.append, stop=["€u", "all x"], begin=2)
    ids = torch.tensor(tokenizer("€u bottles on the wall €€uro bottles").input_ids)
    for one in ids:  # a prompt would come in one piece
        streamer.put(one[None])
    streamer.end()
    assert "".join(pieces) == "€u bottles on the wall €\n"
    stops = StopTexts(tokenizer, ["€u"], prompt_tokens=len(tokenizer("€u").input_ids))
    found = [stops(ids[None, :length], None).item() for length in range(1, len(ids) + 1)]
    first = next(n for n in range(1, len(ids) + 1) if "€€u" in tokenizer.decode(ids[:n]))
    assert found.index(True) + 1 == first


# ---- Many texts, and files of them -----------------------------------------------------------------------------------


PROMPTS = ["12 green", "7 green", "1"]


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.jsonl"])
def test_prompts_come_from_flags_or_from_a_file(name, trained, here, capsys):
    rows = [json.dumps({"prompt": prompt, "id": 1}) if "jsonl" in name else prompt for prompt in PROMPTS]
    Path(name).write_text("\r\n\r\n".join(rows) + "\n")
    argv = ["--max_new_tokens=10", "--seed=5"]
    out = written(trained, f"--prompts={name}", *argv, capsys=capsys)
    assert re.findall(r"--- (\d) of 3 ---\n(\d+)", out) == [("1", "12"), ("2", "7"), ("3", "1")]
    assert out == written(trained, "--prompt", *PROMPTS, *argv, capsys=capsys)
    assert out == written(trained, *(f"--prompt={prompt}" for prompt in PROMPTS), *argv, capsys=capsys)


@pytest.mark.parametrize("line", ["7 green", '["7 green"]', '{"text": "7"}', '{"prompt": 7}'])
def test_a_line_without_a_prompt_is_named(line, trained, here, capsys):
    Path("prompts.jsonl").write_text(f'{{"prompt": "1"}}\n\n{line}\n')
    refused(generate.main, f"--model={trained}", "--prompts=prompts.jsonl", capsys=capsys, told=["line 3", "prompt"])


def test_a_record_repeats_its_text_by_itself(trained, here, capsys):
    argv = ["--max_new_tokens=20", "--num_samples=2", "--min_p=0.01"]
    assert written(trained, "--prompt", *PROMPTS, *argv, "--output=texts.jsonl", capsys=capsys).startswith("6 texts")
    rows = records(here / "texts.jsonl")
    assert [(row["prompt"], row["sample"]) for row in rows] == [(prompt, n) for prompt in PROMPTS for n in (1, 2)]
    assert rows[0]["settings"].items() >= {"min_p": 0.01, "model": str(trained)}.items()
    out = written(trained, f"--prompt={PROMPTS[2]}", f"--seed={rows[4]['seed']}", *argv, capsys=capsys)
    assert out == f"--- 1 of 2 ---\n{rows[4]['text']}\n\n--- 2 of 2 ---\n{rows[5]['text']}\n"


@pytest.mark.parametrize("given", [["--seed=9"], []])
@pytest.mark.parametrize("name", ["texts.jsonl", "out/texts.txt"])
@pytest.mark.parametrize("kept", [0, 1, 3, 4])
def test_a_repeated_command_continues_the_file(kept, name, given, trained, here, capsys):
    argv = ["--prompt", *PROMPTS[:2], "--num_samples=2", "--max_new_tokens=10", f"--output={name}", *given]
    progress = Path(name) if name.endswith("jsonl") else Path(f"{name}.partial.jsonl")
    written(trained, *argv, "--output=whole.jsonl", capsys=capsys)
    lines = Path("whole.jsonl").read_bytes().splitlines(True)
    progress.parent.mkdir(exist_ok=True)
    progress.write_bytes(b"".join(lines[:kept]) + b'{"prompt": "12 gr')  # killed in the middle of a line
    written(trained, *argv, capsys=capsys)
    if kept or given:
        texts = [record["text"] for record in records(Path("whole.jsonl"))]
        if name.endswith("jsonl"):
            assert Path(name).read_bytes() == b"".join(lines)
        else:
            pages = [f"--- {number} of 4 ---\n{text}\n" for number, text in enumerate(texts, 1)]
            assert Path(name).read_text() == "\n".join(pages)
            assert not progress.exists()
    if name.endswith("jsonl"):
        before = Path(name).read_bytes()
        written(trained, *argv, capsys=capsys)
        assert Path(name).read_bytes() == before


OTHER = {
    "another temperature": (["--temperature=0.5"], ["temperature None, not 0.5", "name another --output"]),
    "another stop text": (["--stop=x"], ["stop", "['x']"]),
    "another seed": (["--seed=8"], ["seed 9, not 8"]),
    "another prompt": (["--prompt=2"], ["text 2", "another prompt"]),
}


@pytest.mark.parametrize(("flags", "told"), OTHER.values(), ids=OTHER)
def test_a_file_of_other_settings_is_refused_and_stays(flags, told, trained, here, capsys):
    argv = ["--prompt=1", "--max_new_tokens=5", "--output=texts.jsonl"]
    written(trained, *argv, "--prompt=3", "--seed=9", capsys=capsys)
    before = Path("texts.jsonl").read_bytes()
    refused(generate.main, f"--model={trained}", *argv, *flags, capsys=capsys, told=["texts.jsonl", *told])
    assert Path("texts.jsonl").read_bytes() == before


@pytest.mark.parametrize(("name", "told"), [("a.jsonl", "no generated texts"), ("a.txt", "exists already")])
def test_a_file_of_something_else_is_refused_and_stays(name, told, trained, here, capsys):
    Path(name).write_text('{"prompt": "1"}\n')
    refused(generate.main, f"--model={trained}", "--prompt=1", f"--output={name}", capsys=capsys, told=[name, told])
    assert Path(name).read_text() == '{"prompt": "1"}\n'


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
    "min_p over one": (["--prompt=1", "--min_p=2"], ["--min_p", "2"]),
    "no repetition penalty": (["--prompt=1", "--repetition_penalty=0"], ["--repetition_penalty", "above 0"]),
    "an empty stop text": (["--prompt=1", "--stop", ""], ["--stop", "at least one character"]),
    "two prompts": (["--prompt=1", "--prompt_file=x"], ["--prompt", "--prompt_file"]),
    "prompts twice": (["--prompt=1", "--prompts=x"], ["--prompt", "--prompts"]),
    "missing prompts": (["--prompts=nowhere.txt"], ["nowhere.txt", "No such file"]),
    "an unreadable second prompt": (["--prompt", "1", "☃"], ["'☃'", "prompt 2 of 2"]),
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
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.1}
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
