"""A Hugging Face Hub on the loopback interface: tests push to it and load from it with the real client, over HTTP.

It can do what the tests of this package need: commits, branches, tags, pull requests, LFS files, whole downloads,
tokens, and faults. It speaks plain LFS, not Xet. Tests get it by the fixture `hub` at the end of this file, which
`conftest.py` names as a plugin:

    HfApi().upload_folder(repo_id="ada/model", folder_path=folder)
    hub.repo("ada/model").files()  # {path: bytes}
"""

import base64
import contextlib
import json
import re
import socket
import sys
import threading
import traceback
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import yaml


LFS_SUFFIXES = (".safetensors", ".png", ".bin", ".pt")
TOKENS = {
    "hf_ada": {"name": "ada", "role": "write"},
    "hf_ada_read": {"name": "ada", "role": "read"},
    "hf_ada_old": {"name": "ada", "role": "write", "expired": True},
}


class HubError(Exception):
    """An error answer; the client picks its exception by `code`."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body):
        super().__init__(message)
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.answer = Answer({"error": message, **body}, status, headers)


@dataclass
class Answer:
    body: bytes | dict | list
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Request:
    """What was received, from whom, and the status it was answered with (None if the server hung up)."""

    method: str
    path: str  # as sent, with its query
    headers: dict[str, str] = field(repr=False)  # a failing test must not print the token
    body: bytes = field(default=b"", repr=False)
    user: dict | None = None
    status: int | None = None

    @property
    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Fault:
    """The next `times` requests that match fail: "500" and "drop" do not act, "drop_after_commit" acts but hangs up.

    "drop" hangs up in the middle of the upload.
    """

    method: str
    path_regex: str
    kind: str
    times: int = 1


@dataclass(frozen=True)
class Blob:
    """One stored file. For an LFS file, git stores a pointer, and the ETag is the sha256 of the file."""

    data: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return sha256(self.data).hexdigest()

    @cached_property
    def git_oid(self) -> str:
        version = "version https://git-lfs.github.com/spec/v1"
        pointer = f"{version}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()
        data = pointer if self.lfs else self.data
        return sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    tree: dict[str, Blob] = field(repr=False)


class Repository:
    """The commits of all branches by oid, and the refs, of one model or Space."""

    def __init__(self, name: str, url: str, private: bool):
        self.name, self.url, self.private = name, url, private
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}
        self.add("refs/heads/main", None, {".gitattributes": Blob(b"")}, "initial commit")

    def add(self, ref: str, parent: str | None, tree: dict[str, Blob], title: str) -> Commit:
        content = [len(self.commits), parent, title, {path: blob.git_oid for path, blob in tree.items()}]
        commit = Commit(sha1(json.dumps(content).encode()).hexdigest(), parent, title, dict(sorted(tree.items())))
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit

    def ref(self, revision: str) -> str | None:
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.refs), None)

    def commit(self, revision: str = "main") -> Commit:
        """The commit at a branch, tag, refs/... or sha."""
        oid = self.refs.get(self.ref(revision), revision)
        if oid not in self.commits:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[oid]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.data for path, blob in self.commit(revision).tree.items()}

    def log(self, revision: str = "main") -> list[Commit]:
        """The history of a revision, newest first."""
        commits = [self.commit(revision)]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits


ROUTES = []
REPO = "(?P<name>[^/]+/[^/]+)"
API = f"/api/(?P<kind>model|space)s/{REPO}"
GIT = f"/(?:(?P<kind>space)s/)?{REPO}"


def route(method: str, pattern: str):
    """Answer by the decorated method."""

    def register(handler):
        ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return register


class HubServer:
    def __init__(self):
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[str] = []  # tracebacks of the server's own bugs
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, Blob] = {}  # uploaded LFS files by sha256
        self.lock = threading.RLock()
        self.http = _HttpServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> "HubServer":
        self.thread.start()
        return self

    def __exit__(self, error_type, *_) -> None:
        self.stop()
        assert error_type or not self.errors, "".join(self.errors)

    def stop(self) -> None:
        """From here on, connections are refused."""
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
            self.http.server_close()

    def repo(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def seen(self, method: str, path_regex: str) -> list[Request]:
        """The recorded requests that match."""
        return [seen for seen in self.requests if seen.method == method and re.search(path_regex, seen.path)]

    def fault(self, request: Request) -> str | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == request.method and re.search(fault.path_regex, request.path):
                    fault.times -= 1
                    return fault.kind
        return None

    def handle(self, request: Request) -> Answer:
        """Find the route and let it act, one request at a time."""
        path = urlsplit(request.path).path
        try:
            with self.lock:
                self.authenticate(request, path)
                for method, pattern, handler in ROUTES:
                    if method == request.method.replace("HEAD", "GET") and (match := pattern.fullmatch(path)):
                        parts = {name: value and unquote(value) for name, value in match.groupdict().items()}
                        if "name" in parts:
                            parts["repo"] = self.access(request, parts.pop("kind"), parts.pop("name"))
                        answer = handler(self, request, **parts)
                        return answer if isinstance(answer, Answer) else Answer(answer)
            raise HubError(404, "Sorry, we can't find the page you are looking for.")
        except HubError as error:
            return error.answer
        except Exception:
            self.errors.append(f"{request.method} {path}\n{traceback.format_exc()}")
            return Answer({"error": "a bug of the test server, see server.errors"}, 500)

    def authenticate(self, request: Request, path: str) -> None:
        if "authorization" not in request.headers:
            return
        user = TOKENS.get(request.headers["authorization"].removeprefix("Bearer "))
        if user is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        if user.get("expired"):
            # Over https the client takes such a 401 on a repository's URL for RepoNotFound by itself, over http not.
            code = "RepoNotFound" if re.match("/api/(model|space)s/|.+/resolve/", path) else None
            raise HubError(401, f'User Access Token "{user["name"]}" is expired', code)
        request.user = user

    def access(self, request: Request, kind: str | None, name: str) -> Repository:
        """The repository, if the user may see it, and write to it if the request does."""
        repo = self.repositories.get((kind or "model", name))
        if repo is None or (repo.private and not request.user):
            status, message = (404, "Repository not found") if request.user else (401, "Invalid username or password.")
            raise HubError(status, message, "RepoNotFound")
        if request.method == "POST" and (request.user is None or request.user["role"] != "write"):
            raise HubError(403, "Forbidden: the token has no write permission")
        return repo

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> dict:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        return {"type": "user", "name": request.user["name"], "orgs": []}

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Answer:
        metadata = re.match(r"---\s*\n(.+?)^---\s*$", request.json["content"], re.DOTALL | re.MULTILINE)
        keys = re.findall(r"^(\w+):", metadata[1] if metadata else "", re.MULTILINE)
        errors = [] if len(set(keys)) == len(keys) else [{"message": "duplicated mapping key"}]
        try:
            content = yaml.safe_load(metadata[1] if metadata else "") or {}
            for result in (result for model in content.get("model-index", ()) for result in model["results"]):
                if not re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", result["dataset"]["type"], re.ASCII):
                    errors.append({"message": '"model-index[0].results[0].dataset.type" fails to match'})
        except yaml.YAMLError as error:
            errors.append({"message": str(error)})
        warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return Answer({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    @route("POST", "/api/repos/create")
    def create_repo(self, request: Request) -> dict:
        spec, user = request.json, request.user
        kind = spec.get("type") or "model"
        if user is None:
            raise HubError(401, "Invalid username or password.")
        namespace = spec.get("organization") or user["name"]
        if user["role"] != "write" or namespace != user["name"]:
            raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        name = f"{namespace}/{spec['name']}"
        url = f"{self.url}/{'spaces/' if kind == 'space' else ''}{name}"
        if (kind, name) in self.repositories:
            raise HubError(409, f"You already created this {kind} repo", url=url)
        private = spec.get("visibility") == "private" or bool(spec.get("private"))
        self.repositories[kind, name] = Repository(name, url, private)
        return {"url": url, "name": name, "private": private}

    @route("POST", f"{API}/preupload/(?P<revision>[^/]+)")
    def preupload(self, request: Request, repo: Repository, revision: str) -> dict:
        tree, files = repo.commit(revision).tree, []
        for file in request.json["files"]:
            path = file["path"]
            lfs = path.endswith(LFS_SUFFIXES) or b"\0" in base64.b64decode(file["sample"])
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            files.append(answer | ({"oid": tree[path].etag} if path in tree else {}))
        return {"files": files}

    @route("POST", rf"{GIT}\.git/info/lfs/objects/batch")
    def lfs_batch(self, request: Request, repo: Repository) -> dict:
        objects = [{"oid": spec["oid"], "size": spec["size"]} for spec in request.json["objects"]]
        for entry in objects:
            if entry["oid"] not in self.objects:  # like S3's, the upload's URL itself is the authorization
                entry["actions"] = {"upload": {"href": f"{self.url}/lfs-upload/{entry['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/lfs-upload/(?P<oid>[^/]+)")
    def lfs_upload(self, request: Request, oid: str) -> dict:
        blob = Blob(request.body, lfs=True)
        if blob.sha256 != oid:
            raise HubError(400, f"The upload does not have the announced sha256 {oid}")
        self.objects[oid] = blob
        return {}

    @route("POST", f"{API}/commit/(?P<revision>[^/]+)")
    def commit(self, request: Request, repo: Repository, revision: str) -> dict:
        head, ref = repo.commit(revision), repo.ref(revision)
        header, *operations = map(json.loads, request.body.splitlines())
        tree = dict(head.tree)
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "file":
                    tree[value["path"]] = Blob(base64.b64decode(value["content"]))
                case "lfsFile":
                    tree[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    del tree[value["path"]]
                case key:
                    raise ValueError(f"unknown operation {key}")
        answer = {"success": True, "hookOutput": ""}
        if "create_pr=1" in request.path:
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
            ref, answer["pullRequestUrl"] = f"refs/pr/{number}", f"{repo.url}/discussions/{number}"
        new = repo.add(ref, head.oid, tree, header["value"]["summary"])
        return answer | {"commitOid": new.oid, "commitUrl": f"{repo.url}/commit/{new.oid}"}

    @route("POST", f"{API}/branch/(?P<branch>[^/]+)")
    def create_branch(self, request: Request, repo: Repository, branch: str) -> dict:
        return self.create_ref(repo, f"refs/heads/{branch}", request.json.get("startingPoint") or "main")

    @route("POST", f"{API}/tag/(?P<revision>[^/]+)")
    def create_tag(self, request: Request, repo: Repository, revision: str) -> dict:
        return self.create_ref(repo, f"refs/tags/{request.json['tag']}", revision)

    def create_ref(self, repo: Repository, ref: str, revision: str) -> dict:
        if ref in repo.refs:
            raise HubError(409, f"Reference already exists: {ref}")
        repo.refs[ref] = repo.commit(revision).oid
        return {"ref": ref}

    @route("GET", f"{API}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?")
    def list_tree(self, request: Request, repo: Repository, revision: str, folder: str | None) -> list:
        entries, prefix = [], f"{folder}/" if folder else ""
        for path, blob in repo.commit(revision).tree.items():
            entry = {"type": "file", "oid": blob.git_oid, "size": len(blob.data), "path": path}
            lfs = {"lfs": {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 100}} if blob.lfs else {}
            entries += [entry | lfs] if path.startswith(prefix) else []
        if not entries:
            raise HubError(404, f'{folder} does not exist on "{revision}"', "EntryNotFound")
        return entries

    @route("GET", f"{API}(?:/revision/(?P<revision>[^/]+))?")
    def info(self, request: Request, repo: Repository, revision: str | None) -> dict:
        commit = repo.commit(revision or "main")
        card = commit.tree["README.md"].data.decode() if "README.md" in commit.tree else ""
        about = dict(re.findall(r"^(pipeline_tag|library_name): (\S+)$", card, re.MULTILINE))
        siblings = [{"rfilename": path} for path in commit.tree]
        return {"id": repo.name, "sha": commit.oid, "private": repo.private, "siblings": siblings, "tags": [], **about}

    @route("GET", f"{GIT}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, request: Request, repo: Repository, revision: str, path: str) -> Answer:
        commit = repo.commit(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if (blob := commit.tree.get(path)) is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        headers |= {"ETag": f'"{blob.etag}"', "Content-Type": "application/octet-stream"}
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(blob.data))} if blob.lfs else {}
        return Answer(blob.data, headers=headers)


class _HttpServer(ThreadingHTTPServer):
    request_queue_size = 64  # the client connects from many threads at once


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def respond(self) -> None:
        hub = self.hub
        request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
        hub.requests.append(request)
        fault = hub.fault(request)
        request.body = self.rfile.read(int(self.headers.get("Content-Length", 0)) // (2 if fault == "drop" else 1))
        if fault == "drop":
            return self.hang_up()
        answer = Answer({"error": "Internal Server Error"}, 500) if fault == "500" else hub.handle(request)
        if fault == "drop_after_commit":
            return self.hang_up()
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        headers = {"Content-Type": "application/json", "Content-Length": len(content), "Connection": "close"}
        self.send_response(answer.status)
        for name, value in {**headers, **answer.headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        request.status = answer.status
        self.wfile.write(content if self.command != "HEAD" else b"")

    do_GET = do_HEAD = do_POST = do_PUT = respond  # noqa: N815

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients may go away at any time
            super().handle()

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A fresh Hub with an empty cache; the user "ada" is logged in by HF_TOKEN and may write."""
    # Imported here, for the modules copy the constants below when they are imported.
    import huggingface_hub.hf_api
    import huggingface_hub.utils._cache_assets
    import huggingface_hub.utils._cache_manager
    import huggingface_hub.utils._git_credential
    import huggingface_hub.utils.tqdm

    home = str(tmp_path_factory.mktemp("hf_home"))
    with HubServer() as server:
        folders = {
            **{"HF_HOME": home, "HF_HUB_CACHE": f"{home}/hub", "HF_ASSETS_CACHE": f"{home}/assets"},
            **{"HF_TOKEN_PATH": f"{home}/token", "HF_MODULES_CACHE": f"{home}/modules"},
        }
        environment = {
            **{"HF_ENDPOINT": server.url, "HF_TOKEN": "hf_ada", "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0"},
            **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"},
            **{"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
            **folders,
        }
        constants = {
            **{"ENDPOINT": server.url, "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True},
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_URL_HOSTS": huggingface_hub.constants.HF_URL_HOSTS | {"127.0.0.1"},
            "HUGGINGFACE_HUB_CACHE": f"{home}/hub",
            "HF_STORED_TOKENS_PATH": f"{home}/stored_tokens",
            "AGENT_HARNESSES_PATH": f"{home}/agents.json",
            **folders,
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in ("huggingface_hub", "transformers"):
                for constant in constants.keys() & getattr(module, "__dict__", {}).keys():
                    monkeypatch.setattr(module, constant, constants[constant])
        # The instance behind the module's functions (create_repo, upload_folder, ...), made when it was imported.
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "_whoami_cache", {})
        _forget_clients()
        yield server
        _forget_clients()


def _forget_clients() -> None:
    """Drop the shared connections, and the HfApi that transformers makes at first use and keeps."""
    from huggingface_hub import close_session

    close_session()
    if "transformers.utils.hub" in sys.modules:
        sys.modules["transformers.utils.hub"]._hf_api = None
