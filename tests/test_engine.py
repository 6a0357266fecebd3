"""engine/: the model in ONNX Runtime gives the same logits and texts, and its graph is built when it must be."""

import json
import sys
from pathlib import Path

import pytest
import torch
from helpers import REPO, files, load_saved, push, save_model, shaken, tiny_config
from huggingface_hub import snapshot_download
from torch.testing import assert_close
from transformers import TextIteratorStreamer, pipeline

from modeling_gptlite.engine import EngineError, in_engine, load_fast
from modeling_gptlite.engine.graph import ACTIVATIONS, build_graph, quantize
from modeling_gptlite.errors import UserError
from modeling_gptlite.files import cache_dir
from modeling_gptlite.interchange import ConversionError
from modeling_gptlite.interchange.native import to_qwen3


pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
EVERY_BIAS = {"norm_type": "layernorm", "norm_bias": True, "lm_head_bias": True, "mlp_bias": True}
MODELS = {
    "modern": ("modern-1m", {"head_dim": 16}),
    "small heads": ("modern-1m", {}),
    "grouped queries": ("modern-1m", {"head_dim": 32, "num_key_value_heads": 2}),
    "modern with biases": ("modern-1m", {"head_dim": 16, "attention_bias": True, "qk_norm": False, **EVERY_BIAS}),
    "gpt2": ("gpt2-124m", {}),
    "nanogpt": ("nanogpt-10m", {}),
    "classic": ("classic-10m", {}),
}
PROMPTS = ["12 green bottles", "1", "wall,\nand if one should fall: 12 green bottles standing on the wall"]


@pytest.fixture(scope="module", params=MODELS)
def models(request, tmp_path_factory):
    """The same model in PyTorch and in the engine, in float32, with its tokenizer; its context is 32 tokens."""
    preset, overrides = MODELS[request.param]
    folder = save_model(tmp_path_factory.mktemp("engine") / "model", preset, eos_token_id=None, **overrides)
    model, tokenizer = load_saved(folder)
    return model, load_fast(folder, int8=False), tokenizer


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model", "modern-1m", head_dim=16, eos_token_id=None)


def test_logits_are_equal(models):
    model, fast, tokenizer = models
    inputs = tokenizer(["12 green bottles", "99 green bottle:"], return_tensors="pt")
    assert_close(fast(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert_close(fast(**inputs, logits_to_keep=2).logits, model(**inputs).logits[:, -2:], atol=1e-5, rtol=1e-5)


SETTINGS = {
    "greedy": {"do_sample": False},
    "without cache": {"do_sample": False, "use_cache": False},
    "sampled": {"do_sample": True, "num_return_sequences": 3},
    "beams": {"do_sample": False, "num_beams": 3},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["one text", "padded batch"])
def test_texts_are_equal_past_the_context(prompts, settings, models):
    *both, tokenizer = models
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    texts = []
    for model in both:
        torch.manual_seed(0)
        texts.append(model.generate(**inputs, max_new_tokens=60, **settings))
    assert torch.equal(*texts)


def test_several_tokens_continue_from_the_cache(models):
    model, fast, tokenizer = models
    ids = tokenizer("12 green bottles standing", return_tensors="pt")["input_ids"]
    first = fast(ids[:, :10])
    assert_close(
        fast(ids[:, 10:], past_key_values=first.past_key_values).logits, model(ids).logits[:, 10:], atol=1e-5, rtol=1e-5
    )


def test_assisted_generation_gives_the_same_text(models):
    _, fast, tokenizer = models
    inputs = tokenizer("12 green", return_tensors="pt")
    settings = {"max_new_tokens": 15, "do_sample": False}
    assert torch.equal(
        fast.generate(**inputs, **settings, prompt_lookup_num_tokens=3), fast.generate(**inputs, **settings)
    )


def test_the_pipeline_and_streamers_take_it(folder, caplog):
    model, tokenizer = load_saved(folder)
    fast = load_fast(folder, int8=False)
    settings = {"max_new_tokens": 40, "do_sample": False}
    texts = [pipeline("text-generation", model=m, tokenizer=tokenizer)("12 green", **settings) for m in (model, fast)]
    assert texts[0] == texts[1]
    assert "not supported" not in caplog.text
    streamer = TextIteratorStreamer(tokenizer)
    fast.generate(**tokenizer("12 green", return_tensors="pt"), **settings, streamer=streamer)
    assert "".join(streamer) == texts[0][0]["generated_text"]


def test_sampling_leaves_the_cores_to_the_engine(folder):
    fast, before, during = load_fast(folder), torch.get_num_threads(), []

    def see(ids, scores):
        during.append(torch.get_num_threads())
        return scores

    ids, threads = torch.zeros(1, 1, dtype=torch.long), max(before, 2)
    torch.set_num_threads(threads)
    try:
        fast.generate(ids, max_new_tokens=2, logits_processor=[see])
        with pytest.raises(ValueError, match="max_new_tokens"):
            fast.generate(ids, max_new_tokens=-1)
        assert (during, torch.get_num_threads()) == ([1, 1], threads)
    finally:
        torch.set_num_threads(before)


def test_generation_settings_are_those_of_the_folder(folder):
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True, "temperature": 0.3}))
    assert load_fast(folder).generation_config.temperature == 0.3


def test_int8_is_smaller_and_nearly_the_same(tmp_path):
    folder = save_model(tmp_path, "modern-1m", hidden_size=128, head_dim=32)
    model, _ = load_saved(folder)
    load_fast(folder, int8=False)
    fast = load_fast(folder)
    ids = torch.arange(30)[None]
    difference = (fast(ids).logits - model(ids).logits).abs().max() / model(ids).logits.abs().max()
    assert 0 < difference < 0.05
    sizes = [(folder / "engine" / name).stat().st_size for name in ("int8.onnx", "float32.onnx")]
    assert sizes[0] < sizes[1] / 2.5


def test_quantized_weights_are_within_half_a_step():
    weight = torch.randn(5, 70, generator=torch.Generator().manual_seed(0)).numpy()
    weight[1, :40] = 0
    quantized, scales = quantize(weight)
    restored = ((quantized.astype("float32") - 128) * scales[..., None]).reshape(5, -1)[:, :70]
    assert (abs(restored - weight) <= scales.repeat(32, axis=1)[:, :70] / 2 + 1e-7).all()


# ---- The file -------------------------------------------------------------------------------------------------------


def logits(model):
    return model(torch.arange(20)[None]).logits


def test_the_graph_is_built_once(folder):
    load_fast(folder)
    before = (folder / "engine/int8.onnx").stat().st_mtime_ns
    load_fast(folder)
    assert (folder / "engine/int8.onnx").stat().st_mtime_ns == before
    assert [path.name for path in (folder / "engine").iterdir()] == ["int8.onnx"]


def test_other_weights_are_noticed(folder):
    load_fast(folder, int8=False)
    other = shaken("modern-1m", seed=1, head_dim=16, vocab_size=load_saved(folder)[0].config.vocab_size)
    other.save_pretrained(folder)
    assert_close(logits(load_fast(folder, int8=False)), logits(other), atol=1e-5, rtol=1e-5)


def test_another_configuration_is_noticed(folder):
    load_fast(folder, int8=False)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 100.0
    (folder / "config.json").write_text(json.dumps(config))
    assert_close(logits(load_fast(folder, int8=False)), logits(load_saved(folder)[0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("content", [b"", b"damaged"])
def test_a_damaged_file_is_built_again(content, folder):
    load_fast(folder, int8=False)
    (folder / "engine/float32.onnx").write_bytes(content)
    assert_close(logits(load_fast(folder, int8=False)), logits(load_saved(folder)[0]), atol=1e-5, rtol=1e-5)
    assert (folder / "engine/float32.onnx").stat().st_size > 1000


def test_a_folder_that_cannot_be_written_works(folder):
    (folder / "engine").write_text("")  # mkdir fails
    assert_close(logits(load_fast(folder, int8=False)), logits(load_saved(folder)[0]), atol=1e-5, rtol=1e-5)


def test_the_graph_of_a_repository_is_kept_outside_of_the_hubs_cache(trained, hub, capsys):
    push(trained, capsys=capsys)
    fast = load_fast(REPO, int8=False)
    assert_close(logits(fast), logits(load_saved(trained)[0]), atol=1e-5, rtol=1e-5)
    snapshot = Path(snapshot_download(REPO, allow_patterns="config.json"))
    assert not (snapshot / "engine").exists()
    (kept,) = (cache_dir() / "engine").glob("*/float32.onnx")
    before = kept.stat().st_mtime_ns
    load_fast(snapshot, int8=False)
    assert kept.stat().st_mtime_ns == before


def test_a_model_in_memory_leaves_no_file(folder):
    before = files(folder)
    model, _ = load_saved(folder)
    fast = in_engine(model, int8=False)
    assert_close(logits(fast), logits(model), atol=1e-5, rtol=1e-5)
    assert fast.generation_config is model.generation_config
    assert files(folder) == before


# ---- Refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [("modern-1m", {"head_dim": 4}, "multiple of 8"), ("nanogpt-10m", {"hidden_act": "mish"}, "hidden_act='mish'")],
)
def test_a_model_without_kernels_is_refused(preset, overrides, message):
    with pytest.raises(EngineError, match=message):
        build_graph(shaken(preset, **overrides))


def test_a_field_that_the_graph_does_not_know_is_refused():
    model = shaken("modern-1m", head_dim=16)
    model.config.attention_temperature = 0.5
    with pytest.raises(ConversionError, match="attention_temperature"):
        build_graph(model)


def test_the_activations_are_those_of_the_configuration():
    for activation in ACTIVATIONS:
        assert tiny_config("modern-1m", hidden_act=activation).hidden_act == activation


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_a_model_is_refused(missing, folder):
    (folder / missing).unlink()
    with pytest.raises(EngineError, match="not the folder of a model"):
        load_fast(folder)


def test_another_class_is_refused(folder):
    to_qwen3(load_saved(folder)[0]).save_pretrained(folder)
    with pytest.raises(EngineError, match="is a Qwen3ForCausalLM"):
        load_fast(folder)


def test_an_adapter_is_refused(folder):
    peft = pytest.importorskip("peft")
    model = load_saved(folder)[0]
    model.add_adapter(peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(EngineError, match="adapter"):
        in_engine(model)


@pytest.mark.parametrize(("name", "message"), [("nowhere/at/all", "no such folder"), ("ada/nothing", "ada/nothing")])
def test_a_name_without_a_model_is_refused(name, message, hub):
    with pytest.raises(UserError, match=message):
        load_fast(name)


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"needs onnxruntime: pip install 'gptlite\[export\]'"):
        load_fast(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_ids": torch.zeros(1, 40, dtype=torch.long)}, "40 tokens do not fit the context of 32"),
        ({"output_attentions": True}, "does not take output_attentions"),
        ({"labels": torch.zeros(1, 4, dtype=torch.long)}, "does not take labels"),
        ({"position_ids": torch.tensor([[0, 1, 0, 1]])}, "no packed sequences"),
        ({"attention_mask": torch.zeros(1, 4, dtype=torch.long)}, "no tokens"),
    ],
)
def test_what_the_engine_does_not_compute_is_refused(arguments, message, folder):
    with pytest.raises(EngineError, match=message):
        load_fast(folder)(**{"input_ids": torch.zeros(1, 4, dtype=torch.long), **arguments})


def test_it_does_not_save_weights_that_it_does_not_hold(folder, tmp_path):
    with pytest.raises(EngineError, match="does not hold the weights"):
        load_fast(folder).save_pretrained(tmp_path / "copy")
