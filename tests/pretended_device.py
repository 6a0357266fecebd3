"""Nothing waits for the device: model, batches and optimizers on a pretended one, which computes on the CPU.

On a GPU, Python queues work ahead of the device, and waits for all of it whenever a value is read or copied to the CPU.
A tensor of the pretended device raises where it meets one of the CPU, and counts each such wait with its line.
"""

import collections
import copy
import functools
import traceback
from pathlib import Path

import pytest
import torch
import transformers
from helpers import TEXT, in_child, tiny_model
from packaging.version import Version
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend
from transformers import TrainerCallback

from modeling_gptlite.data.encode import RunData
from modeling_gptlite.data.windows import EvaluationWindows, RandomWindows
from modeling_gptlite.training import timing
from modeling_gptlite.training.callbacks import Samples
from modeling_gptlite.training.optim import build_adamw, build_muon
from modeling_gptlite.training.trainer import CausalLMTrainer, CausalLMTrainingArguments
from tokenization import build_char_tokenizer, encode_corpus


aten = torch.ops.aten
CONTEXT = 16
FILE = "modeling_gptlite/modeling_gptlite.py"
presets = pytest.mark.parametrize("preset", ["modern-1m", "nanogpt-10m"])


# ---- The device ----------------------------------------------------------------------------------------------------


class Pretended(torch.Tensor):
    """A tensor of the pretended device; `elem` holds its values on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, elem):
        layout = {"strides": elem.stride(), "storage_offset": elem.storage_offset(), "dtype": elem.dtype}
        tensor = torch.Tensor._make_wrapper_subclass(cls, elem.shape, **layout, device=torch.device("pretended", 0))
        tensor.elem = elem
        return tensor

    def __init__(self, elem):
        pass

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    def tolist(self):
        return self.cpu().tolist()


class RandomState(_DummyBackendModule):
    """What `torch.random.fork_rng` calls: the device draws from the CPU's generator."""

    def get_rng_state(self, device):
        return torch.get_rng_state()

    def set_rng_state(self, state, device):
        torch.set_rng_state(state)


class Device(TorchDispatchMode):
    """The pretended device; every operation in the block is checked and counted.

    Attributes:
        waits: How often each line waited for the device, by `package/file.py:function`.
    """

    waits: collections.Counter = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=...)` is copied by an operation
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)


def compute(func, args, kwargs):
    """The operation on the CPU, its result on the device if its inputs are there or `device` says so."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    others = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
    device = kwargs.get("device")
    target = torch.device(device).type if device is not None else None
    if waits(func, args, kwargs, ours, others, target):
        Device.waits[place()] += 1
    copies = func in (aten._to_copy.default, aten.copy_.default, aten.lift_fresh.default)
    if ours and not copies and any(tensor.dim() for tensor in others):  # a number on the CPU is an argument
        raise RuntimeError(f"{func} mixes tensors of two devices in {place()}")

    args_there, kwargs_there = tree_map_only(Pretended, lambda tensor: tensor.elem, (args, kwargs))
    if target == "pretended":
        kwargs_there = {**kwargs_there, "device": "cpu"}
    result = func(*args_there, **kwargs_there)
    is_ours = target == "pretended" or (bool(ours) and target is None)
    if func is aten.copy_.default:
        is_ours = isinstance(args[0], Pretended)
    if not is_ours or func is aten._local_scalar_dense.default:
        return result
    result = tree_map_only(torch.Tensor, Pretended, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if ours else result


def waits(func, args, kwargs, ours, others, target) -> bool:
    """Whether a GPU would finish all its work before Python goes on."""
    if func is aten.copy_.default:
        return bool(ours) and bool(others) and not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking")
    if func is aten._to_copy.default and target and args[0].numel():
        crosses = bool(ours) != (target == "pretended")
        return crosses and (bool(ours) or not kwargs.get("non_blocking"))
    if func is aten.index.Tensor and ours:
        return any(index is not None and index.dtype == torch.bool for index in args[1])
    by_value = (aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.unique_consecutive)
    return bool(ours) and func.overloadpacket in by_value


def place() -> str:
    """The innermost function outside PyTorch and this file."""
    for frame, _ in traceback.walk_stack(None):
        path = Path(frame.f_code.co_filename)
        package = next((name for name in ("modeling_gptlite", "transformers", "accelerate") if name in path.parts), "")
        if package:
            return f"{package}/{path.name}:{frame.f_code.co_name}"
    return "this test"


def pretended(test):
    """Run a test on the pretended device, in a process of its own: PyTorch does not forget a device."""

    @functools.wraps(test)
    def forked(*args, **kwargs):
        def child():
            try:
                _setup_privateuseone_for_python_backend("pretended", RandomState())
                with Device():
                    test(*args, **kwargs)
            except BaseException:
                traceback.print_exc()
                raise SystemExit(1) from None

        assert in_child(child) == 0

    return forked


def moved(model):
    """A copy of a model on the device, with its tied weights tied."""
    model, known = copy.deepcopy(model), {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                there = known.setdefault(parameter, torch.nn.Parameter(Pretended(parameter.detach().clone())))
                module._parameters[name] = there
        for name, buffer in module._buffers.items():
            module._buffers[name] = Pretended(buffer.clone())
    return model


# ---- The device itself ---------------------------------------------------------------------------------------------


@pretended
def test_devices_that_mix_raise_and_what_waits_is_counted():
    there, here = Pretended(torch.arange(3.0)), torch.ones(3)
    with pytest.raises(RuntimeError, match="two devices"):
        there + here
    assert not Device.waits
    assert (there + 1).sum().item() == 6
    there[there > 1], there.cpu(), bool(there.any())
    assert Device.waits["this test"] == 4


# ---- Training ------------------------------------------------------------------------------------------------------


def ids(*shape):
    return torch.randint(0, 64, shape, generator=torch.Generator().manual_seed(1))


@presets
@pytest.mark.parametrize(
    ("build", "rates"),
    [(build_muon, {"learning_rate": 1e-3, "muon_learning_rate": 0.02}), (build_adamw, {"learning_rate": 1e-3})],
)
@pretended
def test_a_step_of_training_waits_for_nothing(preset, build, rates):
    here = tiny_model(preset, max_position_embeddings=CONTEXT).train()
    there = moved(here)
    for model, batch in ((here, ids(2, CONTEXT)), (there, Pretended(ids(2, CONTEXT)))):
        optimizer = build(model, **rates)
        for _ in range(2):
            model(input_ids=batch, shift_labels=batch, labels=batch, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        assert {value.device for state in optimizer.state.values() for value in state.values() if value.dim()} == {
            batch.device
        }
    assert not Device.waits
    for (name, one), other in zip(here.named_parameters(), there.parameters(), strict=True):
        assert_close(other.elem, one, atol=2e-3, rtol=0, msg=name)  # Muon's signs are those of rounding errors


# ---- Generation ----------------------------------------------------------------------------------------------------


@presets
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("settings", [{}, {"use_cache": False}, {"cache_implementation": "static"}], ids=str)
@pretended
def test_generation_past_the_context_waits_once_per_token_if_padded_else_never(preset, padded, settings):
    here, prompt, tokens = tiny_model(preset, max_position_embeddings=CONTEXT), ids(2, 6), 20
    mask = torch.ones_like(prompt)
    mask[0, :3] = 0 if padded else 1
    settings = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 64, **settings}
    text = moved(here).generate(Pretended(prompt), attention_mask=Pretended(mask), **settings)
    assert torch.equal(text.elem, here.generate(prompt, attention_mask=mask, **settings))
    waits = {name: count for name, count in Device.waits.items() if name.startswith("modeling_gptlite")}
    keeps_mask = padded or Version(transformers.__version__) < Version("5.18")  # newer ones drop a mask of ones
    assert waits.pop(f"{FILE}:_slide_windows", 0) == (6 + tokens - 1 - CONTEXT if keeps_mask else 0)
    if "cache_implementation" in settings:  # each time that a row's window moves, the cache is asked for its length
        assert waits.pop(f"{FILE}:prepare_inputs_for_generation", 0) <= (2 if padded else 1)
    assert not waits


# ---- The Trainer ---------------------------------------------------------------------------------------------------


class WaitsOfSteps(TrainerCallback):
    """Collects what each step waited for."""

    def __init__(self):
        self.steps = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.before = Device.waits.copy()

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(Device.waits - self.before)


@pytest.mark.parametrize(("preset", "optimizer"), [("modern-1m", "muon"), ("nanogpt-10m", "adamw")])
@pretended
def test_the_trainer_waits_only_to_log_to_evaluate_and_to_sample(preset, optimizer, tmp_path):
    tokenizer = build_char_tokenizer(TEXT)
    corpus = encode_corpus(TEXT, tokenizer)
    model = moved(tiny_model(preset, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT))
    args = CausalLMTrainingArguments(
        str(tmp_path),
        optimizer=optimizer,
        precision="fp32",
        use_cpu=True,
        accelerator_config={"non_blocking": True},  # as on a GPU
        max_steps=4,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=4,
        logging_steps=2,
        eval_steps=2,
        save_strategy="no",
        load_best_model_at_end=False,
        report_to="none",
    )
    args.distributed_state.device = args.__dict__["_setup_devices"] = model.device
    count = WaitsOfSteps()
    trainer = CausalLMTrainer(
        model,
        args,
        train_dataset=RandomWindows(corpus, CONTEXT, 4 * 8, seed=0),
        eval_dataset=EvaluationWindows(corpus[:1000], CONTEXT),
        callbacks=[count, Samples(tokenizer, "9", length=5, seed=0)],
    )
    data = RunData(trainer.train_dataset, trainer.eval_dataset, 4, "9", {})
    timed = moved(tiny_model(preset, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT))
    timing._Steps(timed, None, timing._optimizer(timed, args), args, data).take(None)  # `auto` times such steps
    assert not Device.waits
    trainer.train()
    assert count.steps == [{}] * 4
    assert Device.waits.pop("transformers/trainer.py:_maybe_log_save_evaluate") == 2 * 2  # loss and gradient norm
    assert Device.waits.pop("modeling_gptlite/metrics.py:<genexpr>") == 2 * 2  # losses and their numbers of targets
    assert Device.waits.pop("modeling_gptlite/callbacks.py:write_sample") == 3  # the prompt; also before training
    assert Device.waits.pop("modeling_gptlite/head.py:plain_head") == 2  # one comparison for each evaluation
    assert [name for name in Device.waits if not name.startswith("transformers/")] == []
