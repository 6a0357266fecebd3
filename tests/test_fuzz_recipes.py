"""Any recipe trains, or ends in one line and exit code 2 with nothing on disk."""

import contextlib
import io
import json
import math
import re

import pytest
import yaml
from helpers import call, fuzzed
from hypothesis import given
from hypothesis import strategies as st

from scripts import train


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "auto", "none", "true", "1e-3", "-1", "nan", "~", "{}", "[]", "../..", "\x00", "\x1b[2J"])
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)

# These change the process, or are given by every run here.
EXCLUDED = {"full_determinism", "push_to_hub", "deepspeed", "ddp_backend", "local_rank", "output_dir", "train_file"}


def all_settings() -> list[str]:
    """The flags that `--help all` lists."""
    with contextlib.redirect_stdout(io.StringIO()) as help_text, contextlib.suppress(SystemExit):
        train.main(["--help", "all"])
    return sorted({*re.findall(r"^  --(\w+)", help_text.getvalue(), re.MULTILINE)} - EXCLUDED - {"config", "help"})


FIELDS = all_settings()
any_recipe = st.dictionaries(st.sampled_from(FIELDS), values, min_size=1, max_size=4)
ratios, rates = st.floats(0, 1, exclude_max=True), st.floats(0, 1)
SENSIBLE = {
    "optimizer": st.sampled_from(["adamw", "muon"]),
    "learning_rate": rates,
    "muon_learning_rate": rates,
    "weight_decay": rates,
    "adam_beta2": ratios,
    "max_grad_norm": st.floats(0, 10),
    "warmup_steps": st.integers(0, 5) | ratios,
    "label_smoothing_factor": ratios,
    "neftune_noise_alpha": st.floats(0, 10),
    "lr_scheduler_type": st.sampled_from(["linear", "cosine", "constant", "polynomial", "inverse_sqrt"]),
    "gradient_accumulation_steps": st.integers(1, 3),
    "per_device_train_batch_size": st.integers(1, 5),
    "logging_steps": st.integers(1, 3) | ratios,
    "logging_first_step": st.booleans(),
    "save_total_limit": st.integers(1, 3),
    "load_best_model_at_end": st.booleans(),
    "context_length": st.integers(1, 32),
    "short_context": st.sampled_from([1, 2, 4, 8, 16]),
    "tokenizer": st.sampled_from(["char", "bpe", "word"]),
    "vocab_size": st.integers(259, 300),
    "precision": st.sampled_from(["auto", "fp32", "bf16"]),
    "seed": st.integers(0, 1 << 31),
    "validation_fraction": st.floats(0.01, 0.9),
    "sample_prompt": st.sampled_from(["12 green", "b", "\n"]),
    "gradient_checkpointing": st.booleans(),
    "dataloader_drop_last": st.booleans(),
}
wild = st.integers(-2, 50) | st.floats(-2, 50) | st.sampled_from([1e30, 1e-30, math.nan, math.inf, "x", "", True])
sensible_recipe = st.fixed_dictionaries({}, optional=SENSIBLE)
wild_recipe = st.tuples(sensible_recipe, st.sampled_from(sorted(SENSIBLE)), wild).map(
    lambda drawn: {**drawn[0], drawn[1]: drawn[2]}
)


def write_recipe(folder, recipe):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, allow_unicode=True), encoding="utf-8")
    return path


def refused_in_one_line(code, err):
    (line,) = err.strip().splitlines()
    return code == 2 and line.startswith("error: ") and line.isprintable()


@fuzzed(200)
@given(recipe=any_recipe)
def test_any_value_of_any_setting_ends_in_one_line(recipe, tmp_path, capsys):
    argv = [f"--config={write_recipe(tmp_path, recipe)}", f"--output_dir={tmp_path / 'run'}"]
    code, _, err = call(train.main, *argv, f"--train_file={tmp_path / 'nowhere.txt'}", capsys=capsys)
    assert refused_in_one_line(code, err)
    assert not (tmp_path / "run").exists()


@fuzzed(25)
@given(recipe=sensible_recipe | wild_recipe)
def test_a_recipe_trains_or_ends_in_one_line(recipe, text_file, tmp_path_factory, capsys):
    folder = tmp_path_factory.mktemp("recipe")
    sizes = {"per_device_train_batch_size": 2, "eval_steps": 1, "save_steps": 1, "logging_steps": 1, **recipe}
    small = '--model_overrides={"hidden_size": 8, "num_hidden_layers": 1, "max_position_embeddings": 32}'
    argv = [f"--config={write_recipe(folder, sizes)}", f"--train_file={text_file}", f"--output_dir={folder / 'run'}"]
    argv += [small, "--max_steps=2", "--sample_length=5", "--eval_sample_length=2"]
    code, _, err = call(train.main, *argv, capsys=capsys)
    if code == 0:
        record = json.loads((folder / "run" / "run.json").read_text(), parse_constant=pytest.fail)
        assert record["results"]["steps"] == 2
        assert math.isfinite(record["results"]["loss"])
    else:
        assert refused_in_one_line(code, err)
        assert not (folder / "run" / "run.json").exists()
