"""A saved folder names the transformers that it needs; `make matrix` loads one under several releases."""

import importlib.util

import pytest
import torch
import transformers
from helpers import ROOT
from packaging.version import Version

from benchmarks.matrix import choose, judge, supported


def load_configuration_file():
    spec = importlib.util.spec_from_file_location("travelling", ROOT / "modeling_gptlite" / "configuration_gptlite.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


@pytest.mark.parametrize("release", ["4.57.6", "5.0.0", "5.16.1", "6.0.0", "6.0.0.dev0", "10.1"])
def test_an_unsupported_transformers_is_refused_in_one_sentence(release, monkeypatch):
    assert not supported().contains(release)
    monkeypatch.setattr(transformers, "__version__", release)
    with pytest.raises(ImportError, match=f"needs transformers.*, and {release} is installed; pip install") as error:
        load_configuration_file()
    assert all(str(bound) in str(error.value) for bound in supported())


@pytest.mark.parametrize("release", ["5.17.0", "5.17.0.dev0", "5.23.0", "5.24.0rc1", "5.100.2"])
def test_a_supported_transformers_is_accepted(release, monkeypatch):
    monkeypatch.setattr(transformers, "__version__", release)
    load_configuration_file()


def test_the_matrix_takes_oldest_middle_and_newest_and_the_last_two_before():
    releases = [
        Version(text) for text in ["5.24.0", "5.22.0", "5.20.1", "5.17.0", "5.16.1", "5.0.0", "4.57.6", "4.9.0"]
    ]
    assert list(map(str, choose(releases, supported()))) == ["4.57.6", "5.16.1", "5.17.0", "5.22.0", "5.24.0"]


LOGITS = {"logits": torch.tensor([1.0]), "tokens": torch.tensor([1])}


@pytest.mark.parametrize(
    ("answer", "error", "is_supported", "is_right"),
    [
        (LOGITS, "", True, True),
        (LOGITS, "", False, False),
        ({**LOGITS, "logits": torch.tensor([1.0 + 2**-23])}, "", True, False),
        ({**LOGITS, "tokens": torch.tensor([2])}, "", True, False),
        (None, "ImportError: GPTLite needs transformers>=5.17,<6", False, True),
        (None, "ImportError: GPTLite needs transformers>=5.17,<6", True, False),
        (None, "AttributeError: deep inside", False, False),
    ],
)
def test_the_matrix_wants_equal_logits_and_the_sentence(answer, error, is_supported, is_right):
    assert judge(answer, error, LOGITS, is_supported)[0] is is_right
