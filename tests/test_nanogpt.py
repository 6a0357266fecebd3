"""interchange/nanogpt.py: `ckpt.pt` and `meta.pkl` are imported with equal logits, or refused."""

import re

import pytest
import torch
from helpers import TEXT, call, load_saved, nanogpt_checkpoint, nanogpt_logits, refused, save_nanogpt, tokenizer_of_kind
from torch.testing import assert_close

from modeling_gptlite.interchange.nanogpt import from_nanogpt
from scripts import convert, generate


CHARACTERS = sorted(set(TEXT))
IDS = torch.randint(0, 24, (2, 20), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("where", ["beside", "--meta"])
def test_a_checkpoint_is_imported_with_its_characters(where, here, capsys):
    checkpoint = save_nanogpt(here / "in", CHARACTERS[::-1])  # meta.pkl decides the order of the ids
    argv = ["--from", "nanogpt", "in", "out"]
    if where == "--meta":
        (here / "in/meta.pkl").rename(here / "elsewhere.pkl")
        argv = ["--from=nanogpt", "in/ckpt.pt", "out", "--meta=elsewhere.pkl"]
    convert.main(argv)
    model, tokenizer = load_saved(here / "out")
    ids = tokenizer(TEXT[:30], return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == [CHARACTERS[::-1].index(character) for character in TEXT[:30]]
    assert tokenizer.decode(ids[0]) == TEXT[:30]
    assert_close(model(ids).logits, nanogpt_logits(checkpoint, ids), atol=1e-5, rtol=1e-5)


def test_an_imported_model_generates_as_sample_py_does_and_past_the_context(here, capsys):
    save_nanogpt(here / "in")
    convert.main(["--from", "nanogpt", "in", "out"])
    model, tokenizer = load_saved(here / "out")
    settings = model.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k) == (True, 0.8, 200)
    assert len(model.generate(**tokenizer(TEXT[:30], return_tensors="pt"), max_new_tokens=40)[0]) == 70


def test_an_imported_model_of_other_letters_generates_them(here, capsys):
    save_nanogpt(here / "in", list("бвг"))
    convert.main(["--from", "nanogpt", "in", "out"])
    capsys.readouterr()
    code, out, err = call(generate.main, "--model=out", "--prompt=бв", "--max_new_tokens=20", capsys=capsys)
    assert code == 0, err
    assert re.fullmatch("бв[бвг]{20}\n", out)


def test_a_checkpoint_without_characters_needs_a_tokenizer(here, capsys):
    save_nanogpt(here / "in", vocab_size=384)
    (here / "in/meta.pkl").unlink()
    tokenizer_of_kind("bpe").save_pretrained(here / "tokenizer")
    refused(convert.main, "--from=nanogpt", "in", "out", capsys=capsys, told=["meta.pkl", "--meta", "--tokenizer"])
    convert.main(["--from", "nanogpt", "in", "out", "--tokenizer", "tokenizer"])
    model, tokenizer = load_saved(here / "out")
    assert model.config.vocab_size == 384
    assert model.config.bos_token_id == tokenizer.bos_token_id == 317
    assert tokenizer.get_vocab() == tokenizer_of_kind("bpe").get_vocab()


@pytest.mark.parametrize("vocab_size", [65, 128], ids=["as many rows as tokens", "padded"])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."], ids=["plain", "compiled"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_nanogpt_checkpoint_has_the_same_logits_here(bias, prefix, vocab_size):
    plain = nanogpt_checkpoint(bias, vocab_size)
    model = from_nanogpt(nanogpt_checkpoint(bias, vocab_size, prefix))
    assert_close(model(IDS).logits, nanogpt_logits(plain, IDS), atol=1e-5, rtol=1e-5)
    assert model.config.attention_dropout == model.config.hidden_dropout == model.config.embedding_dropout == 0.1


def test_a_checkpoint_of_the_first_nanogpt_has_no_bias_switch_and_may_hold_masks():
    checkpoint = nanogpt_checkpoint()
    expected = nanogpt_logits(checkpoint, IDS)
    del checkpoint["model_args"]["bias"], checkpoint["model_args"]["dropout"]
    for layer in range(2):
        checkpoint["model"][f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
    assert_close(from_nanogpt(checkpoint)(IDS).logits, expected, atol=1e-5, rtol=1e-5)


def without(checkpoint, part, name):
    del checkpoint[part][name]
    return checkpoint


def having(checkpoint, part, **values):
    checkpoint[part] |= values
    return checkpoint


WEIGHT = "transformer.h.1.mlp.c_fc.weight"
BAD_CHECKPOINTS = {
    "another program's": ({"state_dict": {}}, "lacks model_args or model"),
    "no weights": ({"model_args": {}}, "lacks model_args or model"),
    "missing weight": (without(nanogpt_checkpoint(), "model", WEIGHT), f"lacks {WEIGHT}"),
    "extra weight": (having(nanogpt_checkpoint(), "model", extra=torch.ones(1)), "has the unknown extra"),
    "wrong shape": (
        having(nanogpt_checkpoint(), "model", **{WEIGHT: torch.ones(32, 128)}),
        rf"{WEIGHT} has the shape \(32, 128\), the configuration asks for \(128, 32\)",
    ),
    "no tensor": (having(nanogpt_checkpoint(), "model", **{WEIGHT: 3}), rf"{WEIGHT} has the shape \(\)"),
    "fewer layers": (having(nanogpt_checkpoint(), "model_args", n_layer=1), "has the unknown transformer.h.1"),
    "more layers": (having(nanogpt_checkpoint(), "model_args", n_layer=3), "lacks transformer.h.2"),
    "biases without the switch": (having(nanogpt_checkpoint(), "model_args", bias=False), "has the unknown .*bias"),
    "another context": (having(nanogpt_checkpoint(), "model_args", block_size=64), "wpe.weight has the shape"),
    "missing argument": (without(nanogpt_checkpoint(), "model_args", "n_head"), "model_args lacks n_head"),
    "extra argument": (having(nanogpt_checkpoint(), "model_args", rotary=True), "model_args has the unknown rotary"),
    "no number": (having(nanogpt_checkpoint(), "model_args", n_head=None), "n_head=None"),
    "heads do not divide": (having(nanogpt_checkpoint(), "model_args", n_head=5), "multiple of num_attention_heads"),
    "untied": (
        having(nanogpt_checkpoint(), "model", **{"lm_head.weight": torch.ones(65, 32)}),
        "lm_head.weight and transformer.wte.weight differ",
    ),
    "not causal": (
        having(nanogpt_checkpoint(), "model", **{"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32)}),
        "not nanoGPT's causal mask",
    ),
}


@pytest.mark.parametrize(("checkpoint", "message"), BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS)
def test_a_checkpoint_that_is_not_nanogpts_is_refused(checkpoint, message):
    with pytest.raises(ValueError, match=message):
        from_nanogpt(checkpoint)
