"""The demo page, as far as it goes without a browser; `test_page.py` has the rest."""

import itertools
import json
import re
import threading
from collections import Counter
from html.parser import HTMLParser

import pytest
import torch
from conftest import tiny_model
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from scripts import demo
from scripts.demo import Sample, Token
from tokenization import build_char_tokenizer


DEFAULTS = {"samples": 1, "length": 60, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def writer(trained):
    return demo.load(str(trained), trust_remote_code=False)


def written(writer, prompt="12 green", **settings) -> list[Sample]:
    *_, samples = writer.write(writer.encode(prompt), **{**DEFAULTS, **settings})
    return samples


def text(sample: Sample) -> str:
    return "".join(token.text for token in sample.tokens)


# ---- Writing -------------------------------------------------------------------------------------------------------


def test_the_likeliest_text_is_what_the_model_generates_past_its_context_too(writer):
    ids = writer.tokenizer("12 green", return_tensors="pt")["input_ids"]
    expected = writer.model.generate(ids, max_new_tokens=100, do_sample=False)[0, ids.shape[1] :]
    (sample,) = written(writer, "12 green", length=100, top_k=1)
    assert text(sample) == writer.tokenizer.decode(expected)


def test_of_a_prompt_longer_than_the_context_the_newest_part_is_read(writer):
    prompt = "12 green bottles standing on the wall,\nand if one"
    (sample,) = written(writer, prompt, length=3)
    with torch.no_grad():
        logits = writer.model(torch.tensor([writer.encode(prompt)[-32:]])).logits[0, -1]
    assert sample.tokens[0].best[0][1] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-4)
    assert len(sample.tokens) == 3


def test_every_token_comes_with_what_the_model_itself_thought(writer):
    (sample,) = written(writer, "12", length=20, temperature=1.7, top_k=3)
    for position, token in enumerate(sample.tokens, start=2):
        with torch.no_grad():
            logits = writer.model(torch.tensor([sample.ids[:position]])).logits[0, -1]
        probabilities = logits.softmax(-1)
        assert token.text == writer.tokenizer.decode([sample.ids[position]])
        assert token.probability == pytest.approx(probabilities[sample.ids[position]].item(), abs=1e-4)
        assert [p for _, p in token.best] == pytest.approx(probabilities.topk(5).values.tolist(), abs=1e-4)


def test_a_seed_repeats_the_text_and_leaves_the_global_generator_alone(writer):
    before = torch.get_rng_state()
    texts = [text(written(writer, seed=seed)[0]) for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_i_is_the_text_of_seed_plus_i(writer):
    samples = written(writer, samples=3, seed=10)
    assert [text(s) for s in samples] == [text(written(writer, seed=10 + i)[0]) for i in range(3)]


def test_sixty_four_readers_do_not_disturb_each_other(writer):
    expected = {seed: text(written(writer, seed=seed, length=20)[0]) for seed in range(64)}
    found = {}

    def read(seed):
        found[seed] = text(written(writer, seed=seed, length=20)[0])

    threads = [threading.Thread(target=read, args=[seed]) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1, 0, 1), (0.5, 0, 1), (1, 3, 1), (1, 0, 0.7), (2, 4, 0.8)]
)
def test_tokens_are_drawn_as_transformers_draws_them(temperature, top_k, top_p):
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.5, -3.0])
    scores = TemperatureLogitsWarper(float(temperature))(None, logits[None])
    scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
    expected = TopPLogitsWarper(float(top_p))(None, scores).softmax(-1)[0]
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(demo.draw(logits, temperature, top_k, top_p, generator) for _ in range(4000))
    for token, probability in enumerate(expected.tolist()):
        assert drawn[token] / 4000 == pytest.approx(probability, abs=0.03)
        assert probability > 0 or token not in drawn


def test_an_unseen_character_is_named(writer):
    with pytest.raises(ValueError, match=r"bottles has never seen 'ï' \(U\+00EF\), '☃' \(U\+2603\)\."):
        writer.encode("12 naï ☃☃")


def test_an_unseen_character_is_named_without_an_unknown_token(writer):
    tokenizer = build_char_tokenizer("abc", special_tokens=False)
    bare = demo.Writer("bare", tiny_model("modern-1m", vocab_size=3), tokenizer)
    with pytest.raises(ValueError, match="never seen 'd'"):
        bare.encode("ad")
    with pytest.raises(ValueError, match="write a prompt"):
        bare.encode("")
    assert len(written(bare, "ab", length=5)[0].tokens[0].best) == 3


def test_an_empty_prompt_begins_a_text(writer):
    assert writer.encode("") == [writer.tokenizer.bos_token_id]


def test_attention_is_the_models(writer):
    ids = writer.encode("12 green bottles standing on")
    tokens, weights = writer.attention(ids, layer=1, head=2)
    with torch.no_grad():
        expected = writer.model(torch.tensor([ids]), output_attentions=True).attentions[1][0, 2]
    assert "".join(tokens) == " green bottles standing on"[-24:]
    torch.testing.assert_close(torch.tensor(weights), expected[-24:, -24:])
    assert writer.attention(ids, layer=99, head=99) == writer.attention(ids, layer=1, head=3)
    assert len(writer.attention(ids * 3, layer=0, head=0)[0]) == demo.ATTENTION_TOKENS


# ---- HTML ----------------------------------------------------------------------------------------------------------


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
    sample = Sample([], [Token(EVIL, 0.5, [(EVIL, 0.5)])])
    pages = [
        demo.render_sample(EVIL, EVIL, sample),
        demo.render_attention(EVIL, [EVIL, "<"], [[1.0, 0.0], [0.5, 0.5]]),
        demo.render_status(EVIL, is_error=True),
    ]
    for page in pages:
        elements = Elements(page)
        assert not {tag for tag, _ in elements.tags} & {"script", "img"}
        assert not {name for _, attributes in elements.tags for name in attributes if name.startswith("on")}
    assert EVIL in Elements(pages[0]).text


def test_the_alternatives_and_the_rest_make_up_the_whole(writer):
    for token in written(writer, length=50)[0].tokens:
        ((_, attributes),) = Elements(demo.render_token(token)).tags
        thought = json.loads(attributes["data-thought"])
        assert len(thought["best"]) == 5
        assert sum(p for _, p in thought["best"]) + thought["rest"] == pytest.approx(1, abs=1e-9)
        assert thought["p"] == round(token.probability, 4)


def test_the_html_of_a_growing_text_only_grows(writer):
    steps = writer.write(writer.encode("12"), **{**DEFAULTS, "length": 10})
    pages = [demo.render_sample("bottles", "12", samples[0]) for samples in steps]
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(pages))
    assert len(set(pages)) == 10


def test_a_row_of_the_picture_tells_its_weights():
    page = demo.render_attention("m", ["a", "\n", " "], [[1, 0, 0], [0.25, 0.75, 0], [0.2, 0.3, 0.5]])
    told = re.findall(r"<title>(.*?)</title>", page)
    assert told == [
        "a looks at a: 100.0%",
        "↵ looks at a: 25.0%",
        "↵ looks at ↵: 75.0%",
        "␣ looks at a: 20.0%",
        "␣ looks at ↵: 30.0%",
        "␣ looks at ␣: 50.0%",
    ]


# ---- The command ---------------------------------------------------------------------------------------------------


def refused(*argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        demo.main([*map(str, argv)])
    err = capsys.readouterr().err.strip()
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    assert "gptlite[demo]" in refused("--model=x", capsys=capsys)


def test_mistakes_are_told_in_one_line(trained, tmp_path, capsys):
    pytest.importorskip("gradio")
    assert "nowhere/at/all" in refused("--model=nowhere/at/all", capsys=capsys)
    assert "two to compare" in refused("--model", "a", "b", "c", capsys=capsys)
    assert "--port" in refused("--model=a", "--port=many", capsys=capsys)
    assert "--modle" in refused("--modle=a", "--model=b", capsys=capsys)


def test_a_checkpoint_is_called_by_its_run(trained, writer):
    assert writer.label == "bottles"
    assert demo.load(str(trained / "checkpoint-10"), False).label == "bottles/checkpoint-10"
