"""Optimizers for the Trainer: AdamW with nanoGPT's parameter groups, and Muon for the hidden matrices.

Trainer(..., optimizer_cls_and_kwargs=(lambda: build_muon, {"learning_rate": 3e-3, "muon_learning_rate": 0.02}))
"""

import math

import torch
from torch import nn
from torch.optim import AdamW, Muon
from transformers import PreTrainedModel

from .hardware import newton_schulz_dtype


FIRST_MOMENTUM, MOMENTUM = 0.85, 0.95  # of Muon


def build_adamw(
    model: nn.Module,
    learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> AdamW:
    """AdamW with weight decay for matrices and embeddings, and none for norms and biases, as in nanoGPT."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    _check_every_parameter_once(model, groups)
    groups = _without_empty(groups)
    return AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=_can_fuse(groups))


def build_muon(
    model: PreTrainedModel,
    learning_rate: float,
    muon_learning_rate: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = MOMENTUM,
) -> "MuonWithAdamW":
    """Muon (Jordan et al., 2024) for the hidden matrices, AdamW for embeddings, head, norms and biases.

    Args:
        learning_rate: For AdamW.
        muon_learning_rate: For Muon; multiplied by sqrt(max(1, rows / columns)) for each matrix.
        weight_decay: Decoupled, for all matrices and embeddings.
    """
    head = model.get_output_embeddings()
    looked_up = {m.weight for m in model.modules() if isinstance(m, nn.Embedding)} | ({head.weight} if head else set())
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() == 2 and p not in looked_up]
    tables = [p for p in trained if p in looked_up]
    others = [p for p in trained if p.dim() != 2]
    groups = [
        {"params": tables, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    _check_every_parameter_once(model, [{"params": matrices}, *groups])
    groups = _without_empty(groups)
    return MuonWithAdamW(
        AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=_can_fuse(groups)),
        StackedMuon([{"params": matrices}], lr=muon_learning_rate, momentum=momentum, weight_decay=weight_decay),
    )


def warm_up_momentum(optimizer: torch.optim.Optimizer, progress: float) -> None:
    """Set Muon's momentum: from `FIRST_MOMENTUM` at `progress` 0 linearly to its own, `MOMENTUM`, at 1 and beyond.

    At first the gradients change quickly, and an average over 20 of them lags behind. (As in modded-nanogpt.)
    """
    for group in optimizer.param_groups:
        if "momentum" in group:
            group["momentum"] = FIRST_MOMENTUM + (MOMENTUM - FIRST_MOMENTUM) * min(progress, 1.0)


class StackedMuon(Muon):
    """torch's Muon, with the same state, which orthogonalises all matrices of one shape in one batched product.

    A small model has dozens of small matrices. One at a time, they leave cores idle: an optimizer step takes 1.3 to 1.8
    times as long on two CPU cores (`benchmarks/tuning.md`), and on a GPU each is a kernel launch. The momentum is
    Nesterov's; learning rates are scaled as in the original (Jordan et al., 2024).
    """

    def __init__(self, params, lr: float, momentum: float = MOMENTUM, weight_decay: float = 0.0):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self):  # type: ignore[override]  # a closure is called by AdamW's
        for group in self.param_groups:
            params: list[torch.Tensor] = []
            grads: list[torch.Tensor] = []
            momenta: list[torch.Tensor] = []
            self._init_group(group, params, grads, momenta)
            if not params:
                continue
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, momenta, group["momentum"])
            if group["weight_decay"]:
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
            dtype = newton_schulz_dtype(params[0].device)
            for shape in sorted({param.shape for param in params}):
                places = [place for place, param in enumerate(params) if param.shape == shape]
                stack = torch.stack([updates[place].to(dtype) for place in places])
                stack = orthogonalize(stack, group["ns_coefficients"], group["ns_steps"], group["eps"])
                directions = stack.to(params[places[0]].dtype).unbind()
                rate = group["lr"] * math.sqrt(max(1, shape[0] / shape[1]))
                torch._foreach_add_([params[place] for place in places], directions, alpha=-rate)


def orthogonalize(matrices: torch.Tensor, coefficients: tuple[float, float, float], steps: int, eps: float):
    """Approximate the nearest semi-orthogonal matrices by Newton-Schulz iterations (Jordan et al., 2024).

    The arithmetic of `torch.optim.Muon`, for a stack of matrices `(count, rows, columns)`.
    """
    a, b, c = coefficients
    is_tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if is_tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """Two optimizers with one list of groups and one state, so that schedulers and checkpoints treat them as one."""

    def __init__(self, adamw: AdamW, muon: StackedMuon):
        self.adamw, self.muon = adamw, muon
        super().__init__(adamw.param_groups + muon.param_groups, defaults={"lr": adamw.defaults["lr"]})
        self._share()

    def _share(self):
        count = len(self.adamw.param_groups)
        self.adamw.param_groups, self.muon.param_groups = self.param_groups[:count], self.param_groups[count:]
        self.adamw.state = self.muon.state = self.state

    def __setstate__(self, state):
        super().__setstate__(state)  # `load_state_dict` replaces the groups and the state
        self._share()

    def step(self, closure=None):
        loss = self.adamw.step(closure)
        self.muon.step()
        return loss


def _without_empty(groups: list[dict]) -> list[dict]:
    """The groups that hold parameters; if none does (LoRA trains matrices only), one empty group, which is allowed."""
    return [group for group in groups if group["params"]] or groups[:1]


def _can_fuse(groups: list[dict]) -> bool:
    """Whether PyTorch has a fused AdamW for the devices of these parameters."""
    return all(p.device.type in ("cpu", "cuda", "xpu", "mps") for group in groups for p in group["params"])


def _check_every_parameter_once(model: nn.Module, groups: list[dict]) -> None:
    grouped = [p for group in groups for p in group["params"]]
    trained = [p for p in model.parameters() if p.requires_grad]
    if len(grouped) != len(trained) or set(grouped) != set(trained):
        raise RuntimeError("every trained parameter must be in exactly one optimizer group")
