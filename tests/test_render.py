"""The HTML of the Gradio page."""

import itertools
import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from helpers import tiny_model

from modeling_gptlite.page.render import (
    render_attention,
    render_error,
    render_model,
    render_sample,
    render_status,
    render_token,
)
from modeling_gptlite.page.tracing import Sample, Token, TracedModel, load
from tokenization import build_char_tokenizer


SETTINGS = {"samples": 1, "length": 20, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def traced(trained):
    return load(str(trained))


class Elements(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


EVIL = "<script>alert(1)</script>\"><img src=x onerror=alert(1)>'&"


def test_nothing_that_the_model_or_a_reader_writes_becomes_html():
    sample = Sample([], [Token(EVIL, 0.5, [(EVIL, 0.5)], slice(0, 1))])
    pages = [
        render_sample(EVIL, EVIL, sample, slot=0),
        render_attention(EVIL, [EVIL, "<"], [0.5, 0.5]),
        render_status(EVIL, 3),
        render_error(EVIL),
        render_model(TracedModel(EVIL, tiny_model("modern-1m"), build_char_tokenizer("a"))),
    ]
    for page in pages:
        elements = Elements(page)
        assert not {tag for tag, _ in elements.tags} & {"script", "img"}
        assert not {name for _, attributes in elements.tags for name in attributes if name.startswith("on")}
    assert EVIL in Elements(pages[0]).text


def test_the_alternatives_and_the_rest_make_up_the_whole(traced):
    *_, (sample,) = traced.write(traced.encode("12"), **SETTINGS)
    for token in sample.tokens:
        ((_, attributes),) = Elements(render_token(token)).tags
        thought = json.loads(attributes["data-thought"])
        assert len(thought["best"]) == 5
        assert sum(p for _, p in thought["best"]) + thought["rest"] == pytest.approx(1, abs=1e-9)
        assert thought["p"] == round(token.probability, 4)


def test_the_html_of_a_growing_text_only_grows(traced):
    steps = traced.write(traced.encode("12"), **SETTINGS)
    pages = [render_sample("bottles", "12", samples[0], slot=0) for samples in steps]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(pages))
    assert len(set(pages)) == 20


def test_attention_is_shaded_relative_to_the_largest_weight():
    elements = Elements(render_attention("m", ["a", "\n", "b"], [0.2, 0.05, 0.75]))
    tokens = [attributes for tag, attributes in elements.tags if tag == "i"]
    assert [token["style"] for token in tokens] == ["--w:0.27", "--w:0.07", "--w:1.00"]
    assert [token["data-weight"] for token in tokens] == ["0.2000", "0.0500", "0.7500"]
    assert [token.get("class") for token in tokens] == [None, "newline", None]


def test_the_heading_of_a_model_has_its_loss_if_that_is_known(traced):
    assert f"validation loss {traced.facts['loss']:.4f} nats per character" in render_model(traced)
    assert "loss" not in render_model(replace(traced, facts={}))
