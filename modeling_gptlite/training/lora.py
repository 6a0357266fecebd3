"""LoRA (Hu et al., 2021) with PEFT: small trainable matrices beside the frozen ones, saved in a folder of their own.

model = add_lora(model, rank=8)
"""

from pathlib import Path

from transformers import PreTrainedModel


def add_lora(model: PreTrainedModel, rank: int, alpha: int | None = None, dropout: float = 0.0):
    """A `PeftModel` with an adapter beside every linear layer except the head.

    Args:
        alpha: The adapter's output is multiplied by alpha / rank. Default: twice the rank.
        dropout: Probability of dropout on the adapter's input.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: The rank is below 1.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        target_modules="all-linear",
    )
    base = model.name_or_path or ""
    peft_model = get_peft_model(model, config)
    if base and Path(base).is_dir():  # a relative path would load from this working directory only
        config.base_model_name_or_path = str(Path(base).resolve())
    return peft_model
