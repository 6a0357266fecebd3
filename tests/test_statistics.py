"""Statistics of predictions and of generated text: every number against another way to compute it."""

import math

import numpy as np
import pytest
import torch
from helpers import TEXT, tiny_model

from modeling_gptlite.data.windows import EvaluationWindows
from modeling_gptlite.evaluation import statistics
from tokenization import build_char_tokenizer, encode_corpus


# ---- Predictions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [2, 17, 50])
def test_every_target_is_scored_as_by_a_plain_loop(tokens):
    model = tiny_model("modern-1m", initializer_range=0.5)
    ids = np.random.default_rng(0).integers(65, size=tokens).astype(np.uint16)
    scores = statistics.score_tokens(model, EvaluationWindows(ids, 16), batch_size=2)
    expected = []
    with torch.no_grad():
        for target in range(1, tokens):
            start = (target - 1) // 16 * 16
            logits = model(torch.tensor(ids[None, start:target].astype(np.int64))).logits[0, -1]
            probabilities = logits.softmax(-1)
            guess = int(probabilities.argmax())
            expected.append((-math.log(probabilities[ids[target]]), float(probabilities[guess]), guess == ids[target]))
    losses, confidences, hits = zip(*expected, strict=True)
    assert scores.losses == pytest.approx(losses, rel=1e-4)
    assert scores.confidences == pytest.approx(confidences, rel=1e-4)
    assert scores.hits.tolist() == list(hits)


def test_the_interval_of_independent_values_is_the_textbooks():
    values = np.random.default_rng(1).normal(2.0, 1.0, size=20_000)
    low, high = statistics.confidence_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(20_000), rel=0.25)


def test_the_interval_knows_that_neighbours_are_alike():
    values = np.random.default_rng(1).normal(2.0, 1.0, size=20_000)
    alike = np.repeat(values[:200], 100)
    low, high = statistics.confidence_interval(alike)
    assert high - low == pytest.approx(2 * 1.96 / math.sqrt(200), rel=0.25)


def test_the_interval_of_a_single_value_is_that_value():
    assert statistics.confidence_interval(np.array([1.5])) == (1.5, 1.5)


def test_the_calibration_error_is_the_weighted_gap_of_the_bins():
    confidences = np.array([0.95, 0.95, 0.95, 0.95, 0.5, 1.0])
    hits = np.array([True, True, True, False, True, True])
    # 15 bins: the four of 0.95 with the one of 1.0 in the last, 0.5 in the eighth
    expected = (abs(4 - 4.8) + abs(1 - 0.5)) / 6
    assert statistics.expected_calibration_error(confidences, hits) == pytest.approx(expected)


def test_honest_confidence_has_no_calibration_error():
    random = np.random.default_rng(0)
    confidences = random.uniform(size=200_000)
    assert statistics.expected_calibration_error(confidences, random.uniform(size=200_000) < confidences) < 0.01


# ---- Continuations -------------------------------------------------------------------------------------------------


def test_continuations_begin_at_evenly_spaced_places_and_stand_beside_the_true_text():
    tokenizer = build_char_tokenizer(TEXT)
    ids = encode_corpus(TEXT[:1000], tokenizer)
    model = tiny_model("modern-1m", vocab_size=len(tokenizer))
    texts, references = statistics.write_continuations(model, tokenizer, ids, count=3, prompt_tokens=10, length=50)
    assert references == [TEXT[10:60], TEXT[480:530], TEXT[950:1000]]
    assert [len(tokenizer(text)["input_ids"]) for text in texts] == [50, 50, 50]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_end_of_text_is_written_like_any_token_and_ends_nothing(batch_size):
    tokenizer = build_char_tokenizer(TEXT)
    ids = encode_corpus(TEXT[:1000], tokenizer)
    model = tiny_model("modern-1m", vocab_size=len(tokenizer), tie_word_embeddings=False)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits are equal, but for
        model.lm_head.weight.zero_()
        model.lm_head.weight[tokenizer.eos_token_id].fill_(1.0)
    generated, generate = [], model.generate
    model.generate = lambda prompts, **settings: generated.append(len(prompts)) or generate(prompts, **settings)
    texts, _ = statistics.write_continuations(model, tokenizer, ids, 3, 10, length=200, batch_size=batch_size)
    assert [len(tokenizer(text)["input_ids"]) for text in texts] == [200, 200, 200]
    assert any(tokenizer.eos_token in text for text in texts)
    assert generated == ([3] if batch_size is None else [2, 1])


def test_a_model_that_knows_the_text_by_heart_continues_it():
    """Every id is followed by the next one: a model that knows this writes the reference."""
    tokenizer = build_char_tokenizer("abcdefgh", special_tokens=False)
    model = tiny_model("nanogpt-10m", vocab_size=8, hidden_size=32, tie_word_embeddings=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.model.embed_tokens.weight[:, :8] = 100 * torch.eye(8)
        model.lm_head.weight[:, :8] = 100 * torch.eye(8).roll(1, dims=0)
    ids = np.tile(np.arange(8), 20)
    texts, references = statistics.write_continuations(model, tokenizer, ids, 5, prompt_tokens=4, length=60)
    assert texts == references
    scores = statistics.similarity(texts, references)
    assert (scores["bleu"], scores["chrf"]) == (pytest.approx(100), pytest.approx(100))


def test_similarity_is_sacrebleus_own():
    sacrebleu = pytest.importorskip("sacrebleu")
    texts, references = ["the cat sat", "on a mat"], ["the cat was sitting", "on the mat"]
    scores = statistics.similarity(texts, references)
    assert scores["bleu"] == sacrebleu.corpus_bleu(texts, [references], tokenize="char").score
    assert scores["chrf"] == sacrebleu.corpus_chrf(texts, [references]).score
    assert "tok:char" in scores["bleu_signature"]


def test_words_that_the_ends_cut_do_not_count():
    assert statistics.whole_words("ing, and th'other: Ho! 'Tis na") == ["and", "th'other", "ho", "tis"]


@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_the_vocabulary_does_not_depend_on_how_the_text_is_cut(size):
    text = "Now is the winter of our discontent\nmade glorious"
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    assert statistics.vocabulary(pieces) == {*text.lower().split()}


def test_distinct_and_known_words_are_shares():
    passages = [["to", "be", "or", "not", "to", "be"], ["to", "be"]]
    assert statistics.distinct(passages, 1) == 4 / 8
    assert statistics.distinct(passages, 2) == 4 / 6
    assert statistics.known_words(passages, {"to", "be"}) == 6 / 8
    assert statistics.distinct([[]], 2) == statistics.known_words([], set()) == 0


@pytest.mark.parametrize("seed", range(20))
def test_the_longest_copy_is_what_a_search_by_hand_finds(seed):
    random = np.random.default_rng(seed)
    text, *texts = ("".join(random.choice(list("abé𝕏"), size=size)) for size in (300, 30, 0, 50))
    pieces = [text[start : start + 7] for start in range(0, 300, 7)]
    spans = {t[i:j] for t in texts for i in range(len(t)) for j in range(i, len(t) + 1)}
    copy = statistics.longest_copy(texts, pieces)
    assert len(copy) == max(len(span) for span in spans if span in text)
    assert copy in text
    assert any(copy in t for t in texts)


def test_a_text_learnt_by_heart_is_one_long_copy():
    assert statistics.longest_copy([f"xyz{TEXT[100:500]}xyz"], [TEXT]) == TEXT[100:500]
    assert statistics.longest_copy(["xyz"], ["abc"]) == ""
