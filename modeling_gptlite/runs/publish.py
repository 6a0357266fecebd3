"""Publish a finished folder on the Hub, as GPTLite, as one of transformers' own classes or as GGUF; and a Space for it.

commit = publish(Path("out/quickstart"), "user/name", tag="v1")
address = push_space("user/name-demo", space_files("gradio", Path("out/quickstart"), "user/name"))
"""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi
from huggingface_hub.utils import validate_repo_id

from ..hub import (
    ADAPTER_CONFIG,
    HubError,
    hub_errors,
    plain_card,
    published_files,
    push_folder,
    saved_config,
    tag_commit,
)
from ..interchange import ConversionError, Material, write
from ..interchange.pretrained import read_pretrained, write_native
from ..loading import accept_older_transformers
from .card import render_card
from .record import RUN_FILE, read_run


GGUF_DTYPES = ("f32", "f16", "q8_0")  # Ollama selects one of them by a tag


def publish(
    source: Path,
    repo_id: str,
    kind: str = "gptlite",
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    report: Callable[[str], None] | None = None,
) -> CommitInfo:
    """Upload a saved model with its card in one commit.

    Args:
        source: Folder of the model, as training or `save_pretrained` writes it.
        repo_id: `USER/NAME`; created if it does not exist.
        kind: One of `KINDS`.
        revision: Branch, created if it does not exist.
        create_pr: Open a pull request instead of committing.
        tag: Of the commit; not moved if it exists already.
        report: Called with the list of the files before they are uploaded.

    Raises:
        HubError: The folder cannot be published, or the upload failed.
        RecordError: Its `run.json` is damaged.
    """
    with staged(source, repo_id, kind) as folder:
        if report:
            report(list_files(folder))
        commit = push_folder(folder, repo_id, private=private, revision=revision, create_pr=create_pr)
    if tag:
        tag_commit(repo_id, tag, commit.pr_revision or commit.oid)
    return commit


@contextlib.contextmanager
def staged(source: Path, repo_id: str, kind: str = "gptlite") -> Iterator[Path]:
    """A temporary folder that holds exactly what `publish` would upload."""
    check_repo_id(repo_id)
    if kind not in KINDS:
        raise HubError(f"--as must be {' or '.join(KINDS)}, got {kind!r}")
    if not any((source / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise HubError(f"{source} is not the folder of a model: it has no config.json")
    files = published_files(source)
    card = _card(source, repo_id, kind)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / repo_id.split("/")[-1]
        folder.mkdir()
        KINDS[kind](source, files, folder)
        accept_older_transformers(folder)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")
        yield folder


def _card(source: Path, repo_id: str, kind: str) -> str | None:
    """The card to upload; None if it is the folder's own."""
    if (source / RUN_FILE).exists():
        return render_card(read_run(source), repo_id, kind, source)
    if (source / "README.md").exists() and kind != "gguf":  # whose commands are others
        return None
    model_type = saved_config(source).get("model_type", "")
    return plain_card(repo_id, model_type, kind, is_adapter=(source / ADAPTER_CONFIG).exists())


def _stage_gptlite(source: Path, files: dict[str, Path], folder: Path) -> None:
    for name, path in files.items():
        shutil.copyfile(path, folder / name)


def _stage_native(source: Path, files: dict[str, Path], folder: Path) -> None:
    """Convert the model to a class of transformers; its logits, and so the losses on the card, stay the same."""
    with _converted(source, files, "native") as material:
        if material.original is not material.model:
            held = type(material.original).__name__
            raise HubError(f"{source} holds a {held}, which is native already; push it without --as")
        write_native(material, folder)
    for name, path in files.items():
        of_gptlite = path.suffix in (".safetensors", ".py") or name.endswith(".index.json")
        if not of_gptlite and not (folder / name).exists():
            shutil.copyfile(path, folder / name)


def _stage_gguf(source: Path, files: dict[str, Path], folder: Path) -> None:
    """Convert the model to GGUF in each of `GGUF_DTYPES`, named after the repository."""
    with _converted(source, files, "gguf") as material:
        material.name = folder.name
        for dtype in GGUF_DTYPES:
            write(material, folder, "gguf", dtype)
    for name, path in files.items():
        if name in (RUN_FILE, "samples.md") or path.suffix == ".png":
            shutil.copyfile(path, folder / name)


@contextlib.contextmanager
def _converted(source: Path, files: dict[str, Path], kind: str) -> Iterator[Material]:
    """The model to convert; a conversion that is refused becomes a `HubError`."""
    if ADAPTER_CONFIG in files:
        raise HubError(f"{source} is a LoRA adapter; merge it into its base model to publish that as {kind}")
    try:
        yield read_pretrained(str(source))
    except ConversionError as error:
        raise HubError(f"cannot publish {source} as {kind}: {error}") from error


# What a model can be published as: gptlite, with its code; native, as transformers' own class; gguf, as
# files for llama.cpp and Ollama.
KINDS = {"gptlite": _stage_gptlite, "native": _stage_native, "gguf": _stage_gguf}


def list_files(folder: Path) -> str:
    """The files of `folder` that are uploaded with their sizes in bytes, one per line, and the total."""
    sizes = {name: path.stat().st_size for name, path in published_files(folder).items()}
    lines = [f"{size:>12,}  {name}" for name, size in sizes.items()]
    return "\n".join([*lines, f"{sum(sizes.values()):>12,}  bytes in {len(sizes)} files"])


def check_repo_id(repo_id: str) -> None:
    """Raise `HubError` if `repo_id` cannot be the name of a repository."""
    with hub_errors(repo_id):
        validate_repo_id(repo_id)


def push_space(repo_id: str, files: Mapping[str, bytes], sdk: str = "gradio", private: bool | None = None) -> str:
    """Create a Space and upload its files, from `page.space.space_files`, in one commit; returns its address."""
    with hub_errors(repo_id):
        api = HfApi()
        url = api.create_repo(repo_id, repo_type="space", space_sdk=sdk, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(url.repo_id, operations, commit_message="Upload demo", repo_type="space")
        return str(url)
