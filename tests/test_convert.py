"""interchange/formats.py and `scripts.convert`: the checks, the messages, and mistakes in one line."""

import os
import pickle
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from helpers import TEXT, call, files, nanogpt_checkpoint, refused, save_model, save_nanogpt
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from modeling_gptlite.interchange import FORMATS, ConversionError, convert, formats
from scripts import convert as command


CHARACTERS = sorted(set(TEXT))


def test_a_notebook_converts_with_the_function(here):
    save_model(here / "in", "modern-1m")
    lines = []
    convert("in", "out", target_format="qwen3", report=lines.append)
    assert "logits differ by at most 0.0e+00" in lines[0]
    with pytest.raises(ConversionError, match="exists already"):
        convert("in", "out", target_format="qwen3")


def test_a_result_beyond_rounding_is_deleted_and_the_command_fails(here, capsys, monkeypatch):
    save_model(here / "in", "modern-1m")
    saved = AutoModelForCausalLM.from_pretrained("in")
    with torch.no_grad():
        saved.lm_head.weight[3] += 0.01
    wrong = replace(FORMATS["qwen3"], write=lambda material, folder: saved.save_pretrained(folder))
    monkeypatch.setitem(FORMATS, "qwen3", wrong)
    capsys.readouterr()
    code, out, err = call(command.main, "--to=qwen3", "in", "new/out", capsys=capsys)
    assert code.startswith("error: the result is wrong, and was deleted")  # which Python prints, and exits with 1
    assert out == err == ""
    assert [path.name for path in here.iterdir()] == ["in"]
    command.main(["--to=qwen3", "in", "new/out", "--check", "false"])
    assert "logits" not in capsys.readouterr().out
    assert (here / "new/out/model.safetensors").exists()


class Payload:
    """Its pickle creates a folder when it is loaded without care."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with models and files that are wrong in every way."""
    place = tmp_path_factory.mktemp("inputs")
    save_model(place / "modern", "modern-1m")
    save_model(place / "classic", "classic-10m")
    save_model(place / "nano", "nanogpt-10m")
    save_model(place / "gpt2_words", "gpt2-124m", "word")
    save_model(place / "byteful", "gpt2-124m", "byte_fallback")
    save_model(place / "bare", "gpt2-124m", "no_special_tokens")
    rope = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    save_model(place / "scaled", "modern-1m", rope_parameters=rope)
    save_model(place / "toofew", "modern-1m", vocab_size=40)
    save_nanogpt(place / "out-char")
    save_nanogpt(place / "multi", ["ab", *CHARACTERS[1:]])
    save_nanogpt(place / "twice", [CHARACTERS[1], *CHARACTERS[1:]])
    save_nanogpt(place / "small", vocab_size=10)
    whole = (place / "out-char/ckpt.pt").read_bytes()
    (place / "half.pt").write_bytes(whole[: len(whole) // 2])
    (place / "empty.pt").write_bytes(b"")
    (place / "text.pt").write_text("no checkpoint")
    torch.save({**nanogpt_checkpoint(), "extra": Payload()}, place / "code.pt")
    torch.save([1, 2], place / "list.pt")
    torch.save({**nanogpt_checkpoint(), "model": {}}, place / "hollow.pt")
    (place / "code.pkl").write_bytes(pickle.dumps({"itos": Payload()}))
    (place / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    (place / "gaps.pkl").write_bytes(pickle.dumps({"itos": {0: "a", 2: "b"}}))
    (place / "half.pkl").write_bytes((place / "out-char/meta.pkl").read_bytes()[:40])
    (place / "a_file").write_text("")
    (place / "empty").mkdir()
    damage(save_model(place / "lacking", "modern-1m"), lambda weights: weights.pop("lm_head.weight"))
    damage(save_model(place / "toomuch", "modern-1m"), lambda weights: weights.update(extra=torch.ones(1)))
    shutil.copytree(place / "modern", place / "truncated")
    os.truncate(place / "truncated/model.safetensors", 2000)
    return place


def damage(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


MISTAKES = {
    "nothing to do": (["modern", "OUT"], ["modern has the format gptlite", "nothing to convert"]),
    "no such source": (["--to=gguf", "nowhere", "OUT"], ["nowhere"]),
    "no such format": (["--to=gpt3", "modern", "OUT"], ["gpt3", "onnx"]),
    "misspelt flag": (["--too=gguf", "modern", "OUT"], ["--too", "did you mean 'to'"]),
    "precision without choice": (["--to=onnx", "--dtype=f16", "modern", "OUT"], ["--dtype f16", "gguf (f32, f16"]),
    "no OUT": (["--to=gguf", "modern"], ["OUT"]),
    "OUT is full": (["--to=gguf", "modern", "classic"], ["classic exists already"]),
    "OUT is a file": (["--to=gguf", "modern", "a_file"], ["a_file exists already"]),
    "OUT is in a file": (["--to=gguf", "modern", "a_file/OUT"], ["a_file/OUT"]),
    "a file as a model": (["--to=gguf", "a_file", "OUT"], ["a_file is a file", "folder"]),
    "an empty folder as a model": (["--to=gguf", "empty", "OUT"], ["empty"]),
    "meta without nanoGPT": (["--to=gguf", "--meta=gaps.pkl", "modern", "OUT"], ["--meta", "--from nanogpt"]),
    "another class": (["--from=gpt2", "modern", "OUT"], ["GPTLiteForCausalLM", "--from gptlite"]),
    "missing weight": (["--to=qwen3", "lacking", "OUT"], ["missing", "lm_head.weight"]),
    "extra weight": (["--to=qwen3", "toomuch", "OUT"], ["unexpected", "extra"]),
    "truncated weights": (["--to=qwen3", "truncated", "OUT"], ["truncated"]),
    "tokenizer too large": (["--to=qwen3", "toofew", "OUT"], ["the model 40"]),
    "no such checkpoint": (["--from=nanogpt", "nowhere", "OUT"], ["nowhere"]),
    "folder without checkpoint": (["--from=nanogpt", "empty", "OUT"], ["empty/ckpt.pt"]),
    "half a checkpoint": (["--from=nanogpt", "half.pt", "OUT"], ["half.pt is damaged, or holds more"]),
    "empty checkpoint": (["--from=nanogpt", "empty.pt", "OUT"], ["empty.pt is damaged, or holds more"]),
    "text": (["--from=nanogpt", "text.pt", "OUT"], ["text.pt is damaged, or holds more"]),
    "code in a checkpoint": (["--from=nanogpt", "code.pt", "OUT"], ["code.pt", "could run code"]),
    "list as a checkpoint": (["--from=nanogpt", "list.pt", "OUT"], ["list.pt holds a list"]),
    "no weights": (["--from=nanogpt", "hollow.pt", "OUT"], ["lacks"]),
    "code in meta.pkl": (["--from=nanogpt", "out-char", "OUT", "--meta=code.pkl"], ["code.pkl", "posix.mkdir"]),
    "list as meta.pkl": (["--from=nanogpt", "out-char", "OUT", "--meta=list.pkl"], ["list.pkl has no itos"]),
    "gaps in meta.pkl": (["--from=nanogpt", "out-char", "OUT", "--meta=gaps.pkl"], ["gaps.pkl has no itos"]),
    "half a meta.pkl": (["--from=nanogpt", "out-char", "OUT", "--meta=half.pkl"], ["half.pkl is not"]),
    "no such meta.pkl": (["--from=nanogpt", "out-char", "OUT", "--meta=no.pkl"], ["no.pkl"]),
    "token of two characters": (["--from=nanogpt", "multi", "OUT"], ["single characters", "'ab'"]),
    "character twice": (["--from=nanogpt", "twice", "OUT"], ["occurs twice"]),
    "more characters than rows": (["--from=nanogpt", "small", "OUT"], ["the model 10"]),
    "no such tokenizer": (["--from=nanogpt", "out-char", "OUT", "--tokenizer=empty"], ["tokenizer of 'empty'"]),
    "classic as GPT-2": (["--to=gpt2", "classic", "OUT"], ["head has no bias", "hidden_size (32)"]),
    "modern as GPT-2": (["--to=gpt2", "modern", "OUT"], ["position_embedding_type='learned'"]),
    "exact GELU as GGUF": (["--to=gguf", "nano", "OUT"], ["gpt2 computes gelu_new", "gelu"]),
    "RoPE scaling as GGUF": (["--to=gguf", "scaled", "OUT"], ["RoPE scaling (linear)"]),
    "words as GGUF": (["--to=gguf", "gpt2_words", "OUT"], ["neither character-level nor a byte-level BPE"]),
    "byte fallback as GGUF": (["--to=gguf", "byteful", "OUT"], ["neither character-level nor a byte-level BPE"]),
    "no end of text as GGUF": (["--to=gguf", "bare", "OUT"], ["end-of-text token"]),
}


@pytest.mark.parametrize(("argv", "told"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(argv, told, inputs, monkeypatch, capsys):
    if "--to=gguf" in argv:
        pytest.importorskip("gguf")
    monkeypatch.chdir(inputs)
    before = files(inputs)
    refused(command.main, *argv, capsys=capsys, told=told)
    assert files(inputs) == before


@pytest.mark.parametrize(("target", "package"), [("gguf", "gguf"), ("onnx", "onnx"), ("onnx", "onnxscript")])
def test_a_missing_package_is_named_with_its_extra(target, package, here, capsys, monkeypatch):
    save_model(here / "in", "modern-1m")
    monkeypatch.setitem(sys.modules, package, None)
    refused(command.main, f"--to={target}", "in", "out", capsys=capsys, told=[package, "gptlite[export]"])
    assert [path.name for path in here.iterdir()] == ["in"]


def test_an_interrupted_conversion_leaves_nothing(here, monkeypatch):
    save_model(here / "in", "modern-1m")
    monkeypatch.setattr(formats, "verify", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        command.main(["--to=qwen3", "in", "out"])
    assert [path.name for path in here.iterdir()] == ["in"]


def test_help_explains_every_flag(capsys):
    code, out, _ = call(command.main, "--help", capsys=capsys)
    assert code == 0
    assert "gptlite convert --to gguf" in out
    assert "  IN " in out
    for name, format in FORMATS.items():
        assert f"{name}, {format.summary}" in " ".join(out.split())
