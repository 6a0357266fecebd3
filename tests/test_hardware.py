"""What is chosen from the hardware: precision, attention, the dtype of Muon's products."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import ARCHITECTURES, ROOT, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from modeling_gptlite.training import hardware
from modeling_gptlite.training.hardware import SHORT_WINDOWS
from modeling_gptlite.training.optim import StackedMuon
from modeling_gptlite.training.trainer import CausalLMTrainingArguments


CPU = torch.device("cpu")


def cpu(monkeypatch, bf16: bool, in_use: str = "AVX512"):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: in_use)


@pytest.mark.parametrize(
    ("bf16", "in_use", "expected"),
    [
        (True, "AVX512", torch.bfloat16),
        (False, "AVX512", torch.float32),
        (True, "AVX2", torch.float32),
        (False, "DEFAULT", torch.float32),
    ],
)
def test_muon_multiplies_in_bf16_only_where_the_cpu_does(bf16, in_use, expected, monkeypatch):
    cpu(monkeypatch, bf16, in_use)
    assert hardware.newton_schulz_dtype(CPU) == expected


def test_the_environment_that_hides_bf16_is_respected():
    program = (
        "import torch; from modeling_gptlite.training.hardware import newton_schulz_dtype as d;"
        "print(d(torch.device('cpu')))"
    )
    hidden = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    result = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **hidden}, cwd=ROOT, capture_output=True, text=True
    )
    assert result.stdout.strip() == "torch.float32", result.stderr


def stepped(bf16, monkeypatch):
    cpu(monkeypatch, bf16)
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(16, 8)) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    StackedMuon(parameters, lr=0.05).step()
    return torch.stack([parameter.detach() for parameter in parameters])


def test_a_step_of_muon_in_fp32_is_that_in_bf16_but_for_rounding(monkeypatch):
    fp32, bf16 = stepped(False, monkeypatch), stepped(True, monkeypatch)
    assert not torch.equal(fp32, bf16)
    torch.testing.assert_close(fp32, bf16, atol=2e-3, rtol=0)


@pytest.mark.parametrize(("major", "uses_bf16"), [(7, False), (8, True)])
def test_bf16_is_for_gpus_that_have_it_in_hardware(major, uses_bf16, monkeypatch):
    """A T4 (compute capability 7.5) emulates it, and says that it supports it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(major=major))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    assert hardware.multiplies_bf16("cuda") == uses_bf16


@pytest.mark.parametrize(
    ("parameters", "bf16", "expected"),
    [(20_000_000, True, "bf16"), (20_000_000, False, "fp32"), (19_999_999, True, "fp32")],
)
def test_a_large_model_is_evaluated_in_the_fastest_precision(parameters, bf16, expected, monkeypatch):
    cpu(monkeypatch, bf16)
    model = SimpleNamespace(num_parameters=lambda: parameters, device=torch.device("cpu"))
    assert hardware.inference_precision(model) == expected


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a CPU's choice")
@pytest.mark.parametrize("bf16", [True, False])
def test_auto_precision_follows_the_cpu_and_a_given_one_does_not(bf16, tmp_path, monkeypatch):
    cpu(monkeypatch, bf16)
    chosen = [CausalLMTrainingArguments(str(tmp_path), precision=name) for name in ("auto", "fp32", "bf16")]
    assert [hardware.precision(args) for args in chosen] == ["bf16" if bf16 else "fp32", "fp32", "bf16"]


@pytest.mark.parametrize(
    ("device", "bf16", "compiled", "context", "own", "expected"),
    [
        ("cpu", True, False, 256, "sdpa", "short_windows"),
        ("cpu", True, False, 1025, "sdpa", None),
        ("cpu", True, True, 256, "flex_attention", "short_windows"),
        ("cpu", False, False, 256, "sdpa", None),
        ("cuda", True, False, 256, "sdpa", None),
        ("cpu", True, False, 256, "eager", None),  # of Gemma 2, which limits the scores
    ],
)
def test_attention_is_eager_where_the_fused_backward_pass_is_slow(device, bf16, compiled, context, own, expected):
    args = SimpleNamespace(device=torch.device(device), bf16=bf16, torch_compile=compiled)
    assert hardware.training_attention(args, context, SimpleNamespace(_attn_implementation=own)) == expected


def test_a_model_that_limits_its_scores_keeps_its_attention():
    config = AutoConfig.for_model("gemma2", num_hidden_layers=1, hidden_size=32, intermediate_size=64, vocab_size=40)
    assert AutoModelForCausalLM.from_config(config).config._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("seconds", "compiler", "expected"),
    [(300, "g++", False), (600, "g++", True), (600, "clang++", True), (600, "", False)],
)
def test_compiling_pays_in_a_long_run_where_there_is_a_compiler(seconds, compiler, expected, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: name if name == compiler else None)
    assert hardware.compiling_pays(seconds) == expected


@pytest.mark.skipif(sys.platform != "linux" or torch.accelerator.is_available(), reason="glibc's memory, on a CPU")
def test_freed_memory_is_kept_for_the_next_step():
    resource = pytest.importorskip("resource")
    hardware.keep_freed_memory()
    faults = []
    for _ in range(5):  # the first finds no freed memory, and a later one may find it too small by some bytes
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(50_000_000)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults) < 5_000  # pages of 4 kB; 200 MB are 48,828


def test_all_choices_are_facts_and_one_line(tmp_path, monkeypatch):
    cpu(monkeypatch, bf16=True)
    facts = hardware.hardware_facts(
        CausalLMTrainingArguments(str(tmp_path), use_cpu=True), 64, tiny_model("modern-1m").config
    )
    assert facts == {
        "precision": "bf16",
        "attention": "short_windows",
        "compiled": False,
        "muon_dtype": "bfloat16",
        "threads": torch.get_num_threads(),
        "processes": 1,
        "device": "cpu",
    }
    assert hardware.describe(facts) == "bf16, not compiled, 1 x cpu"


# ---- Attention on short windows equals eager attention -------------------------------------------------------------


def grouped():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    config = Qwen3Config(vocab_size=65, num_attention_heads=4, num_key_value_heads=2, **sizes)
    return Qwen3ForCausalLM(config)


MODELS = {**{name: (lambda name=name: tiny_model(name)) for name in ARCHITECTURES}, "grouped Qwen3": grouped}
IDS = torch.randint(65, (3, 16), generator=torch.Generator().manual_seed(0))
PADDED = torch.ones(3, 16, dtype=torch.long)
PADDED[0, :5] = PADDED[1, 12:] = 0


def loss_and_gradient(model, attention, **inputs):
    model.set_attn_implementation(attention)
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS, use_cache=False, **inputs).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("mask", [None, PADDED], ids=["causal", "padded"])
@pytest.mark.parametrize("block", [256, 5])
def test_it_computes_what_eager_attention_computes(build, mask, block, monkeypatch):
    monkeypatch.setattr(hardware, "_BLOCK", block)
    model = build().train()
    expected = loss_and_gradient(model, "eager", attention_mask=mask)
    torch.testing.assert_close(loss_and_gradient(model, SHORT_WINDOWS, attention_mask=mask), expected)


def test_packed_texts_do_not_see_each_other():
    model = tiny_model("modern-1m")
    position_ids = torch.cat([torch.arange(7), torch.arange(9)]).expand(3, -1)
    expected = loss_and_gradient(model, "eager", position_ids=position_ids)
    torch.testing.assert_close(loss_and_gradient(model, SHORT_WINDOWS, position_ids=position_ids), expected)


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_a_text_is_continued_as_with_eager_attention(build, monkeypatch):
    monkeypatch.setattr(hardware, "_BLOCK", 5)
    model = build().eval()
    texts = []
    for attention in ("eager", SHORT_WINDOWS):
        model.set_attn_implementation(attention)
        texts.append(model.generate(IDS[:1], max_new_tokens=12, do_sample=False, pad_token_id=0))
    assert torch.equal(*texts)


def test_dropout_is_drawn_in_training_only():
    model = tiny_model("modern-1m", attention_dropout=0.5)
    model.set_attn_implementation(SHORT_WINDOWS)
    evaluated = [model.eval()(IDS).logits for _ in range(2)]
    trained = [model.train()(IDS).logits for _ in range(2)]
    assert torch.equal(*evaluated)
    assert not torch.equal(*trained)


def test_in_bf16_it_stays_close():
    model = tiny_model("modern-1m")
    with torch.autocast("cpu", torch.bfloat16):
        eager, short = (loss_and_gradient(model, name) for name in ("eager", SHORT_WINDOWS))
    torch.testing.assert_close(short, eager, atol=5e-3, rtol=5e-2)
