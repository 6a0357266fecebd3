"""`runs/model.py`: new models, saved models that learn new characters, models of other classes."""

import json
import shutil

import pytest
import torch
from helpers import (
    TEXT,
    call,
    load_saved,
    refused,
    results,
    run_python,
    tiny_model,
    train_tiny,
)
from safetensors.torch import load_file
from tokenizers import models
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    MambaConfig,
    MambaForCausalLM,
)

from modeling_gptlite import GPTLiteConfig
from modeling_gptlite.data.sources import Source
from modeling_gptlite.runs.model import ModelError, build_model, check_saved, load_or_build_tokenizer
from modeling_gptlite.runs.settings import ModelArguments
from modeling_gptlite.runs.train import start_from
from scripts import evaluate, generate, train
from tokenization import add_characters, build_char_tokenizer, encode_corpus, tokenizer_state


NEW_TEXT = TEXT.replace("bottles", "Flaschen für Zoë") * 2


@pytest.fixture(scope="session")
def new_text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "flaschen.txt"
    path.write_text(NEW_TEXT, encoding="utf-8")
    return path


# ---- New characters -------------------------------------------------------------------------------------------------


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
def test_a_model_that_grows_thinks_of_old_text_as_before(preset, tmp_path):
    tokenizer, ids = build_char_tokenizer("abc"), torch.tensor([[0, 1, 2, 1, 0]])
    saved = tiny_model(preset, vocab_size=len(tokenizer))
    saved.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    args = ModelArguments(model_name_or_path=str(tmp_path))
    tokenizer, added = load_or_build_tokenizer(args, Source("test", [["aéz"]]))
    model = build_model(args, tokenizer, added).eval()
    rows = saved.get_input_embeddings().weight
    with torch.no_grad():
        before, after = saved(ids).logits, model(ids).logits
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


@pytest.mark.parametrize("special_tokens", [True, False])
def test_tokens_that_a_user_added_keep_their_ids_beside_new_characters(special_tokens, tmp_path):
    tokenizer = build_char_tokenizer("abc", special_tokens)
    tokenizer.add_tokens(["<|user|>", "é"])
    before = tokenizer.get_vocab()
    assert add_characters(tokenizer, "<|user|>aéz€") == ["z", "€"]
    assert tokenizer.get_vocab() == before | {"z": len(before), "€": len(before) + 1}
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = [before["<|user|>"], 0, before["é"], len(before), len(before) + 1]
    assert encode_corpus("<|user|>aéz€", tokenizer).tolist() == loaded("<|user|>aéz€").input_ids == ids
    assert tokenizer_state(loaded) == tokenizer_state(tokenizer)  # the ids in the cache belong to both


def test_a_model_fine_tuned_with_added_tokens_evaluates_as_it_was_trained(trained, tmp_path, monkeypatch):
    model, tokenizer = load_saved(trained)
    tokenizer.add_tokens(["<|user|>", "<|bot|>"])
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    text = tmp_path / "chat.txt"
    text.write_text("<|user|>12 grün €<|bot|>bottles\n" * 60, encoding="utf-8")
    train_tiny(text, tmp_path / "run", f"--model_name_or_path={tmp_path / 'base'}")
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path / "empty"))
    evaluate.main([f"--model={tmp_path / 'run'}", f"--train_file={text}", f"--output={tmp_path / 'found.json'}"])
    (row,) = json.loads((tmp_path / "found.json").read_text())["models"]
    assert row["loss"] == pytest.approx(results(tmp_path / "run")["loss"], abs=1e-4)


def test_a_tokenizer_that_is_another_one_after_it_is_saved_is_refused():
    tokenizer = build_char_tokenizer("abc")
    tokenizer.add_tokens(["<|user|>"])
    vocabulary = {token: i for token, i in tokenizer.get_vocab().items() if token != "<|user|>"} | {"é": 7}
    tokenizer.backend_tokenizer.model = models.BPE(vocabulary, merges=[], unk_token="<|unk|>")
    with pytest.raises(ModelError, match=r"other ids to '<\|user\|>'"):
        check_saved(tokenizer)


def test_a_tokenizer_without_a_file_that_is_saved_with_the_model_is_refused():
    with pytest.raises(ModelError, match=r"ByT5Tokenizer has no tokenizer.json, which training needs"):
        check_saved(ByT5Tokenizer())


# ---- Other models ---------------------------------------------------------------------------------------------------


def test_gpt2_trains_with_its_own_tokenizer_and_stays_gpt2(gpt2, text_file, tmp_path, capsys):
    flags = [f"--model_name_or_path={gpt2}", "--learning_rate=1e-2", "--freeze_embeddings=false"]
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
    assert code == 0
    assert "at the model's context length" in err
    assert out.startswith("12 green")
    argv = [f"--model={gpt2}", "--prompt=" + "12 green bottles " * 20]
    refused(generate.main, *argv, capsys=capsys, told=["the model's context length of 32"])


def test_a_separator_that_is_also_the_unknown_token_is_not_called_unknown(gpt2, text_file, new_text, tmp_path, capsys):
    flags = [f"--model_name_or_path={gpt2}", "--max_steps=1", "--sample_length=0", f"--output_dir={tmp_path / 'run'}"]
    train.main(["--train_file", str(text_file), str(new_text), *flags])
    assert "vocabulary" not in capsys.readouterr().out


def test_a_model_without_a_stated_context_gets_one(text_file, tmp_path):
    tokenizer = build_char_tokenizer(TEXT)
    config = MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "mamba")
    tokenizer.save_pretrained(tmp_path / "mamba")
    settings = {"train_file": str(text_file), "model_name_or_path": str(tmp_path / "mamba"), "max_steps": 2}
    start_from(**settings, output_dir=str(tmp_path / "run"), sample_length=0, eval_sample_length=0).train()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"]["context_length"] == 768
    evaluate.main([f"--model={tmp_path / 'run'}", f"--train_file={text_file}", "--num_samples=0"])
    train_tiny(text_file, tmp_path / "short", f"--model_name_or_path={tmp_path / 'mamba'}", "--context_length=16")
    assert results(tmp_path / "short")["steps"] == 20


def test_tied_weights_are_not_reported_as_missing(gpt2, text_file, tmp_path, caplog):
    train_tiny(text_file, tmp_path / "run", f"--model_name_or_path={gpt2}", "--max_steps=10")
    assert "missing keys" not in caplog.text


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(text_file, tmp_path, monkeypatch, capsys):
    # transformers would warn of each special token outside of the vocabulary
    monkeypatch.setattr(GPTLiteConfig, "from_preset", lambda *_, **__: pytest.fail("a configuration is built"))
    argv = [f"--train_file={text_file}", f"--output_dir={tmp_path / 'run'}", '--model_overrides={"vocab_size": 5}']
    refused(train.main, *argv, capsys=capsys, told=["vocab_size", "at least the 34 tokens", "got 5"])
    assert not (tmp_path / "run").exists()
