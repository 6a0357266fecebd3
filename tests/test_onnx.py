"""interchange/onnx.py: the layout that transformers.js and optimum load, and what ONNX Runtime computes from it."""

import json
import os
import shutil
import subprocess

import pytest
import torch
from helpers import ROOT, load_saved, save_model, tiny_model, tokenizer_of_kind

from modeling_gptlite.interchange import Material, onnx, write
from scripts import convert


pytest.importorskip("transformers", minversion="5.23")
onnxruntime = pytest.importorskip("onnxruntime")
for package in ("onnx", "onnxscript"):
    pytest.importorskip(package)

MODELS = {
    "Qwen3": ("modern-1m", {}),
    "Llama": ("modern-1m", {"qk_norm": False}),
    "GPT-2": ("nanogpt-10m", {}),
    "our own": ("modern-1m", {"norm_type": "layernorm"}),
}


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """A model's folder and that of its export: context 128, and no end of text, so that it writes on."""
    place = tmp_path_factory.mktemp("onnx")
    preset, overrides = MODELS[request.param]
    save_model(place / "in", preset, max_position_embeddings=128, eos_token_id=None, **overrides)
    convert.main(["--to", "onnx", str(place / "in"), str(place / "out"), "--check", "false"])
    return place / "in", place / "out"


def greedy_in_pytorch(folder, ids, count, **settings):
    model, _ = load_saved(folder)
    return model.generate(ids, do_sample=False, max_new_tokens=count, pad_token_id=0, **settings)


def axes(values):
    return {value.name: value.shape for value in values}


def test_names_and_axes_are_those_that_loaders_look_for(exported):
    session = onnxruntime.InferenceSession(exported[1] / "onnx/model.onnx")
    tokens, total = ["batch_size", "sequence_length"], "total_sequence_length"
    past, present = ["batch_size", 4, "past_sequence_length", 8], ["batch_size", 4, total, 8]
    caches = [f"{layer}.{kind}" for layer in range(2) for kind in ("key", "value")]
    assert axes(session.get_inputs()) == {
        "input_ids": tokens,
        "attention_mask": ["batch_size", total],
        "position_ids": tokens,
        **{f"past_key_values.{cache}": past for cache in caches},
    }
    assert axes(session.get_outputs()) == {
        "logits": [*tokens, len(tokenizer_of_kind("char"))],
        **{f"present.{cache}": present for cache in caches},
    }


def test_the_folder_has_what_loaders_read(exported):
    names = {str(path.relative_to(exported[1])) for path in exported[1].rglob("*") if path.is_file()}
    assert names - {"configuration_gptlite.py"} == {
        "onnx/model.onnx",
        "onnx/model_quantized.onnx",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


@pytest.mark.parametrize("name", [onnx.MODEL_FILE, onnx.QUANTIZED_FILE])
def test_a_graph_holds_no_path_of_this_machine(name, exported):
    content = (exported[1] / name).read_bytes()
    assert b"site-packages" not in content
    assert str(ROOT).encode() not in content


def test_left_padded_batches_and_cached_steps_give_the_same_greedy_text(exported):
    ids, mask = torch.randint(0, 30, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    mask[0, :3] = 0
    expected = greedy_in_pytorch(exported[0], ids, 8, attention_mask=mask)
    session = onnxruntime.InferenceSession(exported[1] / "onnx/model.onnx")
    past = {
        node.name: torch.zeros(2, node.shape[1], 0, node.shape[3]).numpy()
        for node in session.get_inputs()
        if node.name.startswith("past_key_values")
    }
    text, new = ids, ids
    for _ in range(8):
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
        feed = {"input_ids": new.numpy(), "attention_mask": mask.numpy(), "position_ids": positions.numpy()}
        outputs = session.run(None, feed | past)
        outputs = dict(zip([node.name for node in session.get_outputs()], outputs, strict=True))
        past = {name: outputs[name.replace("past_key_values", "present")] for name in past}
        new = torch.from_numpy(outputs["logits"])[:, -1:].argmax(-1)
        text, mask = torch.cat([text, new], 1), torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
    assert torch.equal(text, expected)


def test_the_logits_are_compared_in_both_graphs(here, capsys):
    save_model(here / "in", "modern-1m")
    convert.main(["--to", "onnx", "in", "out"])
    out = capsys.readouterr().out
    assert "ONNX Runtime: logits differ by at most" in out
    assert "ONNX Runtime, int8: logits differ by at most" in out


def test_int8_weights_make_a_smaller_file(tmp_path):
    model = tiny_model("modern-1m", hidden_size=128, num_hidden_layers=1)
    write(Material(model, tokenizer_of_kind("char")), tmp_path, "onnx")
    full, quantized = (os.path.getsize(tmp_path / name) for name in (onnx.MODEL_FILE, onnx.QUANTIZED_FILE))
    assert quantized < full / 2


def test_weights_of_a_large_model_are_beside_the_graph_and_the_configuration_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "LARGEST_FILE", 1000)
    model = tiny_model("modern-1m", vocab_size=len(tokenizer_of_kind("char")))
    write(Material(model, tokenizer_of_kind("char")), tmp_path, "onnx")
    assert (tmp_path / "onnx/model.onnx_data").stat().st_size > 4 * model.num_parameters() * 0.9
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["transformers.js_config"]["use_external_data_format"] == {"model.onnx": True}
    ids = torch.arange(20)[None]
    torch.testing.assert_close(onnx.onnx_logits(tmp_path, ids), model(ids).logits, atol=1e-5, rtol=1e-5)


IN_NODE = """
const { AutoModelForCausalLM, AutoTokenizer, Tensor, env } = require("@huggingface/transformers");
const [folder, dtype, prompt, count] = process.argv.slice(1);
env.allowRemoteModels = false;
env.localModelPath = require("path").dirname(folder);
const name = require("path").basename(folder);
(async () => {
  const tokenizer = await AutoTokenizer.from_pretrained(name);
  const model = await AutoModelForCausalLM.from_pretrained(name, { dtype });
  const inputs = tokenizer(prompt);
  const output = await model.generate({ ...inputs, max_new_tokens: Number(count), do_sample: false });
  console.log(JSON.stringify(output.tolist()[0].map(Number)));
})();
"""


def in_transformers_js(folder, prompt, count, dtype="fp32"):
    """Greedy tokens by transformers.js, which node finds through `NODE_PATH`."""
    node = shutil.which("node")
    if not node or subprocess.run([node, "-e", "require('@huggingface/transformers')"], capture_output=True).returncode:
        pytest.skip("needs node, and NODE_PATH with a folder that has @huggingface/transformers")
    argv = [node, "-e", IN_NODE, str(folder), dtype, prompt, str(count)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_transformers_js_writes_the_same_100_greedy_tokens(exported):
    if "GPTLite" in (exported[1] / "config.json").read_text():
        pytest.skip("transformers.js does not know the class GPTLite")
    ids = tokenizer_of_kind("char")("12 green bottles", return_tensors="pt")["input_ids"]
    expected = greedy_in_pytorch(exported[0], ids, 100)[0].tolist()
    assert in_transformers_js(exported[1], "12 green bottles", 100) == expected


def test_transformers_js_loads_the_int8_graph(exported):
    if "GPTLite" in (exported[1] / "config.json").read_text():
        pytest.skip("transformers.js does not know the class GPTLite")
    assert len(in_transformers_js(exported[1], "12 green bottles", 20, "q8")) == 16 + 20
