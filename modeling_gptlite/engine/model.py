"""The engine's model: `GPTLiteForCausalLM` with ONNX Runtime behind `forward`, so that `generate()` works as always."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..configuration_gptlite import GPTLiteConfig
from ..files import cache_dir, sha256, written
from ..loading import check_folder, load_pretrained
from ..modeling_gptlite import _CACHE as CACHE
from ..modeling_gptlite import GPTLiteForCausalLM, GPTLitePreTrainedModel, takes_both_cache_names
from .graph import EngineError, build_graph


FOLDER = "engine"
VERSION = "1"  # of the graph: files of another one are built again
DIGEST = "source_sha256"  # the entry in a file's metadata that tells which weights it was built from


class Cache:
    """Keys and values of every layer, in buffers as long as the context, which ONNX Runtime writes in place.

    Each text starts at position 0 of its row: the padding of a batch is not in the cache.
    """

    is_compileable = False

    def __init__(self, session: Any, config: GPTLiteConfig, batch_size: int):
        self.session = session
        shape: Any = (batch_size, config.num_key_value_heads, config.max_position_embeddings, config.head_dim)
        names = [f"{index}_{kind}" for index in range(config.num_hidden_layers) for kind in ("key", "value")]
        self.buffers = {name: np.zeros(shape, np.float32) for name in names}
        self.binding = self._bind_buffers()
        # What one more token of each text needs is bound once: binding takes as long as a part of the model.
        self.step: dict[str, Any] = {
            "input_ids": np.zeros((batch_size, 1), np.int64),
            "position_ids": np.zeros((batch_size, 1), np.int64),
            "last_positions": np.zeros(batch_size, np.int32),
            "longest": np.zeros((), np.int32),
            "kept": np.zeros((batch_size, 1), np.int64),
        }
        self.step_logits = np.zeros((batch_size, 1, config.vocab_size), np.float32)
        self.step_binding = self._bind_buffers()
        for name, array in self.step.items():
            self.step_binding.bind_ortvalue_input(name, _share(array))
        self.step_binding.bind_ortvalue_output("logits", _share(self.step_logits))
        self.lengths = np.zeros(batch_size, np.int64)  # of each text, without padding
        self.columns = 0  # of the batch, with padding

    def _bind_buffers(self) -> Any:
        binding = self.session.io_binding()
        for name, array in self.buffers.items():
            buffer = _share(array)
            binding.bind_ortvalue_input(f"past_{name}", buffer)
            binding.bind_ortvalue_output(f"present_{name}", buffer)
        return binding

    def append(self, input_ids: np.ndarray, lengths: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Read the next tokens of each text, `(batch, tokens)`; the rest of a row, if it is shorter, is ignored.

        Args:
            lengths: How many tokens of each row are text, `(batch,)`.
            kept: The tokens whose logits are returned, `(batch, kept)`.
        """
        total = self._grown_by(lengths)
        inputs = {
            "input_ids": input_ids,
            "position_ids": np.minimum(self.lengths[:, None] + np.arange(input_ids.shape[1]), self.context - 1),
            "last_positions": (total - 1).astype(np.int32),
            "longest": np.array(total.max(), np.int32),
            "kept": kept,
        }
        for name, array in inputs.items():
            self.binding.bind_cpu_input(name, np.ascontiguousarray(array))
        self.binding.bind_output("logits")
        self.session.run_with_iobinding(self.binding)
        self.lengths = total
        return self.binding.get_outputs()[-1].numpy()

    def append_one(self, input_ids: np.ndarray) -> np.ndarray:
        """As `append`, for one more token of each text, `(batch, 1)`."""
        total = self._grown_by(1)
        self.step["input_ids"][:] = input_ids
        self.step["position_ids"][:, 0] = self.lengths
        self.step["last_positions"][:] = self.lengths
        self.step["longest"][...] = total.max()
        self.session.run_with_iobinding(self.step_binding)
        self.lengths = total
        return self.step_logits.copy()

    @property
    def context(self) -> int:
        return next(iter(self.buffers.values())).shape[2]

    def _grown_by(self, tokens: Any) -> np.ndarray:
        total = self.lengths + tokens
        if total.max() > self.context:
            raise EngineError(f"{total.max()} tokens do not fit the context of {self.context}; shorten the text")
        return total

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def reset(self) -> None:
        self.lengths, self.columns = np.zeros_like(self.lengths), 0

    def crop(self, tokens: int) -> None:
        """Remove the last `-tokens` tokens; a positive number is how many to keep, as in older transformers."""
        removed = -tokens if tokens <= 0 else self.columns - tokens
        self.lengths, self.columns = self.lengths - removed, self.columns - removed

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        rows = beam_idx.numpy()
        for array in self.buffers.values():
            array[:] = array[rows]
        self.lengths = self.lengths[rows]


def _share(array: np.ndarray) -> Any:
    """An `OrtValue` in the memory of the array, which must outlive it."""
    from onnxruntime import OrtValue

    return OrtValue.ortvalue_from_numpy(array)


class EngineConfig(GPTLiteConfig):
    """The configuration under another type, which `pipeline` knows to be a language model's."""

    model_type = "gptlite_engine"


class FastGPTLite(GPTLiteForCausalLM):
    """A GPTLite whose `forward` runs in ONNX Runtime on the CPU: for generation and logits, without gradients."""

    config_class = EngineConfig
    hf_device_map = {"": "cpu"}  # tells `pipeline` not to move it

    def __init__(self, config: EngineConfig, session: Any):
        GPTLitePreTrainedModel.__init__(self, config)  # not the parent's: it would allocate the weights
        self.session = session

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        raise EngineError("the engine does not hold the weights; copy the folder of the model instead")

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in `GPTLiteForCausalLM`.

        PyTorch, which samples, gets one thread: ONNX Runtime's own wait busily for the next step, and would take the
        cores from a second one.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return super().generate(*args, **kwargs)  # type: ignore[misc]  # of a mixin for all models
        finally:
            torch.set_num_threads(threads)

    @takes_both_cache_names
    @torch.no_grad()
    def forward(  # type: ignore[override]
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> CausalLMOutputWithPast:
        """Logits `(batch, kept, vocab_size)`, and the cache if `use_cache` is not False.

        Raises:
            EngineError: An argument is not supported, or the text is longer than the context.
        """
        if given := sorted(name for name, value in others.items() if value is not None and value is not False):
            raise EngineError(f"the engine does not take {', '.join(given)}")
        cache = self._cache(past_key_values, len(input_ids))
        ids = input_ids.numpy()
        mask = np.ones_like(ids) if attention_mask is None else attention_mask.numpy().astype(np.int64)
        mask = mask[:, -ids.shape[1] :]
        positions = cache.lengths[:, None] + mask.cumsum(axis=1) - 1
        if position_ids is not None and ((position_ids.numpy() != positions) & (mask == 1)).any():
            raise EngineError("the engine counts positions from the start of each text; it takes no packed sequences")
        columns = np.arange(ids.shape[1])
        columns = columns[-logits_to_keep:] if isinstance(logits_to_keep, int) else columns[logits_to_keep.numpy()]
        logits = self._read(cache, ids, mask, columns)
        kept_cache: Any = None if use_cache is False else cache
        return CausalLMOutputWithPast(logits=torch.from_numpy(logits), **{CACHE: kept_cache})

    def _cache(self, past_key_values: Any, batch_size: int) -> Cache:
        if isinstance(past_key_values, Cache):
            return past_key_values
        if past_key_values is not None and past_key_values.get_seq_length():
            raise EngineError("the engine continues from its own cache only")
        return Cache(self.session, self.config, batch_size)

    def _read(self, cache: Cache, ids: np.ndarray, mask: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Append to the cache, and return the logits of these columns."""
        if cache.columns and ids.shape[1] > 1:  # the kernel reads many tokens from the start of a text only
            parts = [self._read(cache, ids[:, i, None], mask[:, i, None], np.zeros(1, int)) for i in range(len(ids[0]))]
            return np.concatenate(parts, axis=1)[:, columns]
        lengths = mask.sum(axis=1)
        if not lengths.all():
            raise EngineError("a text of the batch has no tokens")
        cache.columns += ids.shape[1]
        if ids.shape[1] == len(columns) == 1:
            return cache.append_one(ids)
        without_padding = np.take_along_axis(ids, np.argsort(-mask, axis=1, kind="stable"), axis=1)
        kept = (mask.cumsum(axis=1) - 1).clip(min=0)[:, columns]
        return cache.append(without_padding[:, : lengths.max()], lengths, kept)


AutoModelForCausalLM.register(EngineConfig, FastGPTLite, exist_ok=True)


def load_fast(name_or_path: str | Path, int8: bool = True) -> FastGPTLite:
    """Load a saved GPTLite for fast generation on a CPU.

    Args:
        name_or_path: Folder, or repository id on the Hub. The graph is kept in the folder's sub-folder `engine`; that
            of a repository, in `~/.cache/gptlite/engine`. If it cannot be written, it is built at every call.
        int8: Store the matrices in int8; in float32 the logits are those of the model.

    Raises:
        UserError: The model cannot be loaded, is not a GPTLite or has no kernels, or a package is not installed.
    """
    folder = Path(name_or_path) if Path(name_or_path).is_dir() else _download(str(name_or_path))
    session = _session(folder, int8)
    model = FastGPTLite(_engine_config(GPTLiteConfig.from_pretrained(folder)), session)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def in_engine(model: GPTLiteForCausalLM, int8: bool = True) -> FastGPTLite:
    """A model that is in memory, for fast generation on a CPU; nothing is written to the disk.

    Raises:
        UserError: The model is not a GPTLite, has an adapter or no kernels, or a package is not installed.
    """
    runtime = _import_runtime()
    graph = _build(model, int8)
    fast = FastGPTLite(_engine_config(model.config), runtime.InferenceSession(graph.SerializeToString(), _options()))
    fast.generation_config = model.generation_config
    return fast.eval()


def _engine_config(config: GPTLiteConfig) -> EngineConfig:
    fields = config.to_dict()
    del fields["model_type"]
    return EngineConfig(**fields)


def _download(repository: str) -> Path:
    """The folder in the Hub's cache that holds a model, downloaded if it is not there."""
    check_folder(repository)
    try:
        return Path(snapshot_download(repository, allow_patterns=["*.json", "model*.safetensors"]))
    except (OSError, HTTPError, ValueError) as error:
        raise EngineError(f"cannot load the model {repository!r}: {error}") from error


def _import_runtime() -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"the engine needs {error.name}: pip install 'gptlite[export]'") from error
    return onnxruntime


def _options() -> Any:
    from onnxruntime import SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return options


def _session(folder: Path, int8: bool) -> Any:
    open_session = _import_runtime().InferenceSession
    digest = _digest(folder)
    path = _kept_in(folder, digest) / ("int8.onnx" if int8 else "float32.onnx")
    if path.exists():
        try:
            session = open_session(path, _options())
            if session.get_modelmeta().custom_metadata_map.get(DIGEST) == digest:
                return session
        except Exception:  # onnxruntime has a class of its own for every way in which a file is damaged
            pass
    graph = _build(load_pretrained(str(folder))[0], int8, {DIGEST: digest})
    try:
        _write(graph, path)
    except OSError:  # a read-only folder, or a full disk
        return open_session(graph.SerializeToString(), _options())
    return open_session(path, _options())


def _build(model: Any, int8: bool, metadata: dict[str, str] | None = None) -> Any:
    if type(model) is not GPTLiteForCausalLM:
        raise EngineError(f"the model is a {type(model).__name__}; the engine runs GPTLiteForCausalLM")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise EngineError("the engine does not run adapters; merge it into the model first")
    return build_graph(model, int8, metadata)


def _kept_in(folder: Path, digest: str) -> Path:
    """Beside the model, unless that is a snapshot in the Hub's cache, which may hold only what was downloaded."""
    if folder.parent.name == "snapshots":
        return cache_dir() / FOLDER / digest
    return folder / FOLDER


def _write(graph: Any, path: Path) -> None:
    import onnx

    with written(path) as partial:  # processes that load at the same time find a complete file or none
        onnx.save(graph, partial)


def _digest(folder: Path) -> str:
    """The sha256 of everything that the graph is made from."""
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    if len(files) < 2 or not files[0].exists():
        raise EngineError(f"{folder} is not the folder of a model: it has no config.json or no *.safetensors")
    digest = hashlib.sha256(VERSION.encode())
    for path in files:
        digest.update(bytes.fromhex(sha256(path)))
    return digest.hexdigest()
