"""Whatever the generation arguments: texts have their length, the cache changes nothing, and mistakes are one line."""

import torch
from helpers import ARCHITECTURES, call, fuzzed, tiny_model
from hypothesis import given
from hypothesis import strategies as st

from scripts import generate


MODELS = {preset: tiny_model(preset).double() for preset in ARCHITECTURES}  # in fp64 no rounding decides a token
CONTEXT = 32

prompts = st.lists(st.integers(1, 64), min_size=1, max_size=CONTEXT + 10)
sampling = st.fixed_dictionaries(
    {},
    optional={
        "do_sample": st.booleans(),
        "temperature": st.floats(0.05, 5.0),
        "top_k": st.integers(0, 70),
        "top_p": st.floats(0.01, 1.0),
        "min_p": st.floats(0.0, 0.5),
        "typical_p": st.floats(0.2, 1.0),
        "repetition_penalty": st.floats(0.5, 2.0),
        "no_repeat_ngram_size": st.integers(0, 4),
        "eos_token_id": st.integers(0, 64),
        "num_return_sequences": st.integers(1, 3),
        "num_beams": st.integers(1, 3),
        "renormalize_logits": st.booleans(),
    },
)


def write(model, batch, length, arguments, **others):
    """The continuations of left-padded prompts."""
    longest = max(map(len, batch))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
    torch.manual_seed(0)
    texts = model.generate(ids, attention_mask=mask, max_new_tokens=length, pad_token_id=0, **arguments, **others)
    assert torch.equal(texts[:, :longest], ids.repeat_interleave(len(texts) // len(ids), dim=0))
    return texts[:, longest:]


@fuzzed(200)
@given(
    preset=st.sampled_from(ARCHITECTURES),
    batch=st.lists(prompts, min_size=1, max_size=3),
    length=st.integers(1, 40),
    arguments=sampling,
    cache=st.sampled_from([{"use_cache": False}, {"cache_implementation": "static"}]),
)
def test_every_cache_writes_the_same_tokens_of_the_asked_length(preset, batch, length, arguments, cache):
    beams, several = arguments.get("num_beams", 1), arguments.get("num_return_sequences", 1)
    if several > beams and (beams > 1 or not arguments.get("do_sample")):
        arguments = {**arguments, "num_return_sequences": 1}
    texts = write(MODELS[preset], batch, length, arguments)
    assert len(texts) == len(batch) * arguments.get("num_return_sequences", 1)
    assert texts.shape[1] <= length
    if "eos_token_id" not in arguments:
        assert texts.shape[1] == length
    if beams == 1:
        assert torch.equal(write(MODELS[preset], batch, length, arguments, **cache), texts)


SENSIBLE = {
    "prompt": st.text("0123 abdegilnorst", max_size=50),
    "max_new_tokens": st.integers(1, 50),
    "num_samples": st.integers(1, 4),
    "temperature": st.floats(1e-6, 1e6),
    "top_k": st.integers(0, 100),
    "top_p": st.floats(1e-6, 1),
    "greedy": st.booleans(),
    "stop_at_eos": st.booleans(),
    "seed": st.integers(0, (1 << 32) - 1),
    "device": st.sampled_from(["cpu", "cpu:0"]),
    "dtype": st.sampled_from(["auto", "float32", "bfloat16", "float16", "int8"]),
}
wild = (
    st.integers(-2, 50)
    | st.floats()
    | st.text(max_size=10)
    | st.sampled_from(["nan", "inf", "1e-300", "", "-0", "meta", "cuda", str(1 << 64)])
)
sensible_flags = st.fixed_dictionaries({}, optional=SENSIBLE)
wild_flags = st.tuples(sensible_flags, st.sampled_from(sorted({*SENSIBLE} - {"num_samples"})), wild).map(
    lambda drawn: {**drawn[0], drawn[1]: drawn[2]}
)


@fuzzed(100)
@given(flags=sensible_flags | wild_flags)
def test_the_command_writes_the_prompt_and_more_or_one_line(flags, trained, capsys):
    argv = [f"--{name}={value}" for name, value in {"prompt": "1", "max_new_tokens": 9, **flags}.items()]
    code, out, err = call(generate.main, f"--model={trained}", *argv, capsys=capsys)
    if code == 0:
        assert str(flags.get("prompt", "1")) in out
    else:
        assert (code, out) == (2, "")
        (line,) = err.strip().splitlines()
        assert line.startswith("error: ")
