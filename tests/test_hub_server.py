"""The loopback Hub, exercised by the real client only."""

import http.client
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import Fault, HubServer
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    create_repo,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    upload_folder,
    whoami,
)
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session
from huggingface_hub.utils.sha import git_hash


CARD = b"---\nlicense: mit\ntags:\n- tiny\n---\n# A model\n"
WEIGHTS = bytes(range(256)) * 50


@pytest.fixture
def api(hub):
    return hub.api()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "code").mkdir(parents=True)
    (folder / "README.md").write_bytes(CARD)
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    (folder / "code" / "model.py").write_text("x = 1\n")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "loss.png").write_bytes(WEIGHTS[::-1])
    return folder


@pytest.fixture
def model(hub, api, folder):
    """The folder on the Hub, as the only commit after the initial one."""
    api.create_repo("ada/model")
    api.upload_folder(repo_id="ada/model", folder_path=folder, commit_message="Push")
    return hub.server.repo("ada/model")


def add(path, content=b"{}"):
    return CommitOperationAdd(path, content)


def commit(api, *operations, **options):
    return api.create_commit("ada/model", operations, **{"commit_message": "More", **options})


def test_upload_folder_stores_every_file_in_one_commit(hub, model, folder):
    assert {path: data for path, data in model.files().items() if path != ".gitattributes"} == {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }
    assert [(c.title, c.author) for c in model.commits] == [("initial commit", "ada"), ("Push", "ada")]
    lfs = {path for path, blob in model.commit().tree.items() if blob.lfs}
    assert lfs == {"model.safetensors", "loss.png"}
    paths = [request.path for request in hub.server.requests]
    for expected in ("/api/validate-yaml", "/preupload/main", "/objects/batch", "/lfs-upload/", "/commit/"):
        assert any(expected in path for path in paths)


def test_requests_are_recorded_and_do_not_print_tokens(hub, model):
    (request,) = hub.server.seen("POST", "/commit/main")
    assert (request.status, request.user, request.headers["authorization"]) == (200, "ada", "Bearer hf_ada")
    assert request.body_size > len(CARD)
    assert "hf_ada" not in repr(hub.server.requests)
    assert all("authorization" not in upload.headers for upload in hub.server.seen("PUT", "lfs-upload"))


def test_unchanged_files_make_no_commit_and_no_upload(hub, api, model, folder):
    uploads = len(hub.server.seen("PUT", ""))
    info = api.upload_folder(repo_id="ada/model", folder_path=folder)
    assert info.oid == model.commits[-1].oid
    assert len(model.commits) == 2
    assert len(hub.server.seen("PUT", "")) == uploads


def test_module_functions_and_a_logged_in_user(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ada")
    assert whoami()["name"] == "ada"
    url = create_repo("model", private=True)
    assert (url, url.repo_id) == (f"{hub.url}/ada/model", "ada/model")
    upload_folder(repo_id="ada/model", folder_path=folder)
    assert hub.server.repo("ada/model").files()["README.md"] == CARD


def test_whoami(hub):
    info = hub.api("hf_ada_read").whoami()
    assert (info["name"], info["auth"]["accessToken"]["role"]) == ("ada", "read")


def test_create_repo(hub, api):
    api.create_repo("ada/model")
    assert api.create_repo("ada/model", exist_ok=True).repo_id == "ada/model"
    with pytest.raises(HfHubHTTPError, match="You already created this model repo") as error:
        api.create_repo("ada/model")
    assert error.value.response.status_code == 409
    assert not api.model_info("ada/model").private
    api.delete_repo("ada/model")
    assert not api.repo_exists("ada/model")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("ada/model")


def test_spaces(hub, api, tmp_path):
    url = api.create_repo("ada/demo", repo_type="space", space_sdk="gradio")
    assert (url, url.repo_type) == (f"{hub.url}/spaces/ada/demo", "space")
    info = api.create_commit(
        "ada/demo", [add("app.py", b"pass\n"), add("a.png", WEIGHTS)], commit_message="App", repo_type="space"
    )
    assert info == f"{hub.url}/spaces/ada/demo/commit/{info.oid}"
    assert api.space_info("ada/demo").sdk == "gradio"
    assert api.list_repo_files("ada/demo", repo_type="space") == [".gitattributes", "a.png", "app.py"]
    assert hub.server.repo("ada/demo", "space").files()["app.py"] == b"pass\n"
    local = snapshot_download("ada/demo", repo_type="space", cache_dir=tmp_path / "cache")
    assert Path(local, "a.png").read_bytes() == WEIGHTS
    assert not api.repo_exists("ada/demo")


def test_model_info(api, model):
    info = api.model_info("ada/model", files_metadata=True)
    assert (info.id, info.author, info.sha) == ("ada/model", "ada", model.commits[-1].oid)
    files = {file.rfilename: file for file in info.siblings}
    assert files.keys() == model.files().keys()
    tree = model.commit().tree
    assert files["model.safetensors"].size == len(WEIGHTS)
    assert files["model.safetensors"].lfs.sha256 == tree["model.safetensors"].sha256
    assert files["README.md"].lfs is None
    assert files["README.md"].blob_id == git_hash(CARD)
    first = model.commits[0]
    info = api.model_info("ada/model", revision=first.oid, expand=["sha", "private"])
    assert (info.sha, info.private, info.siblings) == (first.oid, False, None)


def test_listings(api, model):
    commit(api, add("config.json", b"[]"), add("code/deep/b.py", b"y"), commit_message="Change")
    assert api.list_repo_files("ada/model") == list(model.files())
    top = {entry.path: entry for entry in api.list_repo_tree("ada/model", expand=True)}
    assert set(top) == {".gitattributes", "README.md", "code", "config.json", "loss.png", "model.safetensors"}
    assert top["config.json"].last_commit.title == "Change"
    assert top["README.md"].last_commit.title == "Push"
    inside = api.list_repo_tree("ada/model", "code", recursive=True)
    assert [entry.path for entry in inside] == ["code/deep", "code/deep/b.py", "code/model.py"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree("ada/model", "nothing"))
    infos = api.get_paths_info("ada/model", ["model.safetensors", "code", "nothing"], expand=True)
    assert [info.path for info in infos] == ["model.safetensors", "code"]
    assert infos[0].lfs.size == len(WEIGHTS)
    assert [c.title for c in api.list_repo_commits("ada/model")] == ["Change", "Push", "initial commit"]


def test_branches_and_tags(api, model, folder):
    pushed, files = model.commits[-1], model.files()
    api.create_tag("ada/model", tag="v1", tag_message="First")
    api.create_branch("ada/model", branch="runs/1", revision="v1")
    info = commit(api, add("new.txt"), revision="runs/1")
    assert set(model.files("runs/1")) - set(model.files()) == {"new.txt"}
    assert model.files("v1") == model.files() == files
    assert api.model_info("ada/model", revision="runs/1").sha == info.oid
    assert api.list_repo_files("ada/model", revision=pushed.oid[:7]) == list(files)
    api.create_branch("ada/model", branch="runs/1", exist_ok=True)
    for create in (
        lambda: api.create_branch("ada/model", branch="runs/1"),
        lambda: api.create_tag("ada/model", tag="v1"),
    ):
        with pytest.raises(HfHubHTTPError) as error:
            create()
        assert error.value.response.status_code == 409
    refs = api.list_repo_refs("ada/model")
    assert {b.name: b.target_commit for b in refs.branches} == {"main": pushed.oid, "runs/1": info.oid}
    assert [(t.name, t.ref) for t in refs.tags] == [("v1", "refs/tags/v1")]
    with pytest.raises(RevisionNotFoundError):
        commit(api, add("new.txt"), revision="v1")
    with pytest.raises(RevisionNotFoundError):
        api.create_branch("ada/model", branch="b", revision="nothing")


def test_pull_requests(hub, api, model):
    info = commit(api, add("a.bin", WEIGHTS[:9]), create_pr=True)
    assert (info.pr_revision, info.pr_num) == ("refs/pr/1", 1)
    assert "a.bin" not in model.files()
    assert model.files("refs/pr/1")["a.bin"] == WEIGHTS[:9]
    commit(api, add("b.txt"), revision="refs/pr/1")
    assert {"a.bin", "b.txt"} <= set(api.list_repo_files("ada/model", revision="refs/pr/1"))
    # Somebody else may open one, and nothing more.
    bob = hub.api("hf_bob")
    assert commit(bob, add("c.pt", WEIGHTS), create_pr=True).pr_revision == "refs/pr/2"
    refs = api.list_repo_refs("ada/model", include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1", "refs/pr/2"]
    with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
        commit(bob, add("c.txt"))


def test_deletions_and_copies(api, model):
    commit(api, CommitOperationDelete("config.json"), CommitOperationDelete("code/"))
    commit(api, CommitOperationCopy("model.safetensors", "copy.safetensors"), CommitOperationCopy("README.md", "R.md"))
    assert set(model.files()) == {
        *(".gitattributes", "README.md", "R.md", "loss.png"),
        *("model.safetensors", "copy.safetensors"),
    }
    assert model.files()["copy.safetensors"] == WEIGHTS
    api.upload_folder(
        repo_id="ada/model", folder_path=os.path.dirname(__file__), allow_patterns="x", delete_patterns="*.md"
    )
    assert "R.md" not in model.files()


def test_a_commit_is_all_or_nothing(api, model):
    before = (model.refs.copy(), len(model.commits))
    with pytest.raises(RemoteEntryNotFoundError, match="A file with this name doesn't exist"):
        commit(api, add("new.txt"), CommitOperationDelete("nothing.txt"))
    with pytest.raises(BadRequestError, match="both a file and a folder"):
        commit(api, add("new.txt"), add("config.json/new.txt"))
    lost = add("lost.bin", WEIGHTS[:7])
    lost._upload_mode, lost._should_ignore, lost._is_uploaded = "lfs", False, True  # a pointer without its file
    with pytest.raises(BadRequestError, match=r"does not exist. Offending file: - lost\.bin"):
        commit(api, add("new.txt"), lost)
    assert (model.refs, len(model.commits)) == before


def test_parent_commit(api, model):
    first, second = (c.oid for c in model.commits)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        commit(api, add("new.txt"), parent_commit=first)
    assert error.value.response.status_code == 412
    commit(api, add("new.txt"), parent_commit=second)
    assert model.commits[-1].parent == second


def test_gitignore_and_binary_samples(api, model):
    ignore = add(".gitignore", b"*.log\n/out/\n")
    commit(api, ignore, add("a.log"), add("code/b.log"), add("code/out"), add("out/c.txt"), add("raw", b"\0\1"))
    new = set(model.files()) - set(model.commits[1].tree)
    assert new == {".gitignore", "code/out", "raw"}
    assert model.commit().tree["raw"].lfs
    commit(api, add("again.log", b"[]"), add("big.txt", b"x" * (10 * 1024 * 1024 + 1)))
    assert "again.log" not in model.files()
    assert model.commit().tree["big.txt"].lfs
    with pytest.warns(UserWarning, match="empty or missing yaml"):
        commit(api, add("README.md", b"# No card\n"))
    with pytest.raises(ValueError, match="Invalid metadata"):
        commit(api, add("README.md", b"---\nnot yaml\n---\n"))


def test_downloads_keep_to_the_etag(hub, api, model, tmp_path):
    def gets():
        return [request.path.rsplit("/")[-1] for request in hub.server.seen("GET", "/resolve/")]

    cache = {"repo_id": "ada/model", "cache_dir": tmp_path / "cache"}
    old = {name: hf_hub_download(filename=name, **cache) for name in ("config.json", "model.safetensors")}
    assert Path(old["model.safetensors"]).read_bytes() == WEIGHTS
    assert gets() == ["config.json", "model.safetensors"]
    metadata = get_hf_file_metadata(hf_hub_url("ada/model", "model.safetensors"))
    blob = model.commit().tree["model.safetensors"]
    assert (metadata.etag, metadata.size, metadata.commit_hash) == (blob.sha256, len(WEIGHTS), model.commits[-1].oid)
    commit(api, add("config.json", b"new"))
    assert Path(hf_hub_download(filename="config.json", **cache)).read_text() == "new"
    hf_hub_download(filename="model.safetensors", **cache)  # a new commit with an old ETag: no new download
    assert gets() == ["config.json", "model.safetensors", "config.json"]
    assert hf_hub_download(filename="config.json", revision=model.commits[1].oid, **cache) == old["config.json"]


def test_snapshot_download(hub, api, model, tmp_path):
    cache = tmp_path / "cache"
    local = snapshot_download("ada/model", cache_dir=cache)
    assert {name: Path(local, name).read_bytes() for name in model.files()} == model.files()
    local = snapshot_download("ada/model", cache_dir=cache, revision=model.commits[0].oid)
    assert os.listdir(local) == [".gitattributes"]
    gets = len(hub.server.seen("GET", "/resolve/"))
    hub.server.stop()
    assert set(os.listdir(snapshot_download("ada/model", cache_dir=cache))) >= {"README.md", "code"}
    assert len(hub.server.seen("GET", "/resolve/")) == gets


def test_ranges(hub, model):
    url = hf_hub_url("ada/model", "model.safetensors")
    for wanted, part in {
        "0-9": WEIGHTS[:10],
        "100-": WEIGHTS[100:],
        "-5": WEIGHTS[-5:],
        "5-99999": WEIGHTS[5:],
    }.items():
        answer = get_session().get(url, headers={"Range": f"bytes={wanted}"})
        assert (answer.status_code, answer.content) == (206, part)
        assert answer.headers["Content-Range"].endswith(f"/{len(WEIGHTS)}")
    assert get_session().get(url, headers={"Range": "bytes=99999-"}).status_code == 416


def test_what_is_missing(hub, api, model, tmp_path):
    cache = {"cache_dir": tmp_path}
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download("ada/model", "nothing.txt", **cache)
    with pytest.raises(RevisionNotFoundError, match="Invalid rev id: nothing"):
        hf_hub_download("ada/model", "config.json", revision="nothing", **cache)
    for token in ("hf_ada", False):
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("ada/nothing", "config.json", token=token, **cache)
        with pytest.raises(RepositoryNotFoundError):
            hub.api(token).model_info("nothing")
    assert (list((tmp_path / "models--ada--model" / ".no_exist").rglob("nothing.txt"))) != []
    with pytest.raises(RepositoryNotFoundError):
        api.create_commit("ada/nothing", [add("a")], commit_message="a")


def test_private_and_gated_repositories(hub, api, tmp_path):
    api.create_repo("ada/model", private=True)
    assert api.model_info("ada/model").private
    for token, status in ((False, 401), ("hf_bob", 404)):
        with pytest.raises(RepositoryNotFoundError) as error:
            hub.api(token).model_info("ada/model")
        assert error.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            hf_hub_download("ada/model", ".gitattributes", token=token, cache_dir=tmp_path)
    assert hf_hub_download("ada/model", ".gitattributes", token="hf_ada_read", cache_dir=tmp_path)
    hub.server.repo("ada/model").private = False
    hub.server.repo("ada/model").gated = True
    with pytest.raises(GatedRepoError):
        hf_hub_download("ada/model", ".gitattributes", token="hf_bob", cache_dir=tmp_path / "bob")


def test_tokens(hub, model, tmp_path):
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        hub.api("hf_wrong").whoami()
    for token, message in {
        "hf_wrong": "Invalid credentials in Authorization header",
        "hf_ada_old": "is expired",
    }.items():
        with pytest.raises(HfHubHTTPError, match=message) as error:
            hub.api(token).create_repo("ada/other")
        assert error.value.response.status_code == 401
        with pytest.raises(HfHubHTTPError, match=message):
            hub.api(token).model_info("ada/model")
    with pytest.raises(HfHubHTTPError, match="Invalid username or password"):
        hub.api(False).create_repo("ada/other")
    for token in ("hf_ada_read", "hf_bob"):
        with pytest.raises(HfHubHTTPError, match="You don't have the rights to create a model under the namespace"):
            hub.api(token).create_repo("ada/other")
        for write in (
            lambda api: commit(api, add("a.txt")),
            lambda api: api.create_tag("ada/model", tag="v1"),
            lambda api: api.create_branch("ada/model", branch="b"),
            lambda api: api.delete_repo("ada/model"),
        ):
            with pytest.raises(HfHubHTTPError, match="403 Forbidden"):
                write(hub.api(token))
    assert len(model.commits) == 2
    assert list(hub.server.repositories) == [("model", "ada/model")]


@pytest.mark.parametrize("kind", ["500", "drop"])
def test_a_failed_commit_changes_nothing(hub, api, model, kind):
    hub.server.faults.append(Fault("POST", "/commit/", kind))
    with pytest.raises(HfHubHTTPError if kind == "500" else HTTPError):
        commit(api, add("new.txt", b"x" * 1_000_000))
    assert len(model.commits) == 2
    commit(api, add("new.txt"))
    assert len(model.commits) == 3


def test_a_commit_whose_answer_is_lost(hub, api, model):
    hub.server.faults.append(Fault("POST", "/commit/main", "drop_after_commit"))
    with pytest.raises(HTTPError):
        commit(api, add("new.txt"))
    assert "new.txt" in model.files()
    assert hub.server.seen("POST", "/commit/main")[-1].status is None


def test_the_client_tries_uploads_again(hub, api, model):
    """What its backoff does after one second."""
    big = os.urandom(3_000_000)
    hub.server.faults += [Fault("PUT", "/lfs-upload/", "drop"), Fault("POST", "/preupload/")]
    commit(api, add("big.bin", big))
    assert model.files()["big.bin"] == big
    uploads = hub.server.seen("PUT", "/lfs-upload/")[-2:]
    assert [(upload.body_size, upload.status) for upload in uploads] == [(len(big) // 2, None), (len(big), 200)]


def test_a_cut_download_is_resumed(hub, model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)  # what is less than a chunk is lost
    hub.server.faults.append(Fault("GET", "/resolve/", "drop"))
    path = hf_hub_download("ada/model", "model.safetensors", cache_dir=tmp_path)
    assert Path(path).read_bytes() == WEIGHTS
    first, second = hub.server.seen("GET", "/resolve/")
    assert (first.status, second.status) == (None, 206)
    assert second.headers["range"] == f"bytes={len(WEIGHTS) // 2}-"


def test_uploads_are_checked(hub, api, model):
    """Only the announced bytes are taken."""
    from huggingface_hub.lfs import UploadInfo

    wrong = add("wrong.bin", WEIGHTS[:5])
    wrong.upload_info = UploadInfo.from_bytes(WEIGHTS[:6])
    with pytest.raises(RuntimeError, match=r"uploading 'wrong\.bin'") as error:
        commit(api, wrong)
    assert "announced sha256" in str(error.value.__cause__)
    commit(api, CommitOperationAdd("right.bin", io.BytesIO(WEIGHTS[:6])))
    assert model.files()["right.bin"] == WEIGHTS[:6]


def test_a_stopped_server_is_gone(hub, api, model, tmp_path):
    path = hf_hub_download("ada/model", "config.json", cache_dir=tmp_path)
    hub.server.stop()
    with pytest.raises(HTTPError):
        api.model_info("ada/model")
    assert hf_hub_download("ada/model", "config.json", cache_dir=tmp_path) == path


def test_another_process(hub, model):
    code = """
import json
from huggingface_hub import HfApi, hf_hub_download
api = HfApi()
api.upload_file(path_or_fileobj=b"12345", path_in_repo="from.bin", repo_id="ada/model")
print(json.dumps([api.whoami()["name"], hf_hub_download("ada/model", "from.bin")]))
"""
    environment = {**os.environ, **hub.environment, "HF_TOKEN": "hf_ada"}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    name, path = json.loads(result.stdout)
    assert name == "ada"
    assert path.startswith(hub.environment["HF_HOME"])
    assert model.files()["from.bin"] == b"12345"


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
