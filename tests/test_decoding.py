"""`decoding.py`: one default of sampling for all that generates."""

from helpers import tokenizer_of_kind

from modeling_gptlite.decoding import SAMPLING, sampling_defaults
from modeling_gptlite.evaluation.evaluate import EvaluationSettings
from modeling_gptlite.page.settings import SETTINGS


def test_samples_evaluation_the_page_and_a_saved_model_sample_alike():
    saved = sampling_defaults(tokenizer_of_kind("char"))
    assert {name: getattr(saved, name) for name in SAMPLING} == SAMPLING
    page = {name: SETTINGS[name].value for name in ("temperature", "top_k")}
    assert page | {"do_sample": True} == SAMPLING
    assert EvaluationSettings().temperature == SAMPLING["temperature"]
