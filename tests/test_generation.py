"""Generation: the same text with every cache, of any length, alone and in a batch."""

import pytest
import torch
from helpers import ARCHITECTURES, tiny_model
from torch.testing import assert_close


every_architecture = pytest.mark.parametrize("preset", ARCHITECTURES)
CONTEXT = 32


def random_ids(*shape, seed=1):
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(seed))


def greedy(model, ids, **kwargs):
    return model.generate(ids, max_new_tokens=kwargs.pop("max_new_tokens", 90), do_sample=False, **kwargs)


@every_architecture
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("other", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_every_cache_writes_the_same_text_past_the_context(preset, padded, other):
    model, ids = tiny_model(preset), random_ids(3, 12)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :5] = mask[1, :2] = 0
    expected = greedy(model, ids, attention_mask=mask)
    assert expected.shape == (3, 102)
    assert torch.equal(greedy(model, ids, attention_mask=mask, **other), expected)


@every_architecture
def test_past_the_context_the_next_token_follows_from_the_newest_half(preset):
    model, ids = tiny_model(preset), random_ids(2, 10)
    output = greedy(model, ids, max_new_tokens=60, output_logits=True, return_dict_in_generate=True)
    for step, logits in enumerate(output.logits):
        length = 10 + step
        kept = length
        while kept > CONTEXT:  # full: the newest half stays, and grows again
            kept = CONTEXT // 2 + (kept - CONTEXT - 1)
        window = output.sequences[:, length - kept : length]
        assert_close(logits, model(window).logits[:, -1], atol=1e-5, rtol=1e-4)


@every_architecture
def test_past_the_context_padding_is_not_read(preset):
    model, ids = tiny_model(preset), random_ids(2, 30)
    mask = torch.ones_like(ids)
    mask[0, :25] = 0
    output = greedy(
        model, ids, attention_mask=mask, max_new_tokens=20, output_logits=True, return_dict_in_generate=True
    )
    start = 17  # of the window for a text of 33 tokens: 16 of them stay
    row = output.sequences[0:1, 25:33]  # of which the first row's text has 8
    assert_close(output.logits[3][0:1], model(row).logits[:, -1], atol=1e-5, rtol=1e-4)
    assert_close(output.logits[3][1:2], model(output.sequences[1:2, start:33]).logits[:, -1], atol=1e-5, rtol=1e-4)


@every_architecture
def test_a_prompt_longer_than_the_context_is_read_from_its_end(preset):
    model, ids = tiny_model(preset), random_ids(1, 100)
    output = greedy(model, ids, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    start = model._window_start(torch.tensor(100))
    assert 100 - CONTEXT <= start < 100 - CONTEXT // 2 + 1
    assert_close(output.logits[0], model(ids[:, start:]).logits[:, -1])


@every_architecture
def test_a_row_in_a_padded_batch_writes_what_it_writes_alone(preset):
    model, ids = tiny_model(preset), random_ids(1, 7)
    batch = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.long), ids], dim=1), random_ids(1, 12, seed=2)])
    mask = torch.ones_like(batch)
    mask[0, :5] = 0
    together = greedy(model, batch, attention_mask=mask, max_new_tokens=20)
    assert torch.equal(together[0, 5:], greedy(model, ids, max_new_tokens=20)[0])


@every_architecture
@pytest.mark.parametrize("cache", [{}, {"use_cache": False}, {"cache_implementation": "static"}])
def test_rows_of_any_length_in_a_padded_batch_write_past_the_context_what_they_write_alone(preset, cache):
    model, lengths = tiny_model(preset), (1, 20, 63)
    prompts = [random_ids(1, length, seed=length) for length in lengths]
    batch, mask = torch.zeros(2, len(lengths), max(lengths), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        batch[row, -prompt.shape[1] :], mask[row, -prompt.shape[1] :] = prompt[0], 1
    together = greedy(model, batch, attention_mask=mask, **cache)
    for row, prompt in zip(together, prompts, strict=True):
        assert torch.equal(row[max(lengths) :], greedy(model, prompt)[0, prompt.shape[1] :])


def test_the_text_can_be_continued_with_its_cache():
    model, ids = tiny_model("modern-1m"), random_ids(1, 10)
    first = greedy(model, ids, max_new_tokens=50, return_dict_in_generate=True)
    again = greedy(model, first.sequences, max_new_tokens=20, past_key_values=first.past_key_values)
    assert torch.equal(again, greedy(model, ids, max_new_tokens=70))


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beam_search_goes_past_the_context(settings):
    model, ids = tiny_model("modern-1m"), random_ids(2, 10)
    cached = greedy(model, ids, max_new_tokens=40, **settings)
    assert torch.equal(cached, greedy(model, ids, max_new_tokens=40, use_cache=False, **settings))


def test_sampling_with_a_seed_repeats_itself():
    model, ids = tiny_model("modern-1m"), random_ids(1, 4)
    texts = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        texts.append(model.generate(ids, max_new_tokens=50, do_sample=True))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


def test_embeddings_are_read_once_only():
    model, ids = tiny_model("modern-1m"), random_ids(1, 10)
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(greedy(model, None, inputs_embeds=embeds), greedy(model, ids)[:, 10:])
    embeds = model.get_input_embeddings()(random_ids(1, 30))  # the kept half would begin within them
    with pytest.raises(ValueError, match="past the context of 32 tokens"):
        greedy(model, None, inputs_embeds=embeds)


def test_a_prompt_can_be_read_in_chunks():
    model, ids = tiny_model("modern-1m"), random_ids(2, 20)
    assert torch.equal(greedy(model, ids, prefill_chunk_size=6), greedy(model, ids))
    with pytest.raises(ValueError, match="without prefill_chunk_size"):
        greedy(model, random_ids(2, 50), prefill_chunk_size=6)


def test_assisted_generation_stays_within_the_context():
    model, assistant, ids = tiny_model("modern-1m"), tiny_model("modern-1m", seed=1), random_ids(1, 5)
    expected = greedy(model, ids, max_new_tokens=20)
    assert torch.equal(greedy(model, ids, max_new_tokens=20, assistant_model=assistant), expected)
    with pytest.raises(ValueError, match="assisted generation does not reach past"):
        greedy(model, ids, assistant_model=assistant)


def test_nothing_is_said_about_an_exceeded_length(caplog):
    from transformers.utils import logging

    logging.warning_once.cache_clear()  # else what was said in another test is not said again
    logging.get_logger("transformers").addHandler(caplog.handler)
    greedy(tiny_model("modern-1m"), random_ids(1, 4))
    assert not caplog.records
