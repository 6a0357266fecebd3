"""`runs/model.py`, LoRA: adapters are trained, resumed, loaded, merged and published."""

import json
import shutil

import pytest
import torch
from helpers import ANSWERS, call, refused, results, run_python, train_tiny, write_rows
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    pipeline,
)

from scripts import generate, push_to_hub, train


@pytest.fixture(scope="session")
def adapter(tmp_path_factory, trained, text_file):
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("runs") / "adapter"
    train_lora(text_file, folder, trained)
    return folder


def train_lora(text_file, folder, base, *flags):
    flags = ["--lora_r=4", "--lora_alpha=16", "--lora_dropout=0.1", "--optimizer=adamw", "--learning_rate=1e-2", *flags]
    train_tiny(text_file, folder, f"--model_name_or_path={base}", *flags)


def logits(model, text="12 green bottles"):
    with torch.no_grad():
        return model.eval()(torch.tensor([[ord(c) % 30 for c in text]])).logits


def test_lora_trains_an_adapter_and_leaves_the_model_alone(trained, adapter, capsys):
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(str(adapter))
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 16, 0.1)
    assert config.base_model_name_or_path == str(trained.resolve())
    names = {name.rsplit(".", 1)[-1] for name in config.target_modules}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert results(adapter)["loss"] < results(trained)["loss"]
    assert "LoRA adapter of rank 4" in (adapter / "README.md").read_text()
    assert not (adapter / "config.json").exists()


@pytest.mark.parametrize(
    ("base", "told"),
    [("/moved/base", "no such folder: /moved/base"), (r"C:\moved\base", r"C:\moved\base"), (None, "names none")],
)
def test_an_adapter_whose_base_was_moved_says_where_to_change_it(base, told, trained, adapter, tmp_path, capsys):
    folder = shutil.copytree(adapter, tmp_path / "adapter", ignore=shutil.ignore_patterns("checkpoint-*"))
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": base}))
    argv = [f"--model={folder}", "--prompt=12", "--max_new_tokens=5"]
    refused(generate.main, *argv, capsys=capsys, told=[told, f"base_model_name_or_path in {path}"])
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(trained)}))  # the advice helps
    assert call(generate.main, *argv, capsys=capsys)[0] == 0


def test_an_adapter_loads_in_every_way_and_merges(trained, adapter, tmp_path):
    from peft import AutoPeftModelForCausalLM, PeftModel

    base = AutoModelForCausalLM.from_pretrained(trained)
    plain = logits(base)
    expected = logits(PeftModel.from_pretrained(base, adapter))
    assert not torch.allclose(expected, plain, atol=1e-2)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(adapter)), expected)
    merged = AutoPeftModelForCausalLM.from_pretrained(adapter).merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-3)
    merged.save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(adapter).save_pretrained(tmp_path / "merged")
    torch.save(expected, tmp_path / "expected.pt")
    run_python(
        f"""
import torch
from transformers import AutoModelForCausalLM
ids = torch.tensor([[ord(c) % 30 for c in "12 green bottles"]])
for folder in ("merged", {str(adapter)!r}):
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    torch.testing.assert_close(model(ids).logits, torch.load("expected.pt"), atol=1e-4, rtol=1e-3)
""",
        tmp_path,
    )


def test_generate_writes_with_an_adapter(trained, adapter, capsys):
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(trained), adapter)
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    ids = model.generate(**tokenizer("12 green", return_tensors="pt"), max_new_tokens=50, do_sample=False)
    argv = [f"--model={adapter}", "--prompt=12 green", "--greedy", "--max_new_tokens=50"]
    code, out, _ = call(generate.main, *argv, capsys=capsys)
    assert (code, out) == (0, tokenizer.decode(ids[0], skip_special_tokens=True) + "\n")


def test_an_adapter_that_learnt_to_stop_stops(trained, tmp_path, capsys):
    path = write_rows(tmp_path / "answers.jsonl", ANSWERS)
    train_lora(path, tmp_path / "run", trained, "--max_steps=120", "--learning_rate=2e-2", "--lora_r=16")
    argv = [f"--model={tmp_path / 'run'}", "--prompt=7 green ", "--greedy"]
    assert call(generate.main, *argv, capsys=capsys)[1].endswith("7 green bottles!\n")


def test_a_resumed_lora_run_ends_with_the_same_weights(trained, adapter, text_file, tmp_path):
    shutil.copytree(adapter / "checkpoint-10", tmp_path / "run" / "checkpoint-10")
    train_lora(text_file, tmp_path / "run", trained, "--resume_from_checkpoint=true")
    resumed, undisturbed = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "run", adapter))
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def test_an_adapter_of_a_published_model_is_published(trained, text_file, hub, tmp_path, capsys):
    assert call(push_to_hub.main, f"--model={trained}", "--repo_id=ada/base", capsys=capsys)[0] == 0
    train_lora(text_file, tmp_path / "run", "ada/base")
    assert call(push_to_hub.main, f"--model={tmp_path / 'run'}", "--repo_id=ada/lora", capsys=capsys)[0] == 0
    files = hub.repo("ada/lora").files()
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"} <= files.keys()
    assert not {"config.json", "model.safetensors"} & files.keys()
    card = files["README.md"].decode()
    assert "library_name: peft" in card
    assert "base_model: ada/base" in card
    text = pipeline("text-generation", model="ada/lora")("12 green", max_new_tokens=5)[0]["generated_text"]
    assert text.startswith("12 green")


def test_an_adapter_of_a_model_on_this_machine_is_not_published(adapter, hub, capsys):
    argv = [f"--model={adapter}", "--repo_id=ada/lora"]
    refused(push_to_hub.main, *argv, capsys=capsys, told=["adapter", "publish that model", "merge"])
    refused(push_to_hub.main, *argv, "--as=native", capsys=capsys, told=["adapter", "merge"])
    assert not hub.repositories


LORA_MISTAKES = {
    "no model": (["--lora_r=8"], ["--model_name_or_path"]),
    "rank": (["--lora_r=0"], ["--lora_r", "at least 1"]),
    "dropout": (["--lora_r=8", "--lora_dropout=1.5"], ["--lora_dropout", "1.5"]),
    "alpha alone": (["--lora_alpha=8"], ["--lora_r"]),
    "an adapter again": (["--model_name_or_path=ADAPTER"], ["LoRA adapter", "merge"]),
    "pushed from a folder": (["--lora_r=8", "--model_name_or_path=ADAPTER", "--push_to_hub=true"], ["publish"]),
}


@pytest.mark.parametrize(("argv", "told"), LORA_MISTAKES.values(), ids=LORA_MISTAKES)
def test_a_mistake_with_lora_is_refused_in_one_line(argv, told, adapter, text_file, tmp_path, capsys):
    argv = [flag.replace("ADAPTER", str(adapter)) for flag in argv]
    out = f"--output_dir={tmp_path / 'out'}"
    refused(train.main, f"--train_file={text_file}", out, *argv, capsys=capsys, told=told)
    assert not (tmp_path / "out").exists()


def test_without_peft_the_extra_is_named(trained, adapter, text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transformers.utils.is_peft_available", lambda: False)
    argv = [f"--train_file={text_file}", f"--model_name_or_path={trained}", f"--output_dir={tmp_path / 'out'}"]
    refused(train.main, *argv, "--lora_r=8", capsys=capsys, told=["gptlite[finetune]"])
    refused(generate.main, f"--model={adapter}", "--prompt=1", capsys=capsys, told=["gptlite[finetune]"])
