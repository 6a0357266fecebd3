"""A saved folder on the Hub: which of its files are published, and how they get there, in one commit.

push_folder(Path("out/quickstart"), "user/name", card=render_card(template, record, "user/name"))
"""

import contextlib
import json
import os
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    SpaceCardData,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)


ADAPTER_CONFIG = "adapter_config.json"
# Everything else stays at home: checkpoints, optimizer and scheduler state, pickles, logs.
PUBLISHED = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
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


class HubError(ValueError):
    """The Hub refused or could not be reached; the message says what to do."""


def published_files(folder: Path) -> dict[str, Path]:
    """The files of `folder` that go to the Hub, by their name there.

    Raises:
        HubError: there are no weights, a text file names a folder of this machine, or an adapter's model lies in one.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
        if os.path.isabs(base) or os.path.isdir(base):
            raise HubError(
                f"{folder.name} is an adapter of a model that lies in a folder of this machine; publish that model and "
                "train on its Hub name, or merge the adapter into it and publish the whole"
            )
    files = {path.name: path for pattern in PUBLISHED for path in sorted(folder.glob(pattern))}
    if not any(name.endswith(".safetensors") for name in files):
        raise HubError(f"{folder} holds no model.safetensors: nothing to publish")
    for name, path in files.items():
        if path.suffix in (".json", ".md", ".py", ".txt", ".jinja"):
            text = path.read_text(encoding="utf-8")
            for place in {str(folder.resolve()), str(Path.home())} - {"/"}:
                if place + os.sep in text or f'"{place}"' in text:
                    raise HubError(f"{name} would publish a path of this machine: {place}")
    return dict(sorted(files.items()))


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
    """Make the repository if need be and publish the folder in one commit; an unchanged folder makes none.

    What an earlier push published and this folder lacks (the code, after a push as a native class) is deleted.

    Args:
        card: The `README.md` to publish instead of the folder's.
        revision: A branch, made if it is not there.
        run_as_future: Return at once, with a future of the `CommitInfo`.

    Raises:
        HubError: in one line, why not.
    """
    files = published_files(folder)
    with hub_errors(repo_id):
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        operations = [CommitOperationAdd(name, path) for name, path in files.items() if name != "README.md" or not card]
        if card:
            operations.append(CommitOperationAdd("README.md", card.encode()))
        kept = {operation.path_in_repo for operation in operations}
        stale = [name for name in there if name not in kept and any(Path(name).match(p) for p in PUBLISHED)]
        operations += [CommitOperationDelete(name) for name in stale if "/" not in name]
        return api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            run_as_future=run_as_future,
        )


def tag_commit(repo_id: str, tag: str, revision: str) -> None:
    """Tag a commit; a tag that is there already stays where it is."""
    with hub_errors(repo_id):
        HfApi().create_tag(repo_id, tag=tag, revision=revision, exist_ok=True)


def push_space(repo_id: str, model_id: str, demo: Path, private: bool | None = None) -> str:
    """Publish a Gradio Space whose page is the program `demo` with the published model; returns its address."""
    title = model_id.split("/")[-1]
    data = SpaceCardData(title=title, sdk="gradio", app_file="app.py", license="mit", models=[model_id])
    card = f"---\n{data.to_yaml()}\n---\n\nA page to play with [{model_id}](https://huggingface.co/{model_id}).\n"
    files = {
        "app.py": f"from demo import main\n\n\nmain(['--model', {model_id!r}, '--trust_remote_code'])\n".encode(),
        "demo.py": demo.read_bytes(),
        "requirements.txt": b"torch\ntransformers>=5.17,<6\n",
        "README.md": card.encode(),
    }
    with hub_errors(repo_id):
        api = HfApi()
        url = api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_commit(url.repo_id, operations, commit_message="Upload demo", repo_type="space")
        return str(url)


@contextlib.contextmanager
def hub_errors(repo_id: str):
    """Turn what the Hub's client raises into a `HubError` of one line that says what to do; tokens are not in it."""
    try:
        yield
    except HFValidationError as error:
        raise HubError(f"{repo_id!r} is no name of a repository; it must look like USER/NAME") from error
    except (LocalTokenNotFoundError, OfflineModeIsEnabled) as error:
        advice = "unset HF_HUB_OFFLINE" if isinstance(error, OfflineModeIsEnabled) else "run `hf auth login`"
        raise HubError(f"cannot push to {repo_id}: {advice}") from error
    except HfHubHTTPError as error:
        raise HubError(f"cannot push to {repo_id}: {_advice(error)}") from error
    except (HTTPError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not isinstance(error.__cause__, HTTPError | OSError):
            raise
        raise HubError(
            f"cannot push to {repo_id}: the Hub cannot be reached; run the command again "
            "when it can, it goes on from where it was"
        ) from error


def _advice(error: HfHubHTTPError) -> str:
    status = error.response.status_code
    if status == 401 or isinstance(error, RepositoryNotFoundError):
        return "the token is missing, wrong or has expired; run `hf auth login`"
    if status == 403:
        return (
            "the token may not write there; it needs write permission, and the name must be in a namespace of yours "
            "(https://huggingface.co/settings/tokens)"
        )
    return f"the Hub answered {status}; nothing was committed, run the command again"
