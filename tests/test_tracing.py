"""Generation that records probabilities, alternatives and attention."""

import json
import threading
from collections import Counter

import pytest
import torch
from helpers import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from modeling_gptlite.errors import UserError
from modeling_gptlite.page import tracing
from modeling_gptlite.page.tracing import Sample, TracedModel, draw, load
from tokenization import build_bpe_tokenizer, build_char_tokenizer, build_word_tokenizer


DEFAULTS = {"samples": 1, "length": 60, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def traced(trained):
    return load(str(trained))


def written(traced, prompt="12 green", **settings) -> list[Sample]:
    *_, samples = traced.write(traced.encode(prompt), **{**DEFAULTS, **settings})
    return samples


def test_the_likeliest_text_is_what_the_model_generates_past_its_context_too(traced):
    ids = traced.tokenizer("12 green", return_tensors="pt")["input_ids"]
    expected = traced.model.generate(ids, max_new_tokens=100, do_sample=False)[0, ids.shape[1] :]
    (sample,) = written(traced, "12 green", length=100, top_k=1)
    assert sample.text == traced.tokenizer.decode(expected)


def test_of_a_prompt_longer_than_the_context_the_newest_part_is_read(traced):
    prompt = "12 green bottles standing on the wall,\nand if one"
    (sample,) = written(traced, prompt, length=3)
    with torch.no_grad():
        logits = traced.model(torch.tensor([traced.encode(prompt)[-32:]])).logits[0, -1]
    assert sample.tokens[0].best[0][1] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-4)
    assert len(sample.tokens) == 3


def test_every_token_comes_with_what_the_model_itself_thought(traced):
    (sample,) = written(traced, "12", length=20, temperature=1.7, top_k=3)
    for position, token in enumerate(sample.tokens, start=2):
        with torch.no_grad():
            logits = traced.model(torch.tensor([sample.ids[:position]])).logits[0, -1]
        probabilities = logits.softmax(-1)
        assert token.text == traced.tokenizer.decode([sample.ids[position]])
        assert token.probability == pytest.approx(probabilities[sample.ids[position]].item(), abs=1e-4)
        assert [p for _, p in token.best] == pytest.approx(probabilities.topk(5).values.tolist(), abs=1e-4)


def test_a_seed_repeats_the_text_and_leaves_the_global_generator_alone(traced):
    before = torch.get_rng_state()
    texts = [written(traced, seed=seed)[0].text for seed in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_i_is_the_text_of_seed_plus_i(traced):
    samples = written(traced, samples=3, seed=10)
    assert [s.text for s in samples] == [written(traced, seed=10 + i)[0].text for i in range(3)]


def test_sixty_four_readers_do_not_disturb_each_other(traced):
    expected = {seed: written(traced, seed=seed, length=20)[0].text for seed in range(64)}
    found = {}

    def read(seed):
        found[seed] = written(traced, seed=seed, length=20)[0].text

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
    drawn = Counter(draw(logits, temperature, top_k, top_p, generator) for _ in range(4000))
    for token, probability in enumerate(expected.tolist()):
        assert drawn[token] / 4000 == pytest.approx(probability, abs=0.03)
        assert probability > 0 or token not in drawn


def test_a_text_ends_where_the_model_predicts_its_end(traced, monkeypatch):
    whole = written(traced, length=60, samples=4, temperature=2.0)
    end = whole[0].ids[len(traced.encode("12 green")) + 10]
    monkeypatch.setattr(traced.model.generation_config, "eos_token_id", [end])
    ended = written(traced, length=60, samples=4, temperature=2.0)
    for before, after in zip(whole, ended, strict=True):
        ids = before.ids[len(traced.encode("12 green")) :]
        length = ids.index(end) if end in ids else len(ids)
        assert after.tokens == before.tokens[:length]
        assert after.has_ended == (end in ids)


def test_an_unseen_character_is_named(traced):
    with pytest.raises(UserError, match=r"vocabulary of bottles: 'ï' \(U\+00EF\), '☃' \(U\+2603\)\."):
        traced.encode("12 naï ☃☃")


def test_an_unseen_character_is_named_without_an_unknown_token(traced):
    tokenizer = build_char_tokenizer("abc", special_tokens=False)
    bare = TracedModel("bare", tiny_model("modern-1m", vocab_size=3), tokenizer)
    with pytest.raises(UserError, match="vocabulary of bare: 'd'"):
        bare.encode("ad")
    with pytest.raises(UserError, match="write a prompt"):
        bare.encode("")
    assert len(written(bare, "ab", length=5)[0].tokens[0].best) == 3


def test_an_empty_prompt_begins_a_text(traced):
    assert traced.encode("") == [traced.tokenizer.bos_token_id]


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (1, 2), (99, 99)])
def test_attention_is_that_of_a_forward_pass_over_the_whole_window(traced, layer, head):
    ids = traced.encode("12 green bottles standing on")
    tokens, weights = traced.attention(ids, layer, head)
    with torch.no_grad():
        attentions = traced.model(torch.tensor([ids]), output_attentions=True).attentions
    assert "".join(tokens) == "12 green bottles standing on"
    torch.testing.assert_close(torch.tensor(weights), attentions[min(layer, 1)][0, min(head, 3), -1])


def test_the_first_token_attends_to_itself(traced):
    assert traced.attention(traced.encode("1"), 0, 0) == (["1"], [1.0])


def test_a_token_knows_the_window_that_it_was_written_from(traced):
    (sample,) = written(traced, "12 green", length=60)
    windows = [sample.ids[token.window] for token in sample.tokens]
    assert [len(window) for window in windows] == [*range(8, 33), *range(16, 33), *range(16, 33), 16]
    for token, window in zip(sample.tokens, windows, strict=True):
        with torch.no_grad():
            best = traced.model(torch.tensor([window])).logits[0, -1].softmax(-1).max().item()
        assert token.best[0][1] == pytest.approx(best, abs=1e-4)


# ---- Tokens that are not characters --------------------------------------------------------------------------------


def drawn(tokenizer, prompt, text, monkeypatch) -> Sample:
    """What is written if the tokens of `text` are drawn after the prompt."""
    model = TracedModel("model", tiny_model("modern-1m", vocab_size=len(tokenizer)), tokenizer)
    before, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + text)["input_ids"]
    rest = iter(ids[len(before) :])
    monkeypatch.setattr(tracing, "draw", lambda *args: next(rest))
    *_, (sample,) = model.write(before, **{**DEFAULTS, "length": len(ids) - len(before)})
    return sample


@pytest.mark.parametrize(
    ("text", "tokens"), [("🎉", ["", "", "", "🎉"]), ("é!", ["", "é", "!"]), ("日本", ["", "", "日", "", "", "本"])]
)
def test_a_character_of_several_tokens_is_the_text_of_the_last_one(text, tokens, monkeypatch):
    sample = drawn(build_bpe_tokenizer("a", vocab_size=259), "a", text, monkeypatch)
    assert [token.text for token in sample.tokens] == tokens


def test_a_tokenizer_that_decodes_no_space_before_a_text_keeps_those_within_it(monkeypatch):
    backend = Tokenizer(models.WordLevel({"▁green": 0, "▁bottle": 1, "s": 2}))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    sample = drawn(tokenizer, "green", " bottle green", monkeypatch)
    assert "green" + sample.text == tokenizer.decode(sample.ids) == "green bottle green"


# ---- What is known about a model -----------------------------------------------------------------------------------


def test_a_model_has_the_loss_of_its_run_and_a_checkpoint_that_of_its_step(trained, traced):
    record = json.loads((trained / "run.json").read_text())
    assert traced.facts == {"loss": record["results"]["loss"], "prompt": record["prompt"]}
    state = json.loads((trained / "checkpoint-10" / "trainer_state.json").read_text())
    early = load(str(trained / "checkpoint-10"))
    assert early.label == "bottles/checkpoint-10"
    assert early.facts["loss"] == state["log_history"][-1]["eval_loss"] > traced.facts["loss"]


def test_a_model_without_a_record_or_with_a_damaged_one_has_no_facts(tmp_path, traced):
    traced.model.save_pretrained(tmp_path / "model")
    traced.tokenizer.save_pretrained(tmp_path / "model")
    assert load(str(tmp_path / "model")).facts == {}
    for content in ("{", "[]"):
        (tmp_path / "model" / "run.json").write_text(content)
        assert load(str(tmp_path / "model")).facts == {}


def test_the_unit_is_what_the_vocabulary_holds(traced):
    assert traced.unit == "character"
    assert TracedModel("words", None, build_word_tokenizer("a green bottle")).unit == "token"
