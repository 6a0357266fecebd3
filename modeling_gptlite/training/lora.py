"""LoRA (Hu et al., 2021) through PEFT: small matrices beside the frozen ones, saved as a folder of their own.

model = add_lora(model, rank=8)
"""

from pathlib import Path

from transformers import PreTrainedModel


def add_lora(model: PreTrainedModel, rank: int, alpha: int | None = None, dropout: float = 0.0):
    """A `PeftModel` with an adapter beside every linear layer but the head; embeddings stay as they are.

    Args:
        alpha: The adapter's output is scaled by alpha / rank; twice the rank if not given.
        dropout: Probability, of the adapter's input.

    Raises:
        ImportError: PEFT is not installed.
        ValueError: PEFT's, for a rank below 1.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=alpha or 2 * rank,
        lora_dropout=dropout,
        target_modules="all-linear",
    )
    base = model.name_or_path
    peft_model = get_peft_model(model, config)
    if Path(base).is_dir():  # else the adapter would load from this working directory only
        config.base_model_name_or_path = str(Path(base).resolve())
    return peft_model
