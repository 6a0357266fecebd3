"""AdamW and Muon: the parameters of each group, the arithmetic of a step, exact resume."""

import io
from functools import partial

import pytest
import torch
from helpers import ARCHITECTURES, tiny_model
from torch.optim.lr_scheduler import LambdaLR
from transformers import GPT2Config, GPT2LMHeadModel

from modeling_gptlite.training.optim import StackedMuon, build_adamw, build_muon


BUILDERS = {
    "adamw": partial(build_adamw, learning_rate=1e-2, weight_decay=0.1),
    "muon": partial(build_muon, learning_rate=1e-2, muon_learning_rate=0.05, weight_decay=0.1),
}
MODELS = [*ARCHITECTURES, "transformers gpt2"]
ATTENTION = [f"self_attn.{name}_proj" for name in "qkvo"]
every_builder = pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
every_model = pytest.mark.parametrize("name", MODELS)


def build_model(name):
    if name in ARCHITECTURES:
        return tiny_model(name)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=65, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).eval()


def names_in(model, groups):
    """The names of the parameters in `groups`, sorted; a parameter that is there twice is named twice."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return sorted(names[parameter] for group in groups for parameter in group["params"])


def train(model, optimizer, steps):
    for step in steps:
        ids = torch.randint(65, (2, 16), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@every_builder
@every_model
def test_every_parameter_is_in_exactly_one_group(build, name):
    model = build_model(name)
    assert names_in(model, build(model).param_groups) == sorted(name for name, _ in model.named_parameters())


@every_builder
@every_model
def test_decay_is_for_matrices_and_embeddings_and_spares_norms_and_biases(build, name):
    model = build_model(name)
    groups = build(model).param_groups
    matrices = sorted(name for name, parameter in model.named_parameters() if parameter.dim() >= 2)
    assert names_in(model, [group for group in groups if group["weight_decay"] == 0.1]) == matrices
    assert {group["weight_decay"] for group in groups} == {0.0, 0.1}


def test_tied_weights_are_decayed_once():
    model = tiny_model("modern-1m", tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for build in BUILDERS.values():
        groups = [g for g in build(model).param_groups for p in g["params"] if p is model.lm_head.weight]
        assert [group["weight_decay"] for group in groups] == [0.1]


@every_builder
@pytest.mark.parametrize("trained", ["q_proj", "norm", "embed_tokens"])
def test_any_part_of_a_model_can_be_trained_alone(build, trained):
    """LoRA trains hidden matrices only, which leaves AdamW's half of Muon empty."""
    model = tiny_model("modern-1m")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = build(model)
    train(model, optimizer, steps=range(2))
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if trained in name}


@every_builder
def test_frozen_parameters_are_left_out(build):
    model = tiny_model("modern-1m")
    model.model.layers[0].requires_grad_(False)
    trained = sorted(name for name, _ in model.named_parameters() if ".layers.0." not in name)
    assert names_in(model, build(model).param_groups) == trained


@pytest.mark.parametrize(
    ("name", "layers", "matrices"),
    [
        ("modern-1m", "model.layers", [*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
        ("nanogpt-10m", "model.layers", [*ATTENTION, "mlp.up_proj", "mlp.down_proj"]),
        ("transformers gpt2", "transformer.h", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
    ],
)
def test_muon_gets_the_hidden_matrices_and_nothing_else(name, layers, matrices):
    model = build_model(name)
    optimizer = BUILDERS["muon"](model)
    expected = sorted(f"{layers}.{index}.{matrix}.weight" for index in range(2) for matrix in matrices)
    assert names_in(model, [group for group in optimizer.param_groups if group["lr"] == 0.05]) == expected
    assert names_in(model, optimizer.muon.param_groups) == expected


def test_a_step_is_that_of_torch_muon_and_torch_adamw_side_by_side():
    model, reference = tiny_model("modern-1m"), tiny_model("modern-1m")
    hidden = [p for name, p in reference.named_parameters() if ".layers." in name and p.dim() == 2]
    others = [p for name, p in reference.named_parameters() if ".layers." not in name or p.dim() < 2]
    muon = torch.optim.Muon(hidden, lr=0.05, momentum=0.95, weight_decay=0.0)
    adamw = torch.optim.AdamW(others, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.0)
    train(model, build_muon(model, learning_rate=1e-2, muon_learning_rate=0.05), steps=range(1))
    train(reference, muon, steps=range(1))
    adamw.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, reference.get_parameter(name), msg=name)


@pytest.mark.parametrize("shapes", [[(8, 8)], [(8, 8), (12, 8), (8, 12), (8, 8), (12, 8), (1, 8)]])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_stacked_matrices_are_stepped_like_torch_muon_steps_them_alone(shapes, weight_decay):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    stacked = StackedMuon(ours, lr=0.05, weight_decay=weight_decay)
    alone = torch.optim.Muon(theirs, lr=0.05, weight_decay=weight_decay)
    for _ in range(3):
        for our, their in zip(ours, theirs, strict=True):
            our.grad = torch.randn_like(our)
            their.grad = our.grad.clone()
        stacked.step()
        alone.step()
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, atol=2e-3, rtol=0)  # bf16 products, in another order
        assert torch.equal(stacked.state[our]["momentum_buffer"], alone.state[their]["momentum_buffer"])


def test_a_parameter_without_gradient_is_left_alone():
    used, unused = (torch.nn.Parameter(torch.eye(4)) for _ in range(2))
    used.grad = torch.randn(4, 4)
    StackedMuon([used, unused], lr=0.05).step()
    assert torch.equal(unused, torch.eye(4))
    assert not torch.equal(used, torch.eye(4))


@every_builder
@pytest.mark.parametrize("name", ["modern-1m", "gpt2-124m", "transformers gpt2"])
def test_a_restored_optimizer_continues_exactly(build, name):
    straight, stopped, resumed = (build_model(name) for _ in range(3))
    train(straight, build(straight), steps=range(6))

    optimizer = build(stopped)
    train(stopped, optimizer, steps=range(3))
    resumed.load_state_dict(through_a_file(stopped.state_dict()))
    second = build(resumed)
    second.load_state_dict(through_a_file(optimizer.state_dict()))
    train(resumed, second, steps=range(3, 6))
    for parameter_name, parameter in straight.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(parameter_name)), parameter_name


@every_builder
@pytest.mark.parametrize("resumed", [False, True])
def test_a_schedule_scales_every_group_by_the_same_factor(build, resumed):
    model = tiny_model("modern-1m")
    optimizer = build(model)
    if resumed:
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    initial = [group["lr"] for group in optimizer.param_groups]
    scheduler = LambdaLR(optimizer, lambda step: 1 - step / 2)
    for step, factor in enumerate([1.0, 0.5, 0.0]):
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([factor * lr for lr in initial])
        before = [parameter.clone() for parameter in model.parameters()]
        train(model, optimizer, steps=[step])
        moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
        assert all(moved) if factor else not any(moved)
        scheduler.step()
