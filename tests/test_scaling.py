"""docs/scaling.md: its formulas hold for real checkpoints, and its figures follow from them."""

import re

import pytest
import torch
from helpers import ROOT, tiny_model, trainer_for

from modeling_gptlite import GPTLiteConfig, GPTLiteForCausalLM


PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def muon_parameters(model) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2)


def optimizer_bytes(optimizer: str, parameters: int, matrices: int) -> int:
    return 8 * parameters - (4 * matrices if optimizer == "muon" else 0)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_memory_and_checkpoints_have_the_bytes_that_the_formulas_say(optimizer, tmp_path):
    model = tiny_model("modern-1m", hidden_size=128, num_hidden_layers=3)
    count, matrices = model.num_parameters(), muon_parameters(model)
    trainer = trainer_for(model, tmp_path, steps=2, optimizer=optimizer, save_strategy="steps", save_steps=2)
    trainer.train()
    state = [t for entry in trainer.optimizer.state.values() for t in entry.values() if torch.is_tensor(t) and t.dim()]
    expected = optimizer_bytes(optimizer, count, matrices)
    assert sum(p.numel() * p.element_size() for p in model.parameters()) == 4 * count
    assert sum(t.numel() * t.element_size() for t in state) == expected
    files = sum(path.stat().st_size for path in (tmp_path / "checkpoint-2").iterdir())
    assert files == pytest.approx(4 * count + expected, rel=0.02)


def test_the_figures_of_the_124m_model_follow():
    config = GPTLiteConfig.from_preset("modern-124m")
    with torch.device("meta"):
        model = GPTLiteForCausalLM(config)
    count, matrices = model.num_parameters(), muon_parameters(model)
    assert f"P = {count:,} and M = {matrices:,}" in PAGE
    states = [optimizer_bytes(name, count, matrices) for name in ("adamw", "muon")]
    rows = {
        "state on one device": [8 * count + state for state in states],
        "state on each of 8 devices, DDP": [8 * count + state for state in states],
        "state on each of 8 devices, FSDP2": [(8 * count + state) / 8 for state in states],
        "one checkpoint": [4 * count + state for state in states],
        "two checkpoints and the one being written": [3 * (4 * count + state) for state in states],
    }
    for name, sizes in rows.items():
        assert f"| {name} | " + " | ".join(f"{size / 1e9:.2f} GB" for size in sizes) + " |" in PAGE

    operations = 6 * count + 12 * config.num_hidden_layers * config.hidden_size * config.max_position_embeddings
    assert f"= {operations:.1e}".replace("e+08", "e8") in PAGE
    rate = 2e14 / operations
    assert f"{rate:,.0f}"[:3] + ",000 at 2e14" in PAGE
    assert f"{8 * rate / 1e6:.1f} million on 8" in PAGE
    assert f"{16 * rate / 1e6:.1f} MB/s" in PAGE
    assert f"take {1e10 / (8 * rate) / 3600:.1f} hours" in PAGE
    logits = config.max_position_embeddings * config.vocab_size * 4
    assert re.search(rf"{logits / 1e6:.0f} MB in fp32", PAGE)
