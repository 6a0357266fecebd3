"""interchange/nanogpt.py: `ckpt.pt` and `meta.pkl` in both directions."""

import pickle

import pytest
import torch
from helpers import TEXT, load_saved, nanogpt_logits, refused, save_model, save_nanogpt, shaken, tokenizer_of_kind
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.testing import assert_close
from transformers import PreTrainedTokenizerFast

from modeling_gptlite.interchange import Material, write
from scripts import convert


CHARACTERS = sorted(set(TEXT))
ARGUMENTS = {"n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout"}


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


def test_an_export_is_plain_python_and_names_its_data_folder(here, capsys):
    save_model(here / "in", "nanogpt-10m")
    convert.main(["--to", "nanogpt", "in", "out"])
    assert "data/out" in capsys.readouterr().out
    checkpoint = torch.load(here / "out/ckpt.pt", weights_only=True)
    assert set(checkpoint["model_args"]) == ARGUMENTS
    assert checkpoint["config"] == {"dataset": "out"}
    meta = pickle.loads((here / "out/meta.pkl").read_bytes())
    assert meta["itos"] == {index: token for token, index in meta["stoi"].items()}
    assert [meta["stoi"][character] for character in "12 —"] == tokenizer_of_kind("char")("12 —")["input_ids"]
    assert list(meta["itos"].values())[-3:] == ["<|endoftext|>", "<|pad|>", "<|unk|>"]


def test_gpt2s_tokenizer_needs_no_meta(tmp_path):
    words = {15496: "Hello", 995: "Ġworld", 50256: "<|endoftext|>"}
    backend = Tokenizer(models.WordLevel({words.get(index, f"#{index}"): index for index in range(50257)}, "#0"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    model = shaken("nanogpt-10m", vocab_size=50304, hidden_size=8, num_hidden_layers=1)
    write(Material(model, tokenizer), tmp_path, "nanogpt")
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]
