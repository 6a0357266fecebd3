"""What is chosen from the hardware: precision, attention, the dtype of Muon's products."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from helpers import ROOT

from modeling_gptlite.training import hardware
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


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a CPU's choice")
@pytest.mark.parametrize("bf16", [True, False])
def test_auto_precision_follows_the_cpu_and_a_given_one_does_not(bf16, tmp_path, monkeypatch):
    cpu(monkeypatch, bf16)
    chosen = [CausalLMTrainingArguments(str(tmp_path), precision=name) for name in ("auto", "fp32", "bf16")]
    assert [hardware.precision(args) for args in chosen] == ["bf16" if bf16 else "fp32", "fp32", "bf16"]


@pytest.mark.parametrize(
    ("device", "bf16", "compiled", "context", "expected"),
    [
        ("cpu", True, False, 256, "short_windows"),
        ("cpu", True, False, 512, None),
        ("cpu", True, True, 256, "short_windows"),
        ("cpu", False, False, 256, None),
        ("cuda", True, False, 256, None),
    ],
)
def test_attention_is_eager_where_the_fused_backward_pass_is_slow(device, bf16, compiled, context, expected):
    args = SimpleNamespace(device=torch.device(device), bf16=bf16, torch_compile=compiled)
    assert hardware.training_attention(args, context) == expected


@pytest.mark.parametrize(
    ("seconds", "compiler", "expected"),
    [(300, "g++", False), (600, "g++", True), (600, "clang++", True), (600, "", False)],
)
def test_compiling_pays_in_a_long_run_where_there_is_a_compiler(seconds, compiler, expected, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("shutil.which", lambda name: name if name == compiler else None)
    assert hardware.compiling_pays(seconds) == expected


def test_all_choices_are_facts_and_one_line(tmp_path, monkeypatch):
    cpu(monkeypatch, bf16=True)
    facts = hardware.hardware_facts(CausalLMTrainingArguments(str(tmp_path), use_cpu=True), context=64)
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
