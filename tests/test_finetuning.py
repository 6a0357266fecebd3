"""Fine-tuning with `scripts.train`: new characters, other models and tokenizers, examples, LoRA; and TRL's trainers."""

import json
import re
import shutil

import hub_server
import pytest
import torch
from conftest import ROOT, TEXT, run_python, tiny_model, train_tiny
from safetensors.torch import load_file
from test_commands import call, refused
from test_examples import write
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    pipeline,
)

from scripts import generate, push_to_hub, train
from tokenization import build_bpe_tokenizer, build_char_tokenizer, encode_corpus


hub = hub_server.hub

NEW_TEXT = TEXT.replace("bottles", "Flaschen für Zoë") * 2
ANSWERS = [{"prompt": f"{n} green ", "completion": "bottles!"} for n in range(100)]
TALKS = [
    {"messages": [{"role": "user", "content": f"{n} green"}, {"role": "assistant", "content": "bottles!"}]}
    for n in range(100)
]


LABELS = {"green bottles": "good", "should fall": "bad"}


@pytest.fixture(scope="session")
def new_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "flaschen.txt"
    path.write_text(NEW_TEXT, encoding="utf-8")
    return path


def results(folder):
    return json.loads((folder / "run.json").read_text())["results"]


# ---- A new text ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tuned(tmp_path_factory, trained, new_text):
    folder = tmp_path_factory.mktemp("runs") / "flaschen"
    train_tiny(new_text, folder, f"--model_name_or_path={trained}", "--max_steps=20")
    return folder


def test_new_characters_join_the_vocabulary_after_all_that_is_there(trained, tuned, tmp_path):
    before, after = AutoTokenizer.from_pretrained(trained), AutoTokenizer.from_pretrained(tuned)
    new = sorted(set(NEW_TEXT) - set(TEXT))
    assert after.get_vocab() == before.get_vocab() | {c: len(before) + i for i, c in enumerate(new)}
    assert after.special_tokens_map == before.special_tokens_map
    assert encode_corpus(NEW_TEXT, after).tolist() == after(NEW_TEXT).input_ids
    printed = run_python(
        f"""
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({str(tuned)!r}, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained({str(tuned)!r}, trust_remote_code=True)
text = {NEW_TEXT[:500]!r}
ids = tokenizer(text).input_ids
assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
print(len(tokenizer), model.config.vocab_size, model.lm_head.out_features, model.get_input_embeddings().num_embeddings)
""",
        tmp_path,
    )
    assert set(printed.split()) == {str(len(after))}


@pytest.mark.parametrize("preset", ["classic-10m", "nanogpt-10m", "modern-1m"])
def test_a_model_that_grows_thinks_of_old_text_as_before(preset):
    tokenizer = build_char_tokenizer("abc")
    model, ids = tiny_model(preset, vocab_size=len(tokenizer)), torch.tensor([[0, 1, 2, 1, 0]])
    rows = model.get_input_embeddings().weight.detach().clone()
    with torch.no_grad():
        before = model(ids).logits
        train.grow_vocabulary(model, tokenizer, type("Source", (), {"pieces": staticmethod(lambda: ["aéz"])}))
        after = model(ids).logits
    assert tokenizer("aéz").input_ids == [0, 7, 6]
    torch.testing.assert_close(after[..., :6], before)
    table = model.get_input_embeddings().weight
    torch.testing.assert_close(table[:6], rows)
    torch.testing.assert_close(table[6:], rows.mean(0).expand(2, -1), atol=1e-3, rtol=1e-2)
    assert (model.config.vocab_size, model.vocab_size, model.lm_head.out_features) == (8, 8, 8)


def test_the_new_characters_are_named(trained, new_text, tmp_path, capsys):
    train_tiny(new_text, tmp_path / "run", f"--model_name_or_path={trained}", "--max_steps=1")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "vocabulary" in line]
    assert line.startswith("added to the vocabulary, now 39 tokens: 'F' (U+0046)")
    assert "'ë' (U+00EB)" in line


def test_a_tokenizer_that_is_given_stays_as_it_is(trained, new_text, tmp_path, capsys):
    flags = [f"--model_name_or_path={trained}", f"--tokenizer={trained}", "--max_steps=1"]
    train_tiny(new_text, tmp_path / "run", *flags)
    assert "not in the vocabulary" in capsys.readouterr().out
    assert len(AutoTokenizer.from_pretrained(tmp_path / "run")) == len(AutoTokenizer.from_pretrained(trained))


def test_growing_and_going_on_after_a_stop_ends_with_the_same_weights(trained, tuned, new_text, tmp_path):
    shutil.copytree(tuned / "checkpoint-10", tmp_path / "run" / "checkpoint-10")
    train_tiny(new_text, tmp_path / "run", f"--model_name_or_path={trained}", "--resume_from_checkpoint=true")
    resumed, undisturbed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", tuned))
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


# ---- Other models --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """A folder as GPT-2's: its class, with a byte-level BPE tokenizer that has but one special token."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = build_bpe_tokenizer(TEXT, vocab_size=300)
    tokenizer.pad_token, tokenizer.unk_token = None, "<|endoftext|>"
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=32, n_layer=2, n_head=2, **ends)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_gpt2_trains_with_its_own_tokenizer_and_stays_gpt2(gpt2, text_file, tmp_path, capsys):
    flags = [f"--model_name_or_path={gpt2}", "--eval_on_start=true", "--learning_rate=1e-2"]
    train_tiny(text_file, tmp_path / "run", *flags)
    said = capsys.readouterr()
    assert "vocabulary" not in said.out
    assert "loss_type" not in said.err
    log = json.loads((tmp_path / "run" / "run.json").read_text())["log_history"]
    losses = [row["eval_loss"] for row in log if "eval_loss" in row]
    assert losses[-1] < losses[0] - 1
    printed = run_python(
        f"""
from transformers import pipeline
generate = pipeline("text-generation", model={str(tmp_path / "run")!r}, trust_remote_code=False)
text = generate("12 green", max_new_tokens=10)[0]["generated_text"]
print(type(generate.model).__name__, generate.tokenizer.decode(generate.tokenizer("12 grün").input_ids), text)
""",
        tmp_path,
    )
    assert printed.startswith("GPT2LMHeadModel 12 grün 12 green")


def test_a_model_that_does_not_slide_writes_up_to_its_context(gpt2, capsys):
    code, out, err = call(generate.main, f"--model={gpt2}", "--prompt=12 green", "--seed=0", capsys=capsys)
    assert (code, err) == (0, "the text ends where the model's context of 32 tokens does\n")
    assert out.startswith("12 green")
    argv = [f"--model={gpt2}", "--prompt=" + "12 green bottles " * 20]
    refused(generate.main, *argv, capsys=capsys, told=["the model's context of 32"])


def test_a_separator_that_is_also_the_unknown_token_is_not_called_unknown(gpt2, text_file, new_text, tmp_path, capsys):
    flags = [f"--model_name_or_path={gpt2}", "--max_steps=1", "--sample_length=0", f"--output_dir={tmp_path / 'run'}"]
    train.main(["--train_file", str(text_file), str(new_text), *flags])
    assert "vocabulary" not in capsys.readouterr().out


def test_a_model_without_a_stated_context_needs_one(text_file, tmp_path, capsys):
    tokenizer = build_char_tokenizer(TEXT)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    argv = [
        f"--train_file={text_file}",
        f"--model_name_or_path={tmp_path / 'mamba'}",
        f"--output_dir={tmp_path / 'run'}",
    ]
    refused(train.main, *argv, capsys=capsys, told=["MambaForCausalLM", "--context_length"])
    train_tiny(text_file, tmp_path / "run", *argv[1:2], "--context_length=16", "--max_steps=2", "--optimizer=adamw")
    assert results(tmp_path / "run")["steps"] == 2


# ---- Examples ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def answering(tmp_path_factory, trained):
    """The toy model, fine-tuned to answer, and the file that it learnt from."""
    folder = tmp_path_factory.mktemp("answering")
    write(folder / "answers.jsonl", ANSWERS)
    train_tiny(folder / "answers.jsonl", folder / "run", f"--model_name_or_path={trained}", "--max_steps=80")
    return folder / "run"


def test_a_model_that_learnt_completions_ends_them(answering, capsys):
    code, out, _ = call(generate.main, f"--model={answering}", "--prompt=7 green ", "--greedy", capsys=capsys)
    assert (code, out) == (0, "7 green bottles!\n")
    tokenizer = AutoTokenizer.from_pretrained(answering)
    model = AutoModelForCausalLM.from_pretrained(answering)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    text = pipeline("text-generation", model=model, tokenizer=tokenizer)("31 green ", do_sample=False)
    assert text[0]["generated_text"] == "31 green bottles!"


def test_the_record_of_a_run_on_examples_counts_completions_only(answering):
    run = json.loads((answering / "run.json").read_text())
    data, results = run["data"], run["results"]
    assert (data["train_examples"], data["validation_examples"]) == (90, 10)
    assert (data["validation_targets"], data["validation_characters"]) == (10 * 9, 10 * 8)
    assert results["bits_per_character"] == pytest.approx(results["loss"] * 9 / 8 / 0.6931471805599453)
    assert run["prompt"] == "90 green "
    assert run["sample"].startswith("90 green ")
    card = (answering / "README.md").read_text()
    assert "the prompts of its prompts and completions" in card
    assert "90 examples to train, 10 to validate" in card


def test_a_resumed_run_on_examples_ends_with_the_same_weights(trained, answering, tmp_path):
    flags = [f"--model_name_or_path={trained}", "--max_steps=80"]
    newest = max(answering.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    older = next(path for path in answering.glob("checkpoint-*") if path != newest)
    shutil.copytree(older, tmp_path / "run" / older.name)
    train_tiny(answering.parent / "answers.jsonl", tmp_path / "run", *flags, "--resume_from_checkpoint=true")
    resumed, undisturbed = (load_file(folder / "model.safetensors") for folder in (tmp_path / "run", answering))
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


@pytest.fixture(scope="session")
def talking_gpt2(gpt2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("talking")
    flags = [f"--model_name_or_path={gpt2}", "--max_steps=80", "--learning_rate=1e-2"]
    train_tiny(write(folder / "talks.jsonl", TALKS), folder / "run", *flags)
    return folder / "run"


@pytest.mark.parametrize("folder", ["talking", "talking_gpt2"])
def test_a_conversation_is_learnt_and_the_pipeline_chats(folder, request):
    folder = request.getfixturevalue(folder)
    assert (folder / "chat_template.jinja").exists()
    chat = pipeline("text-generation", model=str(folder), trust_remote_code=False)
    (answer,) = chat([{"role": "user", "content": "31 green"}], do_sample=False)
    assert answer["generated_text"][-1] == {"role": "assistant", "content": "bottles!"}


def test_a_model_can_start_from_examples_alone(tmp_path):
    train_tiny(write(tmp_path / "talks.jsonl", TALKS), tmp_path / "run", "--tokenizer=bpe", "--vocab_size=280")
    assert results(tmp_path / "run")["loss"] < 5


# ---- LoRA ----------------------------------------------------------------------------------------------------------


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
    path = write(tmp_path / "answers.jsonl", ANSWERS)
    train_lora(path, tmp_path / "run", trained, "--max_steps=120", "--learning_rate=2e-2", "--lora_r=16")
    argv = [f"--model={tmp_path / 'run'}", "--prompt=7 green ", "--greedy"]
    assert call(generate.main, *argv, capsys=capsys)[1].endswith("7 green bottles!\n")


def test_a_resumed_lora_run_ends_with_the_same_weights(trained, adapter, text_file, tmp_path):
    shutil.copytree(adapter / "checkpoint-10", tmp_path / "run" / "checkpoint-10")
    train_lora(text_file, tmp_path / "run", trained, "--resume_from_checkpoint=true")
    resumed, undisturbed = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "run", adapter))
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def test_an_adapter_of_a_published_model_is_published(trained, text_file, hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    assert call(push_to_hub.main, f"--model={trained}", "--repo_id=ada/base", capsys=capsys)[0] == 0
    train_lora(text_file, tmp_path / "run", "ada/base")
    assert call(push_to_hub.main, f"--model={tmp_path / 'run'}", "--repo_id=ada/lora", capsys=capsys)[0] == 0
    files = hub.server.repo("ada/lora").files()
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "tokenizer.json"} <= files.keys()
    assert not {"config.json", "model.safetensors"} & files.keys()
    card = files["README.md"].decode()
    assert "library_name: peft" in card
    assert "base_model: ada/base" in card
    text = pipeline("text-generation", model="ada/lora")("12 green", max_new_tokens=5)[0]["generated_text"]
    assert text.startswith("12 green")


def test_an_adapter_of_a_model_on_this_machine_is_not_published(adapter, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    argv = [f"--model={adapter}", "--repo_id=ada/lora"]
    refused(push_to_hub.main, *argv, capsys=capsys, told=["adapter", "publish that model", "merge"])
    refused(push_to_hub.main, *argv, "--as=native", capsys=capsys, told=["adapter", "merge"])
    assert not hub.server.repositories


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


# ---- Classification ------------------------------------------------------------------------------------------------


def test_the_pages_classifier_learns_and_loads_without_this_package(trained, tmp_path, monkeypatch, capsys):
    page = (ROOT / "docs" / "fine_tuning.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "ForSequenceClassification" in b)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    shutil.copytree(trained, tmp_path / "out" / "quickstart")
    write(
        tmp_path / "reviews.jsonl",
        [{"text": f"{n} {text}", "label": label} for n in range(60) for text, label in LABELS.items()],
    )
    exec(block, {})
    assert "1.0" in capsys.readouterr().out.splitlines()
    printed = run_python(
        """
from transformers import pipeline
classify = pipeline("text-classification", model="out/reviews", trust_remote_code=True)
print([row["label"] for row in classify(["99 green bottles", "98 should fall"])], classify.model.config.id2label)
""",
        tmp_path,
    )
    assert printed.strip() == "['good', 'bad'] {0: 'bad', 1: 'good'}"


# ---- TRL -----------------------------------------------------------------------------------------------------------


def trl_settings(folder, **settings):
    defaults = {"max_steps": 20, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "report_to": "none"}
    return {"output_dir": str(folder), "use_cpu": True, "bf16": False, "logging_steps": 5, **defaults, **settings}


@pytest.mark.parametrize("rows", [[{"text": line} for line in TEXT.splitlines()], ANSWERS, TALKS])
def test_trls_supervised_trainer_trains_the_model(rows, trained, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    settings = {}
    if "messages" in rows[0]:
        from modeling_gptlite.training.examples import CHAT_TEMPLATE

        tokenizer.chat_template, settings = CHAT_TEMPLATE, {"assistant_only_loss": True}
    args = trl.SFTConfig(**trl_settings(tmp_path, max_length=32, **settings))
    trainer = trl.SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[-1] < losses[0]


def test_trls_preference_trainer_trains_the_model(trained, tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    rows = [{"prompt": f"{n} green ", "chosen": "bottles!", "rejected": "wall,"} for n in range(64)]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    args = trl.DPOConfig(**trl_settings(tmp_path, max_length=32))
    trl.DPOTrainer(model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer).train()
    ids = tokenizer(["7 green bottles!", "7 green wall,"], return_tensors="pt", padding=True, padding_side="right")
    with torch.no_grad():
        log_p = model.cpu().eval()(**ids).logits.log_softmax(-1)[:, 7]
    assert log_p[0, tokenizer.convert_tokens_to_ids("b")] > log_p[1, tokenizer.convert_tokens_to_ids("w")]


def test_the_extra_of_the_messages_exists():
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["finetune"] == ["peft", "trl"]
