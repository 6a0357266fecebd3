"""GPTLite: a small GPT for the Hugging Face ecosystem.

Importing the package registers it, so `AutoModelForCausalLM` and the other auto classes load GPTLite folders without
remote code. A saved model contains its two files of code, for machines that do not have the package.
"""

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
