"""What the tests of publishing rely on: how the Hub on this machine answers the real client."""

import http.client
import os
from pathlib import Path

import pytest
from hub_server import Fault, HubServer
from huggingface_hub import CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


WEIGHTS = bytes(range(256)) * 50
FILES = {
    "README.md": b"---\nlicense: mit\ntags:\n- tiny\n---\n# A model\n",
    "code/model.py": b"x = 1\n",
    "loss.png": WEIGHTS[::-1],
    "model.safetensors": WEIGHTS,
    "weights.gguf": b"\0" + WEIGHTS,
}


@pytest.fixture
def folder(tmp_path):
    for name, content in FILES.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(content)
    return tmp_path / "model"


@pytest.fixture
def model(hub, folder):
    """The folder on the Hub, as the only commit after the initial one."""
    HfApi().create_repo("ada/model")
    HfApi().upload_folder(repo_id="ada/model", folder_path=folder, commit_message="Push")
    return hub.repo("ada/model")


def upload(content=b"{}", name="new.txt", **options):
    return HfApi().upload_file(path_or_fileobj=content, path_in_repo=name, repo_id="ada/model", **options)


def test_a_folder_is_pushed_in_one_commit_and_downloaded_unchanged(hub, model, tmp_path):
    assert {path: data for path, data in model.files().items() if path != ".gitattributes"} == FILES
    assert [commit.title for commit in model.log()] == ["Push", "initial commit"]
    lfs = {path for path, blob in model.commit().tree.items() if blob.lfs}
    assert lfs == {"model.safetensors", "loss.png", "weights.gguf"}
    local = Path(snapshot_download("ada/model"))
    assert {name: (local / name).read_bytes() for name in FILES} == FILES
    hub.stop()
    assert snapshot_download("ada/model") == str(local)


def test_unchanged_files_make_no_commit_and_no_upload_and_a_file_can_be_deleted(hub, model, folder):
    uploads = hub.seen("PUT", "")
    HfApi().upload_folder(repo_id="ada/model", folder_path=folder)
    assert len(model.commits) == 2
    assert hub.seen("PUT", "") == uploads
    HfApi().create_commit("ada/model", [CommitOperationDelete("loss.png")], commit_message="Less")
    assert FILES.keys() - model.files().keys() == {"loss.png"}


def test_requests_are_recorded_and_do_not_print_tokens(hub, model):
    (request,) = hub.seen("POST", "/commit/main")
    assert (request.status, request.user["name"], request.headers["authorization"]) == (200, "ada", "Bearer hf_ada")
    assert "hf_ada" not in repr(hub.requests)


def test_branches_tags_and_pull_requests(model):
    api, pushed = HfApi(), model.commit().oid
    api.create_tag("ada/model", tag="v1")
    api.create_branch("ada/model", branch="other", revision="v1")
    upload(revision="other")
    assert upload(create_pr=True).pr_revision == "refs/pr/1"
    assert "new.txt" in model.files("other").keys() & model.files("refs/pr/1").keys()
    assert model.commit("main").oid == model.commit("v1").oid == pushed
    assert set(api.list_repo_files("ada/model", revision="other")) == {*FILES, "new.txt", ".gitattributes"}
    for create, name in ((api.create_branch, {"branch": "other"}), (api.create_tag, {"tag": "v1"})):
        with pytest.raises(HfHubHTTPError, match="already exists"):
            create("ada/model", **name)


def test_a_space_is_not_a_model(hub):
    assert HfApi().create_repo("ada/demo", repo_type="space", space_sdk="gradio") == f"{hub.url}/spaces/ada/demo"
    HfApi().upload_file(path_or_fileobj=b"1", path_in_repo="app.py", repo_id="ada/demo", repo_type="space")
    assert hub.repo("ada/demo", "space").files()["app.py"] == b"1"
    assert not HfApi().repo_exists("ada/demo")


def test_what_is_missing_is_named_by_its_exception(model):
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("ada/model", "nothing.txt")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("ada/model", "README.md", revision="nothing")
    for token in ("hf_ada", False):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("ada/nothing", "README.md", token=token)


@pytest.mark.parametrize(
    ("token", "create", "write"),
    [
        ("hf_wrong", "Invalid credentials", "Invalid credentials"),
        ("hf_ada_old", "is expired", "is expired"),
        ("hf_ada_read", "rights to create a model", "no write permission"),
        (False, "Invalid username or password", "no write permission"),
    ],
)
def test_a_token_may_do_what_it_is_for(token, create, write, hub, model):
    with pytest.raises(HfHubHTTPError, match=create):
        HfApi(token=token).create_repo("ada/other")
    with pytest.raises(HfHubHTTPError, match=write):
        HfApi(token=token).create_branch("ada/model", branch="other")
    assert (len(hub.repositories), list(model.refs)) == (1, ["refs/heads/main"])


def test_a_private_repository_is_not_there_for_others(hub):
    HfApi().create_repo("ada/model", private=True)
    assert HfApi(token="hf_ada_read").model_info("ada/model").private
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=False).model_info("ada/model")


@pytest.mark.parametrize("metadata", ["license: mit\nlicense: mit", "license: [mit"])
def test_metadata_of_a_card_is_checked(metadata, model):
    with pytest.raises(ValueError, match="Invalid metadata"):
        upload(f"---\n{metadata}\n---\n".encode(), "README.md")


@pytest.mark.parametrize("kind", ["500", "drop", "drop_after_commit"])
def test_a_failed_commit_changes_nothing_unless_only_its_answer_is_lost(hub, model, kind):
    hub.faults.append(Fault("POST", "/commit/", kind))
    with pytest.raises(HfHubHTTPError if kind == "500" else HTTPError):
        upload(b"x" * 1_000_000)
    assert ("new.txt" in model.files()) == (kind == "drop_after_commit")
    assert hub.seen("POST", "/commit/")[-1].status == (500 if kind == "500" else None)


def test_an_upload_that_breaks_off_is_tried_again_by_the_client(hub, model, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    big = os.urandom(3_000_000)
    hub.faults.append(Fault("PUT", "/lfs-upload/", "drop"))
    upload(big, "big.bin")
    assert model.files()["big.bin"] == big
    assert [request.status for request in hub.seen("PUT", "/lfs-upload/")[-2:]] == [None, 200]


def post_nothing(url):
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    connection.request("POST", "/api/validate-yaml", "{}")
    connection.getresponse()


def test_a_bug_of_the_server_fails_the_test():
    with pytest.raises(AssertionError, match="KeyError"), HubServer() as server:
        post_nothing(server.url)


def test_the_client_is_left_as_it_was():
    from huggingface_hub import constants
    from huggingface_hub.hf_api import api

    assert constants.HF_HUB_OFFLINE
    assert "127.0.0.1" not in constants.ENDPOINT + api.endpoint + constants.HF_HUB_CACHE
