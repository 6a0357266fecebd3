"""GPTLite: a small GPT for the Hugging Face ecosystem.

Importing the package registers it, so `AutoModelForCausalLM` and the other auto classes load GPTLite folders without
remote code. A saved model contains its two files of code, for machines that do not have the package.
"""

import transformers


# Before the other imports, as in `configuration_gptlite.py`; a saved model's own code runs on 5.4 and later.
if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 17):
    raise ImportError(
        f"the package gptlite needs transformers>=5.17,<6, and {transformers.__version__} is installed; "
        "pip install 'transformers>=5.17,<6', or load its models without the package"
    )

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_gptlite import GPTLiteConfig
from .modeling_gptlite import (
    GPTLiteForCausalLM,
    GPTLiteForQuestionAnswering,
    GPTLiteForSequenceClassification,
    GPTLiteForTokenClassification,
    GPTLiteModel,
)


AutoConfig.register("gptlite", GPTLiteConfig, exist_ok=True)
GPTLiteConfig.register_for_auto_class()
for _auto_class, _model_class in (
    (AutoModel, GPTLiteModel),
    (AutoModelForCausalLM, GPTLiteForCausalLM),
    (AutoModelForSequenceClassification, GPTLiteForSequenceClassification),
    (AutoModelForTokenClassification, GPTLiteForTokenClassification),
    (AutoModelForQuestionAnswering, GPTLiteForQuestionAnswering),
):
    _auto_class.register(GPTLiteConfig, _model_class, exist_ok=True)
    _model_class.register_for_auto_class(_auto_class.__name__)

__all__ = [
    "GPTLiteConfig",
    "GPTLiteForCausalLM",
    "GPTLiteForQuestionAnswering",
    "GPTLiteForSequenceClassification",
    "GPTLiteForTokenClassification",
    "GPTLiteModel",
]
