"""Loading a saved model and its tokenizer, from a folder or the Hub, without running anybody's code.

from modeling_gptlite.loading import load_pretrained

model, tokenizer = load_pretrained("out/quickstart")
"""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from . import GPTLiteForCausalLM
from .errors import UserError
from .files import check_readable
from .hub import ADAPTER_CONFIG


# What transformers raises for configuration values that are wrong; for names and files, too.
CONFIGURATION_ERRORS = (ValueError, TypeError, AttributeError, StrictDataclassError)
# An `ImportError` names the package that a quantized model needs.
LOADING_ERRORS = (OSError, KeyError, ImportError, SafetensorError, *CONFIGURATION_ERRORS)


def load_pretrained(name_or_path: str, tokenizer: str | None = None, **kwargs):
    """Load a causal language model and its tokenizer from a folder or the Hub.

    No code from there is run, unless `trust_remote_code` is given. A folder that holds a LoRA adapter gives the base
    model that it names, with the adapter attached.

    Args:
        name_or_path: Folder, or repository id on the Hub.
        tokenizer: Folder or repository id of another tokenizer.
        kwargs: For the model's `from_pretrained`.

    Returns:
        The model and the tokenizer.

    Raises:
        UserError: One of them cannot be loaded.
    """
    check_pretrained(name_or_path)
    loaded_tokenizer = load_tokenizer(tokenizer or name_or_path)
    return load_model(name_or_path, **kwargs), loaded_tokenizer


def load_model(name_or_path: str, **kwargs):
    """The model of `load_pretrained` without its tokenizer."""
    check_pretrained(name_or_path)
    kwargs = {"trust_remote_code": False, "use_safetensors": True, **kwargs}
    try:
        model = AutoModelForCausalLM.from_pretrained(name_or_path, **kwargs)
    except RuntimeError as error:  # weights of other shapes than the config's
        raise UserError(f"cannot load the model {name_or_path!r}: its weights do not fit its config.json") from error
    except LOADING_ERRORS as error:
        raise UserError(f"cannot load the model {name_or_path!r}: {reason(error)}") from error
    if getattr(model, "_hf_peft_config_loaded", False):
        with contextlib.suppress(OSError):  # transformers has loaded the base model's
            model.generation_config = GenerationConfig.from_pretrained(name_or_path)
    return model


def load_config(name_or_path: str):
    """The configuration of a model in a folder or on the Hub; of an adapter, that of its base model.

    Raises:
        UserError: It cannot be loaded.
    """
    check_pretrained(name_or_path)
    try:
        folder = Path(name_or_path)
        if not (folder / "config.json").is_file() and (folder / ADAPTER_CONFIG).is_file():
            name_or_path = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        return AutoConfig.from_pretrained(name_or_path, trust_remote_code=False)
    except LOADING_ERRORS as error:
        raise UserError(f"cannot load the configuration of {name_or_path!r}: {reason(error)}") from error


def check_pretrained(name_or_path: str) -> None:
    """Raise `UserError` if a folder holds no model, a damaged one, or an adapter that cannot be loaded here."""
    if (Path(name_or_path) / ADAPTER_CONFIG).is_file() and not transformers.utils.is_peft_available():
        raise UserError(f'{name_or_path} is a LoRA adapter, which needs PEFT: pip install "gptlite[finetune]"')
    check_folder(name_or_path)
    _check_base(Path(name_or_path) / ADAPTER_CONFIG)
    check_shards(Path(name_or_path))


def _check_base(adapter_config: Path) -> None:
    """Raise `UserError` if an adapter names no base model, or one that is not where it was when it was trained."""
    if not adapter_config.is_file():
        return
    base = json.loads(adapter_config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    try:
        if not isinstance(base, str):
            raise UserError("it names none")
        check_folder(base)
    except UserError as error:
        raise UserError(
            f"cannot load the base model of the adapter {adapter_config.parent}: {error}; write its folder or Hub name "
            f"into base_model_name_or_path in {adapter_config}"
        ) from error


def load_for_inference(name_or_path: str, device: str | None = None, dtype: str = "auto"):
    """Load a model and its tokenizer to generate or evaluate: on a device, in evaluation mode, known to work.

    Args:
        device: Where the model goes. Default: the accelerator if there is one, else the CPU.
        dtype: For `from_pretrained`; "auto" keeps the type of the saved weights.

    Raises:
        UserError: It cannot be loaded, does not fit on the device, or its `generation_config.json` is invalid.
    """
    model, tokenizer = load_pretrained(name_or_path, dtype=dtype)
    model = _on_device(model, device)
    check_generation(model, name_or_path)
    return model, tokenizer


def _on_device(model, device: str | None):
    where = device or torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        if torch.device(where).type == "meta":
            raise RuntimeError("it holds no data; allowed are cpu, cuda, mps and other devices that compute")
        return model.to(where).eval()
    except (RuntimeError, AssertionError) as error:  # an unknown device; one that this PyTorch is not built for
        raise UserError(f"--device {where}: {error}") from error


def check_generation(model, name_or_path: str, **arguments) -> None:
    """Generate one token, because transformers does not check the types in a `generation_config.json`.

    Args:
        arguments: For `generate`: they decide which of its values are read.

    Raises:
        UserError: One of them is wrong.
    """
    token = torch.ones((1, 1), dtype=torch.long, device=model.device)
    try:
        with quiet():
            model.generate(token, attention_mask=token, **{**arguments, "max_new_tokens": 1})
    except (*CONFIGURATION_ERRORS, RuntimeError) as error:
        raise UserError(f"{name_or_path} cannot generate, check its generation_config.json: {error}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what other libraries print and log, warnings and progress bars included; errors are raised."""
    disabled = logging.root.manager.disable
    discarded = io.StringIO()
    with (
        contextlib.redirect_stdout(discarded),
        contextlib.redirect_stderr(discarded),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(disabled)


def load_tokenizer(name_or_path: str):
    """Load a tokenizer from a folder or the Hub; no code from there is run."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        tokenizer(tokenizer.decode([0]))  # some wrong values raise only here
        return tokenizer
    except LOADING_ERRORS as error:
        raise UserError(f"cannot load the tokenizer of {name_or_path!r}: {reason(error)}") from error


def check_folder(name_or_path: str) -> None:
    """Raise `UserError` if `name_or_path` is a path where no model is, or a damaged one; a repository id passes."""
    folder = Path(name_or_path)
    if folder.is_file():
        raise UserError(f"{name_or_path} is a file; give the folder of a model, or a repository id on the Hub")
    if not folder.is_dir():
        is_absolute = folder.is_absolute() or PureWindowsPath(name_or_path).is_absolute()  # saved on another machine
        beside = sorted(path.parent.name for path in folder.parent.glob("*/config.json")) if folder.parts[1:] else []
        if beside or is_absolute or name_or_path[:1] in (".", "~") or len(folder.parts) > 2:
            hint = f"; {folder.parent} holds {', '.join(beside)}" if beside else ""
            raise UserError(f"no such folder: {name_or_path}{hint}")
    elif not any((folder / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        steps = [int(path.name[11:]) for path in folder.glob("checkpoint-*") if path.name[11:].isdigit()]
        hint = f"; its run is not finished: load {folder / f'checkpoint-{max(steps)}'}" if steps else ""
        raise UserError(f"{name_or_path} is not the folder of a model: it has no config.json{hint}")
    else:
        for path in (*folder.glob("*.json"), *folder.glob("*.safetensors")):
            check_readable(path)  # transformers reports unreadable weights as missing
        _check_settings(folder)


def _check_settings(folder: Path) -> None:
    """Raise `UserError` if a settings file of a model's folder is not a JSON object; transformers fails deep inside."""
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", ADAPTER_CONFIG):
        if (folder / name).is_file():
            try:
                settings = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as error:
                raise UserError(f"{folder / name} is not JSON: {error}") from error
            if not isinstance(settings, dict):
                raise UserError(f"{folder / name} is not a JSON object of settings")


def check_shards(folder: Path) -> None:
    """Raise `UserError` if the index of a sharded model names a file outside its folder."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return
    try:
        names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"cannot load the model {str(folder)!r}: {index.name} is not an index of shards") from error
    if outside:
        raise UserError(f"cannot load the model {str(folder)!r}: {index.name} names a file elsewhere: {outside[0]}")


def longest_text(model) -> int | None:
    """Most tokens, prompt included, that `model` can generate; None if there is no limit (GPTLite's window moves)."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if isinstance(base, GPTLiteForCausalLM):
        return None
    return getattr(base.config.get_text_config(), "max_position_embeddings", None)


def accept_older_transformers(folder: Path) -> None:
    """Name a tokenizer class that transformers 4 also knows; version 5 writes a new name for the same class."""
    path = folder / "tokenizer_config.json"
    if path.exists():
        config = json.loads(path.read_text(encoding="utf-8"))
        if config.get("tokenizer_class") == "TokenizersBackend":
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
            path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def reason(error: Exception) -> str:
    """The message of a validation error without the lines that `StrictDataclassError` wraps around it."""
    cause = error.__cause__ or error
    return str(cause)
