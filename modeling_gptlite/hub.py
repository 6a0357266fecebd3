"""Publish a saved model on the Hub: which files of its folder are uploaded, all in one commit.

push_folder(Path("out/quickstart"), "user/name", private=True)
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCardData,
    hf_hub_download,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from .errors import UserError


ADAPTER_CONFIG = "adapter_config.json"
# Nothing else is uploaded: no checkpoints, optimizer or scheduler state, pickles or logs.
PUBLISHED = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "*.gguf",
    ADAPTER_CONFIG,
    "config.json",
    "configuration_*.py",
    "modeling_*.py",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "README.md",
    "run.json",
    "samples.md",
    "*.png",
)
REPLACED = [pattern for pattern in PUBLISHED if pattern not in ("*.gguf", "*.png")]
TEXT_SUFFIXES = (".json", ".md", ".py", ".txt", ".jinja")


class HubError(UserError, ValueError):
    """Something cannot be published: the folder is not fit for it, or the Hub refused or could not be reached."""


# ---- What is uploaded ----------------------------------------------------------------------------------------------


def published_files(folder: Path) -> dict[str, Path]:
    """The files of `folder` that are uploaded, by their name on the Hub.

    Raises:
        HubError: There are no weights; a file is a link that leads out of the folder, is not a file, or does not hold
            what its suffix says; a text file contains a path of this machine; or the model is an adapter whose base
            model is a local folder.
    """
    files = {path.name: path for pattern in PUBLISHED for path in sorted(folder.glob(pattern))}
    for path in files.values():
        _check_file(path, folder)
    if not any(name.endswith((".safetensors", ".gguf")) for name in files):
        raise HubError(f"{folder} holds no model.safetensors: nothing to publish")
    return dict(sorted(files.items()))


def _check_file(path: Path, folder: Path) -> None:
    if _leads_outside(path, folder):
        raise HubError(
            f"{path} is a link to {path.resolve()}, outside its folder, and is not uploaded; "
            "replace the link by a copy of the file, or delete it"
        )
    if not path.is_file():
        raise HubError(f"{path} is not a file; rename or delete it")
    if path.suffix not in TEXT_SUFFIXES:
        return
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else None
    except UnicodeDecodeError as error:
        raise HubError(
            f"{path} is not UTF-8: byte 0x{error.object[error.start]:02x} at offset {error.start}"
        ) from error
    except ValueError as error:
        raise HubError(f"{path} is not JSON: {error}") from error
    if path.name == ADAPTER_CONFIG:
        _check_adapter(path, content)
    for place in {str(folder.resolve()), str(Path.home())} - {"/"}:
        if place + os.sep in text or f'"{place}"' in text:
            raise HubError(f"{path.name} would publish a path of this machine: {place}")


def _leads_outside(path: Path, folder: Path) -> bool:
    """Whether `path` resolves to a file that is neither in `folder` nor a blob of the same repository in the Hub cache.

    The cache stores a file as `models--USER--NAME/blobs/HASH`, with links in `models--USER--NAME/snapshots/COMMIT`.
    """
    folder, target = folder.resolve(), path.resolve()
    is_blob = folder.parent.name == "snapshots" and target.parent == folder.parents[1] / "blobs"
    return not (is_blob or target.is_relative_to(folder))


def _check_adapter(path: Path, config: Any) -> None:
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    if not isinstance(base, str):
        raise HubError(f"{path} does not name the base model in base_model_name_or_path")
    if os.path.isabs(base) or os.path.isdir(base):
        raise HubError(
            f"{path.parent.name} is an adapter, and its base model is a folder of this machine; publish that model "
            "first and train on its Hub name, or merge the adapter into it and publish the result"
        )


# ---- Uploading -----------------------------------------------------------------------------------------------------


def push_folder(
    folder: Path,
    repo_id: str,
    card: str | None = None,
    message: str = "Upload model",
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    run_as_future: bool = False,
) -> CommitInfo:
    """Create the repository if it does not exist and upload the folder in one commit; if nothing changed, in none.

    Files of a model that the folder lacks (such as the code, once the model is pushed as a native class) are deleted
    from the repository. GGUF files and pictures, which others may have added, are not.

    Args:
        card: The `README.md` to upload instead of the folder's.
        revision: Branch, created if it does not exist.
        run_as_future: Return a future of the `CommitInfo` at once.

    Raises:
        HubError: The folder cannot be published, the upload failed, or GGUF files would take the place of a model.
    """
    files = published_files(folder)
    with hub_errors(repo_id):
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        uploaded = api.list_repo_files(repo_id, revision=revision)
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, path) for name, path in files.items() if name != "README.md" or not card
        ]
        if card:
            operations.append(CommitOperationAdd("README.md", card.encode()))
        kept = {operation.path_in_repo for operation in operations}
        in_root = [name for name in uploaded if "/" not in name and name not in kept]
        stale = [name for name in in_root if any(Path(name).match(pattern) for pattern in REPLACED)]
        has_model = [any(name.endswith(".safetensors") for name in names) for names in (stale, kept)]
        if has_model == [True, False]:
            raise HubError(
                f"{repo_id} holds a model, which GGUF files would replace; give them a repository of their own"
            )
        operations += map(CommitOperationDelete, stale)
        return api.create_commit(  # type: ignore[call-overload]  # it has none for a variable `run_as_future`
            repo_id,
            operations,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            run_as_future=run_as_future,
        )


def tag_commit(repo_id: str, tag: str, revision: str) -> None:
    """Tag a commit. A tag that exists already is not moved."""
    with hub_errors(repo_id):
        HfApi().create_tag(repo_id, tag=tag, revision=revision, exist_ok=True)


def saved_config(folder: Path) -> dict[str, Any]:
    """What `config.json` in the folder of a model holds; for an adapter, that of its base model.

    Raises:
        HubError: It cannot be read.
    """
    path = folder / "config.json"
    try:
        if (folder / ADAPTER_CONFIG).exists():
            base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
            path = Path(base, path.name)
            if not Path(base).is_dir():
                path = Path(hf_hub_download(base, path.name))
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, HTTPError) as error:
        raise HubError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict):
        raise HubError(f"{path} is not a JSON object of settings")
    return config


def card_metadata(model_type: str, kind: str = "gptlite", is_adapter: bool = False) -> dict[str, Any]:
    """The library and the tags on the card of a repository.

    Args:
        model_type: As in `config.json`; for an adapter that of its base model, for a converted model of the source.
        kind: What the model is published as: "gptlite" (as it is saved), "native" or "gguf".
    """
    if kind == "gguf":
        return {"library_name": "gguf", "tags": [model_type, "gguf"]}
    if is_adapter:
        return {"library_name": "peft", "tags": [model_type, "lora"]}
    carries_code = model_type == "gptlite" and kind == "gptlite"
    return {"library_name": "transformers", "tags": [model_type, *(["custom_code"] if carries_code else [])]}


def plain_card(repo_id: str, model_type: str, kind: str = "gptlite", is_adapter: bool = False) -> str:
    """The card of a model without a `run.json`: metadata and, for GGUF, the command; nothing was measured."""
    data = ModelCardData(pipeline_tag="text-generation", **card_metadata(model_type, kind, is_adapter))
    usage = f"\n```bash\nollama run hf.co/{repo_id}\n```\n" if kind == "gguf" else ""
    return f"---\n{data.to_yaml()}\n---\n\n# {repo_id.split('/')[-1]}\n{usage}"


@contextlib.contextmanager
def hub_errors(repo_id: str):
    """Turn the exceptions of the Hub's client into a `HubError` of one line that says what to do, without tokens."""
    try:
        yield
    except HubError:
        raise
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is not the name of a repository; it must look like USER/NAME") from error
    except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        advice = "unset HF_HUB_OFFLINE" if isinstance(error, OfflineModeIsEnabled) else "run `hf auth login`"
        raise HubError(f"cannot push to {repo_id}: {advice}") from error
    except HfHubHTTPError as error:
        raise HubError(f"cannot push to {repo_id}: {_advice(error)}") from error
    except (HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, HTTPError | OSError):
            raise
        raise HubError(
            f"cannot push to {repo_id}: the Hub cannot be reached; run the command again when it can, "
            "it continues where it stopped"
        ) from error
    except ValueError as error:  # metadata of the card that the Hub rejects
        raise HubError(f"cannot push to {repo_id}: {error}") from error


def _advice(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == 401 or isinstance(error, RepositoryNotFoundError):
        return "the token is missing, wrong or has expired; run `hf auth login`"
    if status == 403:
        return (
            "the token has no write permission there; it needs one, and the name must be in a namespace of yours "
            "(https://huggingface.co/settings/tokens)"
        )
    if 400 <= status < 500 and status not in (408, 409, 412, 429):  # again it would answer the same
        return f"the Hub answered {status}: {' '.join((error.server_message or 'nothing more').split())}"
    return f"the Hub answered {status}; run the command again"
