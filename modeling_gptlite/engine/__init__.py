"""Fast generation on a CPU: a saved GPTLite in ONNX Runtime, with int8 weights, under transformers' own `generate()`.

from modeling_gptlite.engine import load_fast

model = load_fast("out/quickstart")
pipeline("text-generation", model=model, tokenizer=tokenizer)("ROMEO:", max_new_tokens=500)

Needs `pip install "gptlite[export]"`, and no compiler. The first call for a model builds its graph and keeps it in the
model's sub-folder `engine`. It is built again if the weights or the configuration change. `in_engine(model)` takes a
model that is in memory, and keeps no graph.
"""

from .graph import EngineError
from .model import FastGPTLite, in_engine, load_fast


__all__ = ["EngineError", "FastGPTLite", "in_engine", "load_fast"]
