"""The Trainer's arguments: each one acts, is set with a reason, or is refused in one line."""

import re
from dataclasses import fields

import pytest
import torch
from helpers import refused, tiny_model, trainer_for
from transformers import GPT2Config, GPT2LMHeadModel, TrainingArguments

from modeling_gptlite.training.arguments import FIXED, ArgumentError, CausalLMTrainingArguments, check_arguments
from modeling_gptlite.training.trainer import CausalLMTrainer
from scripts import train


# Each value of these acts, or is refused with a reason. Every other argument has one value, in `FIXED`.
HONOURED = """
    output_dir resume_from_checkpoint seed full_determinism debug
    optimizer muon_learning_rate muon_momentum_warmup precision min_learning_rate_ratio minutes
    short_context short_context_fraction
    per_device_train_batch_size gradient_accumulation_steps num_train_epochs max_steps
    learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay adam_beta1 adam_beta2 adam_epsilon
    optim optim_args optim_target_modules max_grad_norm label_smoothing_factor neftune_noise_alpha
    average_tokens_across_devices bf16 fp16 tf32 use_cpu torch_compile torch_compile_backend torch_compile_mode
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    use_liger_kernel liger_kernel_config use_cache torch_empty_cache_steps
    logging_strategy logging_steps logging_first_step log_on_each_node log_level log_level_replica disable_tqdm
    include_num_input_tokens_seen skip_memory_metrics
    report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id
    eval_strategy eval_steps eval_delay eval_on_start per_device_eval_batch_size
    save_strategy save_steps save_on_each_node save_total_limit restore_callback_states_from_checkpoint
    load_best_model_at_end metric_for_best_model greater_is_better
    push_to_hub hub_token hub_private_repo hub_model_id hub_strategy hub_always_push hub_revision
    accelerator_config parallelism_config fsdp fsdp_config deepspeed local_rank
    ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context
"""


def test_every_argument_is_classified():
    names, honoured = {field.name for field in fields(CausalLMTrainingArguments)}, set(HONOURED.split())
    new = names - honoured - FIXED.keys()
    assert not new, f"transformers has new arguments, {new}: read what they do, then add them to HONOURED or FIXED"
    assert not honoured & FIXED.keys()


def test_the_docstring_lists_the_defaults_that_differ_from_the_trainers():
    groups = (CausalLMTrainingArguments, TrainingArguments)
    ours, trainers = ({field.name: field.default for field in fields(group)} for group in groups)
    differ = {name for name in trainers if ours[name] != trainers[name]} - FIXED.keys()
    listed = re.findall(r"^ {8}(\w+): (\S+)$", CausalLMTrainingArguments.__doc__, re.MULTILINE)
    assert dict(listed) == {name: str(ours[name]) for name in differ}


def test_the_help_of_a_fixed_argument_is_the_reason():
    help_texts = {field.name: field.metadata["help"] for field in fields(CausalLMTrainingArguments)}
    assert all(help_texts[name] == reason for name, (_, reason) in FIXED.items())


def other_value(name):
    value, _ = FIXED[name]
    return {"data_seed": 1, "label_names": ["x"], "eval_accumulation_steps": 4, "include_for_metrics": ["inputs"]}.get(
        name, (not value) if isinstance(value, bool) else "another"
    )


@pytest.mark.parametrize("name", FIXED)
def test_another_value_of_a_fixed_argument_is_refused(name, tmp_path):
    value, reason = FIXED[name]
    CausalLMTrainingArguments(str(tmp_path), **{name: value})
    with pytest.raises(ArgumentError) as caught:
        CausalLMTrainingArguments(str(tmp_path), **{name: other_value(name)})
    assert f"--{name} cannot be {other_value(name)}. {reason}" == str(caught.value)


# What was given -> words of the error.
MISTAKES = {
    "optimizer": ({"optim": "sgd"}, "--optim sgd needs --optimizer trainer"),
    "its settings": ({"optim_args": "a=1"}, "need --optimizer trainer"),
    "galore": ({"optimizer": "trainer", "optim": "galore_adamw"}, "--optim galore_adamw: You need to install"),
    "bitsandbytes": ({"optimizer": "trainer", "optim": "adamw_8bit"}, "--optim adamw_8bit: You need to install"),
    "unknown optimizer": ({"optimizer": "trainer", "optim": "adam"}, "adam is not a valid OptimizerNames"),
    "momentum": ({"muon_momentum_warmup": 0.5}, "--muon_momentum_warmup needs --optimizer muon; with adamw it has no"),
    "all momentum": ({"muon_momentum_warmup": 1.5}, "--muon_momentum_warmup must be between 0 and 1, got 1.5"),
    "deepspeed": ({"deepspeed": {"zero_optimization": {"stage": 2}}}, "'deepspeed>=0.9.3' distribution was not found"),
    "deepspeed and minutes": ({"deepspeed": {"stage": 2}, "minutes": 5.0}, "cannot measure the speed of --deepspeed"),
    "liger": ({"use_liger_kernel": True}, "pip install liger-kernel"),
    "fsdp and minutes": ({"fsdp": "full_shard", "minutes": 5.0}, "cannot measure the speed of --fsdp"),
    "fsdp": ({"fsdp": "full_shard"}, "--fsdp needs several processes"),
    "auto and a mode": ({"torch_compile": "auto", "torch_compile_mode": "default"}, "always compile"),
    "compile mode": ({"torch_compile_mode": "bogus"}, "--torch_compile_mode must be one of default, reduce-overhead"),
    "compile backend": ({"torch_compile_backend": "bogus"}, "--torch_compile_backend must be one of"),
    "metric": ({"metric_for_best_model": "perplexity"}, "must be one of loss, eval_loss, got perplexity"),
    "greater": ({"greater_is_better": True}, "--greater_is_better must be false"),
    "workers": ({"dataloader_num_workers": -1}, "--dataloader_num_workers must be at least 0, got -1"),
    "start method": ({"dataloader_multiprocessing_context": "x"}, "must be one of fork"),
    "schedule": ({"lr_scheduler_kwargs": {"bogus": 1}}, "for cosine_with_min_lr: "),
    "schedule not a dict": ({"lr_scheduler_kwargs": "bogus"}, "--lr_scheduler_kwargs bogus"),
    "schedule's floor": ({"lr_scheduler_type": "linear", "min_learning_rate_ratio": 0.5}, "needs --lr_scheduler_type"),
    "two floors": (
        {"min_learning_rate_ratio": 0.5, "lr_scheduler_kwargs": {"min_lr": 0.1}},
        "no --lr_scheduler_kwargs",
    ),
    "neftune": ({"neftune_noise_alpha": -1.0}, "--neftune_noise_alpha must be at least 0, got -1.0"),
    "smoothing": ({"label_smoothing_factor": 1.5}, "--label_smoothing_factor must be at least 0 and below 1"),
    "clipping": ({"max_grad_norm": -1.0}, "--max_grad_norm must be at least 0"),
    "not a number": ({"learning_rate": float("nan")}, "--learning_rate must be at least 0, got nan"),
    "two precisions": ({"precision": "fp32", "bf16": True}, "--precision fp32 contradicts --bf16 True"),
    "fp16": ({"precision": "fp16"}, "fp16 does not train on a CPU"),
    "fp16 flag": ({"fp16": True}, "fp16 does not train on a CPU"),
    "hub strategy": ({"hub_strategy": "all_checkpoints"}, "--hub_strategy must be one of end, every_save"),
    "no such file": ({"accelerator_config": "nowhere.json"}, "nowhere.json"),
    "no such field": ({"accelerator_config": {"bogus": 1}}, "bogus"),
    "reports": ({"report_to": "tensorbord"}, "--report_to tensorbord: unknown; allowed are none, all"),
}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="a GPU trains in fp16")
@pytest.mark.parametrize(("given", "told"), MISTAKES.values(), ids=MISTAKES)
def test_what_cannot_act_is_refused_in_one_line(given, told, tmp_path):
    with pytest.raises(ArgumentError) as caught:
        CausalLMTrainingArguments(str(tmp_path / "run"), **given)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_precision_of_accelerate_launch_is_used_or_contradicted(tmp_path, monkeypatch):
    """The Trainer reads it from the environment, also where --precision says otherwise."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert CausalLMTrainingArguments(str(tmp_path)).bf16
    with pytest.raises(ArgumentError, match="--precision fp32 contradicts --mixed_precision of accelerate launch"):
        CausalLMTrainingArguments(str(tmp_path), precision="fp32")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert CausalLMTrainingArguments(str(tmp_path), precision="fp32").mixed_precision == "no"


def test_a_command_says_it_before_it_reads_anything(tmp_path, capsys):
    flags = ["--train_file=nowhere.txt", f"--output_dir={tmp_path / 'x'}"]
    refused(train.main, *flags, "--data_seed=1", capsys=capsys, told=["--data_seed cannot be 1", "--seed"])
    refused(train.main, *flags, "--do_train=false", capsys=capsys, told=["--do_train cannot be False"])
    assert not (tmp_path / "x").exists()


def test_arguments_that_were_assigned_to_are_checked_again(tmp_path):
    args = CausalLMTrainingArguments(str(tmp_path))
    check_arguments(args)
    args.dataloader_drop_last = True
    with pytest.raises(ArgumentError, match="dataloader_drop_last"):
        CausalLMTrainer(tiny_model("modern-1m"), args)


@pytest.mark.parametrize("name", ["compute_metrics", "preprocess_logits_for_metrics"])
def test_what_the_trainer_would_not_call_is_refused(name, tmp_path):
    with pytest.raises(ArgumentError, match=f"{name} would not be called"):
        trainer_for(tiny_model("modern-1m"), tmp_path, trainer={name: print})


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=65, n_positions=32, n_embd=32, n_layer=2, n_head=2))


@pytest.mark.parametrize("build", [gpt2, lambda: tiny_model("modern-1m")], ids=["GPT-2", "GPTLite"])
def test_label_smoothing_learns_the_next_token_not_the_one_after(build, tmp_path):
    """The Trainer's own smoothing shifts labels that are shifted already, for the classes that transformers lists."""
    trainer = trainer_for(build(), tmp_path, steps=60, learning_rate=1e-2, label_smoothing_factor=0.05)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 2


def test_a_dashboard_that_is_not_installed_or_unknown_is_named(text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    flags = [f"--train_file={text_file}", f"--output_dir={tmp_path / 'x'}"]
    refused(train.main, *flags, "--report_to=wandb", capsys=capsys, told=["wandb", "pip install wandb"])
    refused(train.main, *flags, "--report_to=tensorbord", capsys=capsys, told=["tensorbord", "tensorboard"])
    assert not (tmp_path / "x").exists()
