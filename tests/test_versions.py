"""A saved folder names the transformers that it needs; `make matrix` loads one under several releases."""

import hashlib
import importlib.util

import pytest
import torch
import transformers
from helpers import ROOT
from packaging.version import Version

import modeling_gptlite
from benchmarks.matrix import LOADABLE, NATIVE, choose, judge, supported
from modeling_gptlite.configuration_gptlite import MODELING_SHA256


def load_configuration_file():
    spec = importlib.util.spec_from_file_location("travelling", ROOT / "modeling_gptlite" / "configuration_gptlite.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("release", ["4.57.6", "5.0.0", "5.3.0", "6.0.0", "6.0.0.dev0", "10.1"])
def test_a_saved_model_refuses_an_unsupported_transformers_in_one_sentence(release, monkeypatch):
    assert not LOADABLE.contains(release)
    monkeypatch.setattr(transformers, "__version__", release)
    with pytest.raises(ImportError, match=f"needs transformers.*, and {release} is installed; pip install") as error:
        load_configuration_file()
    assert all(str(bound) in str(error.value) for bound in LOADABLE)
    assert f"transformers {next(iter(NATIVE)).version} and later: gptlite convert --to qwen3" in str(error.value)


@pytest.mark.parametrize("release", ["5.4.0", "5.16.1", "5.17.0.dev0", "5.23.0", "5.24.0rc1", "5.100.2"])
def test_a_saved_model_accepts_a_supported_transformers(release, monkeypatch):
    assert LOADABLE.contains(release, prereleases=True)
    monkeypatch.setattr(transformers, "__version__", release)
    load_configuration_file()


@pytest.mark.parametrize(("release", "is_enough"), [("5.4.0", False), ("5.16.1", False), ("5.17.0", True)])
def test_the_package_itself_needs_a_later_transformers(release, is_enough, monkeypatch):
    assert supported().contains(release) == is_enough
    monkeypatch.setattr(transformers, "__version__", release)
    if is_enough:
        importlib.reload(modeling_gptlite)
        return
    with pytest.raises(ImportError, match=f"needs transformers.*, and {release} is installed; pip install") as error:
        importlib.reload(modeling_gptlite)
    assert all(str(bound) in str(error.value) for bound in supported())


def test_the_configuration_changes_with_the_code_of_the_model():
    """If this fails, write the new value into configuration_gptlite.py."""
    code = (ROOT / "modeling_gptlite" / "modeling_gptlite.py").read_text(encoding="utf-8")
    assert hashlib.sha256(code.encode()).hexdigest().startswith(MODELING_SHA256)
    assert len(MODELING_SHA256) == 16


def test_the_matrix_takes_the_ends_of_every_range():
    text = "5.24.0 5.22.0 5.17.0 5.16.1 5.10.4 5.10.1 5.5.0 5.4.0 5.3.0 5.0.0 4.57.6 4.51.0 4.50.3 4.9.0"
    chosen = choose([Version(release) for release in text.split()])
    assert list(map(str, chosen)) == ["4.51.0", "4.57.6", "5.3.0", "5.4.0", "5.10.4", "5.17.0", "5.24.0"]


LOGITS = {"logits": torch.tensor([1.0]), "tokens": torch.tensor([1])}


@pytest.mark.parametrize(
    ("answer", "error", "is_supported", "is_right"),
    [
        (LOGITS, "", True, True),
        (LOGITS, "", False, False),
        ({**LOGITS, "logits": torch.tensor([1.0 + 2**-23])}, "", True, False),
        ({**LOGITS, "tokens": torch.tensor([2])}, "", True, False),
        (None, "ImportError: GPTLite needs transformers>=5.4,<6", False, True),
        (None, "ImportError: GPTLite needs transformers>=5.4,<6", True, False),
        (None, "AttributeError: deep inside", False, False),
    ],
)
def test_the_matrix_wants_equal_logits_and_the_sentence(answer, error, is_supported, is_right):
    assert judge(answer, error, LOGITS, is_supported)[0] is is_right
