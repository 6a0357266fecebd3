"""interchange/pretrained.py: folders of transformers' classes, in both directions."""

import json

import pytest
import torch
from helpers import load_saved, refused, save_model
from transformers import pipeline

from modeling_gptlite.interchange.pretrained import LOADING_OPTIONS, read_pretrained
from scripts import convert


ROUND_TRIPS = [
    ("modern-1m", {}, "qwen3", "Qwen3ForCausalLM"),
    ("modern-1m", {"qk_norm": False}, "llama", "LlamaForCausalLM"),
    ("gpt2-124m", {}, "gpt2", "GPT2LMHeadModel"),
    ("nanogpt-10m", {}, "gpt2", "GPT2LMHeadModel"),
]


@pytest.mark.parametrize("source", [[], ["--from"]], ids=["found", "given"])
@pytest.mark.parametrize(("preset", "overrides", "target", "class_name"), ROUND_TRIPS)
def test_a_round_trip_keeps_logits_and_tokenizer(preset, overrides, target, class_name, source, here, capsys):
    model, tokenizer = load_saved(save_model(here / "in", preset, **overrides))
    convert.main(["--to", target, "in", "deep/out"])
    assert "logits differ by at most 0.0e+00" in capsys.readouterr().out
    assert json.loads((here / "deep/out/config.json").read_text())["architectures"] == [class_name]
    assert not list((here / "deep/out").glob("*.py"))
    convert.main([*source, *([target] if source else []), "deep/out", "back"])
    back, back_tokenizer = load_saved(here / "back")
    assert torch.equal(back(torch.arange(20)[None]).logits, model(torch.arange(20)[None]).logits)
    assert back_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert back_tokenizer("12 green—🎉<|endoftext|>") == tokenizer("12 green—🎉<|endoftext|>")
    assert {path.name for path in here.iterdir()} == {"in", "deep", "back"}


def test_half_precision_stays_half_precision(here, capsys):
    save_model(here / "in", "modern-1m", dtype=torch.bfloat16)
    convert.main(["--to", "qwen3", "in", "out"])
    convert.main(["--from", "qwen3", "out", "back"])
    assert load_saved(here / "out")[0].dtype == load_saved(here / "back")[0].dtype == torch.bfloat16


@pytest.mark.parametrize("target", ["qwen3", "onnx"])
def test_rope_theta_is_where_older_loaders_look_for_it(target, here, capsys):
    if target == "onnx":
        pytest.importorskip("transformers", minversion="5.23")
        pytest.importorskip("onnxscript")
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    save_model(here / "in", "modern-1m", rope_parameters=rope)
    convert.main(["--to", target, "in", "out", "--check", "false"])
    config = json.loads((here / "out/config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 5000


@pytest.mark.parametrize("target", ["qwen3", "gptlite"])
def test_a_tokenizer_is_saved_for_every_loader_and_without_local_options(target, here, capsys):
    save_model(here / "in", "modern-1m")
    convert.main(["--to", "qwen3", "in", "first"])
    source = {"qwen3": ["--to=qwen3", "in"], "gptlite": ["first"]}[target]
    convert.main([*source, "out"])
    config = json.loads((here / "out/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not set(LOADING_OPTIONS) & set(config)


@pytest.mark.parametrize("target", ["qwen3", "llama", "gpt2"])
def test_a_pipeline_without_arguments_ends_at_the_context(target, here, capsys):
    preset = "nanogpt-10m" if target == "gpt2" else "modern-1m"
    save_model(here / "in", preset, eos_token_id=None, qk_norm=target == "qwen3")
    convert.main(["--to", target, "in", "out"])
    (result,) = pipeline("text-generation", model="out", return_tensors=True)("12 green")
    assert len(result["generated_token_ids"]) == 32


OF_BASE = {"fine_tuned_from": "base", "arguments": {}, "base_card": {"license": "mit"}, "data": {"license": "cc0-1.0"}}
LICENSES = {
    "from scratch": ({**OF_BASE, "fine_tuned_from": None, "base_card": {}}, "cc0-1.0"),
    "fine-tuned": (OF_BASE, "mit"),
    "fine-tuned, and given": ({**OF_BASE, "arguments": {"license": "cc0-1.0"}}, "cc0-1.0"),
    "a base without a license": ({**OF_BASE, "base_card": {"languages": []}}, None),
    "no base in the record": ({"data": {"license": "cc0-1.0"}}, None),
    "a list": ([], None),
    "a card of text": ({**OF_BASE, "base_card": "mit"}, None),
}


@pytest.mark.parametrize(("record", "license"), LICENSES.values(), ids=LICENSES)
def test_a_fine_tuned_model_has_the_license_of_its_base_unless_one_was_given(record, license, here):
    save_model(here / "in", "modern-1m")
    (here / "in/run.json").write_text(json.dumps(record))
    assert read_pretrained("in").license == license


def test_an_adapter_is_refused(here, capsys):
    peft = pytest.importorskip("peft")
    model, tokenizer = load_saved(save_model(here / "in", "modern-1m"))
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(here / "adapter")
    tokenizer.save_pretrained(here / "adapter")
    capsys.readouterr()
    refused(convert.main, "--to=qwen3", "adapter", "out", capsys=capsys, told=["LoRA adapter", "merge"])
