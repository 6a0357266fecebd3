"""Private names of transformers and torch that this package overrides or calls, with their signatures: one list."""

import ast
import inspect
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import REPO, ROOT, commits, tiny_model, trainer_for
from transformers import GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel, Trainer
from transformers.utils import cached_file

from modeling_gptlite.training.trainer import CausalLMTrainer


@dataclass
class Parent:
    owner: Any
    name: str
    parameters: str | None  # None: it has no signature in Python
    reason: str  # why it is needed, and what to read if it has changed


PARENTS = [
    Parent(Trainer, "_save_checkpoint", "self model trial", "checkpoints get a manifest: CausalLMTrainer"),
    Parent(Trainer, "_get_output_dir", "self trial", "checkpoints are saved in a temporary folder: CausalLMTrainer"),
    Parent(Trainer, "_determine_best_metric", "self metrics trial", "the best weights are saved: CausalLMTrainer"),
    Parent(Trainer, "_load_best_model", "self", "a damaged best checkpoint is not loaded: CausalLMTrainer"),
    Parent(Trainer, "save_model", "self output_dir _internal_call", "deletes training_args.bin: CausalLMTrainer"),
    Parent(Trainer, "evaluation_loop", None, "the loss over all targets: CausalLMTrainer"),
    Parent(PreTrainedConfig, "_attn_implementation", None, "restored after training: CausalLMTrainer.train"),
    Parent(PreTrainedModel, "_init_weights", "self module", "the initial weights: GPTLitePreTrainedModel"),
    Parent(
        GenerationMixin,
        "_get_stopping_criteria",
        "self generation_config stopping_criteria tokenizer",
        "generation past the context: GPTLiteForCausalLM",
    ),
    Parent(
        GenerationConfig, "_get_default_generation_params", "", "which keywords a configuration may have: GPTLiteConfig"
    ),
    Parent(
        torch.optim.Muon,
        "_init_group",
        "self group params_with_grad grads muon_momentum_bufs",
        "Muon for a stack of matrices: StackedMuon.step",
    ),
    Parent(torch, "_foreach_lerp_", None, "all momenta in one call: StackedMuon.step"),
    Parent(torch, "_foreach_lerp", None, "all updates in one call: StackedMuon.step"),
    Parent(torch, "_foreach_mul_", None, "all weights in one call: StackedMuon.step"),
    Parent(torch, "_foreach_add_", None, "all weights in one call: StackedMuon.step"),
    Parent(torch.UntypedStorage, "_cdata", None, "tells storages without memory apart: training_memory"),
    Parent(torch.cpu, "_is_avx512_bf16_supported", "", "the precision of training: hardware.multiplies_bf16"),
    Parent(torch.cpu, "_is_amx_tile_supported", "", "the precision of training: hardware.multiplies_bf16"),
]
NAMES = {parent.name for parent in PARENTS}


@pytest.mark.parametrize("parent", PARENTS, ids=lambda parent: parent.name)
def test_it_exists_with_the_signature_that_we_count_on(parent):
    advice = f"{parent.owner.__name__}.{parent.name} has changed. It is used for {parent.reason}"
    assert hasattr(parent.owner, parent.name), advice
    if parent.parameters is not None:
        parameters = inspect.signature(getattr(parent.owner, parent.name)).parameters
        assert list(parameters) == parent.parameters.split(), advice


def test_the_evaluation_loop_is_called_as_ours_expects():
    parameters = list(inspect.signature(Trainer.evaluation_loop).parameters)
    assert parameters[:3] == ["self", "dataloader", "description"]
    assert "metric_key_prefix" in parameters


def private_names(path) -> set[str]:
    """Attributes and keywords with a leading underscore that the module itself does not define."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)} - defined
    used |= {
        node.func.attr
        for node in nodes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_super(node.func.value)
    }
    used |= {
        alias.name for node in nodes if isinstance(node, ast.ImportFrom) and not node.level for alias in node.names
    }
    return {name for name in used if name.startswith("_") and not name.startswith("__")}


def is_super(node) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", None) == "super"


def test_no_other_private_name_is_used():
    used = {name: path for path in (ROOT / "modeling_gptlite").rglob("*.py") for name in private_names(path)}
    unlisted = {name: str(path.relative_to(ROOT)) for name, path in used.items() if name not in NAMES}
    assert not unlisted, f"add these to PARENTS, with the reason: {unlisted}"
    assert NAMES - used.keys() <= {"save_model", "evaluation_loop"}


@pytest.mark.parametrize("renamed", [(), ("_save_checkpoint", "_load_best_model"), ("save_model", "evaluation_loop")])
def test_the_trainers_own_upload_never_runs_whatever_is_renamed(renamed, hub, tmp_path, monkeypatch):
    """It includes `training_args.bin`: a pickle with the token in it."""
    for name in renamed:
        monkeypatch.delattr(CausalLMTrainer, name)
    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", lambda *_, **__: pytest.fail("the Trainer's own upload"))
    pushing = {"push_to_hub": True, "hub_model_id": REPO, "hub_always_push": True, "hub_token": "hf_ada"}
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer = trainer_for(tiny_model("modern-1m"), tmp_path / "run", **pushing, **saving)
    trainer.train()
    trainer.push_to_hub()
    for commit in commits(hub):
        names = hub.repo(REPO).files(commit.oid)
        assert "training_args.bin" not in names
        assert not any(b"hf_ada" in content for content in names.values())
    assert len(commits(hub)) == (1 if "_save_checkpoint" in renamed else 4)


def test_there_is_a_keyword_that_the_page_counts_on():
    assert cached_file("nobody/nothing", "config.json", _raise_exceptions_for_missing_entries=False) is None
