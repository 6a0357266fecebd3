"""The memory that a run needs is predicted; the limits of this process are known."""

import sys

import pytest
import torch
from helpers import run_python
from transformers import AutoConfig

from modeling_gptlite.training import memory
from modeling_gptlite.training.arguments import CausalLMTrainingArguments
from modeling_gptlite.training.memory import free_memory, training_memory


SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "vocab_size": 50_000,
}


def needed(kind="llama", windows=4, context=128, lora=None, freezes=False, more=None, **settings):
    config = AutoConfig.for_model(kind, tie_word_embeddings=True, **SIZES, **(more or {}))
    args = CausalLMTrainingArguments("unused", per_device_train_batch_size=windows, **settings)
    return training_memory(config, args, context, lora, freezes)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gpt_neox", "gptlite"])
def test_more_tokens_need_more_memory_and_every_way_to_save_it_less(kind):
    whole = needed(kind)
    assert whole > 16 * 50_000 * 64  # weights, gradients and two moments, of the embeddings alone
    assert needed(kind, windows=64) > whole
    assert needed(kind, windows=64, gradient_checkpointing=True) < needed(kind, windows=64)
    assert needed(kind, freezes=True) < whole - 8 * 50_000 * 64
    assert needed(kind, lora=4) - memory.PEFT_BYTES < needed(kind, freezes=True)


@pytest.mark.parametrize(
    ("kind", "more"),
    [("granite", {"logits_scaling": 4.0}), ("cohere", {}), ("gemma2", {"final_logit_softcapping": 30.0})],
)
def test_all_logits_count_where_they_are_scaled_or_capped(kind, more):
    """Such a head is not computed in chunks, neither in training nor in evaluation."""
    in_chunks = needed("llama", windows=4, per_device_eval_batch_size=1)
    whole = needed(kind, windows=4, per_device_eval_batch_size=1, more=more)
    assert whole - in_chunks > 8 * 4 * 128 * 50_000
    evaluated = needed(kind, windows=4, per_device_eval_batch_size=16, more=more)
    assert evaluated - whole > 8 * 8 * 128 * 50_000


def test_rotary_angles_that_depend_on_the_length_are_predicted():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
    assert needed("llama", more={"rope_parameters": rope}) == needed("llama")


def test_a_prediction_allocates_nothing(tmp_path):
    printed = run_python(
        f"""
import sys
sys.path.insert(0, {str(memory.Path(memory.__file__).parents[2])!r})
import psutil
from transformers import AutoConfig
from modeling_gptlite.training.arguments import CausalLMTrainingArguments
from modeling_gptlite.training.memory import training_memory
config = AutoConfig.for_model("llama", hidden_size=4096, intermediate_size=11008, num_hidden_layers=2, vocab_size=50000)
args = CausalLMTrainingArguments("unused", per_device_train_batch_size=64)
before = psutil.Process().memory_info().rss
needed = training_memory(config, args, 256)
print(needed, psutil.Process().memory_info().rss - before)
""",
        tmp_path,
    )
    predicted, allocated = map(int, printed.split())
    assert predicted > 16e9
    assert allocated < 0.2e9


@pytest.mark.skipif(sys.platform != "linux", reason="the limits of Linux")
def test_a_limit_of_the_process_counts(monkeypatch):
    import resource

    used = memory.psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda which: (used + 10**9, resource.RLIM_INFINITY))
    assert free_memory(torch.device("cpu")) == pytest.approx(10**9, rel=0.2)


@pytest.mark.parametrize("version", [1, 2])
def test_a_limit_of_the_control_group_counts_without_the_cached_files(version, tmp_path, monkeypatch):
    limit, used = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes"), 2: ("memory.max", "memory.current")}[version]
    (tmp_path / limit).write_text("3000000000\n")
    (tmp_path / used).write_text("2000000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000000\n")
    monkeypatch.setattr(memory, "_control_groups", lambda: [tmp_path, tmp_path / "missing"])
    assert free_memory(torch.device("cpu")) == 1_500_000_000
    (tmp_path / limit).write_text("max\n")
    assert free_memory(torch.device("cpu")) > 1_500_000_000
