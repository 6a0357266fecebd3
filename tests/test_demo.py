"""The demo page, as far as it goes without a browser."""

import itertools

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts import demo


def test_the_text_grows_and_ends_as_the_model_generates_it(trained):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    texts = list(demo.stream(model, tokenizer, "12 green", temperature=0.8, length=60, seed=3))
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))
    assert len(texts) > 3
    torch.manual_seed(3)
    ids = model.generate(tokenizer("12 green", return_tensors="pt")["input_ids"], max_new_tokens=60)
    assert texts[-1] == tokenizer.decode(ids[0], skip_special_tokens=True)


def test_a_failure_while_generating_ends_the_text(trained, monkeypatch):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained), AutoTokenizer.from_pretrained(trained)
    monkeypatch.setattr(model, "generate", lambda *_, **__: None)
    assert "".join(demo.stream(model, tokenizer, "12", temperature=0.8, length=60, seed=3)) == ""


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--model=x"])
    assert "gptlite[demo]" in capsys.readouterr().err
