"""A Hugging Face Hub on the loopback interface, for tests that push and load with the real client over HTTP.

    with HubServer(tokens={"hf_ada": {"name": "ada", "role": "write"}}) as server:
        HfApi(endpoint=server.url, token="hf_ada").upload_folder(repo_id="ada/model", folder_path=folder)
        server.repo("ada/model").files()  # {path: bytes}

The server needs the standard library only. It speaks plain LFS, not Xet: its clients set HF_HUB_DISABLE_XET=1. A test
module gets the fixture `hub` at the end of this file, which `conftest.py` names as a plugin.
"""

import base64
import contextlib
import fnmatch
import json
import re
import secrets
import socket
import sys
import threading
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest


LFS_SUFFIXES = (".safetensors", ".png", ".bin", ".pt")
LFS_SIZE = 10 * 1024 * 1024
ANONYMOUS = "Invalid username or password."
WRONG_TOKEN = "Invalid credentials in Authorization header"
NO_UPLOAD = "Authorization error."
NO_COMMIT = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
TOKENS = {
    "hf_ada": {"name": "ada", "role": "write"},
    "hf_ada_read": {"name": "ada", "role": "read"},
    "hf_ada_old": {"name": "ada", "role": "write", "expired": True},
    "hf_bob": {"name": "bob", "role": "write"},
}


class HubError(Exception):
    """An error answer; `code` becomes X-Error-Code, by which the client picks its exception."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body):
        super().__init__(message)
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.answer = Answer({"error": message, **body}, status, headers)


@dataclass
class Answer:
    body: bytes | dict | list
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Headers(dict):
    """Lower-case request headers that show their names only, so that no failing test prints a token."""

    def __repr__(self) -> str:
        return f"<headers: {', '.join(self)}>"


@dataclass
class Request:
    """What was received, from whom, and the status it was answered with (None where the server hung up)."""

    method: str
    path: str  # as sent, with its query
    headers: Headers
    body: bytes = field(default=b"", repr=False)
    body_size: int = 0
    user: str | None = None
    status: int | None = None

    @property
    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return parse_qs(urlsplit(self.path).query).get(name, [""])[0].lower() in ("1", "true")


@dataclass
class Fault:
    """The next `times` requests that match fail: "500" and "drop" do not act, "drop_after_commit" acts in silence.

    "drop" hangs up in the middle of an upload, or of the answer to a GET.
    """

    method: str
    path_regex: str
    kind: str = "500"
    times: int = 1

    def __post_init__(self):
        assert self.kind in ("500", "drop", "drop_after_commit"), self.kind


@dataclass(frozen=True)
class Blob:
    """One stored file. Git keeps a pointer in the place of an LFS file, whose ETag is then its own sha256."""

    data: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return sha256(self.data).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        version = "version https://git-lfs.github.com/spec/v1"
        return f"{version}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    @cached_property
    def git_oid(self) -> str:
        data = self.pointer if self.lfs else self.data
        return sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid

    def lfs_info(self, sha_key: str) -> dict:
        info = {sha_key: self.sha256, "size": len(self.data), "pointerSize": len(self.pointer)}
        return {"lfs": info} if self.lfs else {}


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    tree: dict[str, Blob] = field(repr=False)


class Repository:
    """The commits (of all branches, oldest first), refs and LFS objects of one model, dataset or Space."""

    def __init__(self, kind: str, name: str, author: str, private: bool = False, sdk: str | None = None):
        self.kind, self.name, self.private, self.sdk = kind, name, private, sdk
        self.gated = False  # for tests to set
        self.commits: list[Commit] = []
        self.refs: dict[str, str] = {}
        self.objects: dict[str, Blob] = {}  # uploaded LFS files by sha256, committed or not
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        self.add("refs/heads/main", None, {".gitattributes": Blob(attributes.encode())}, "initial commit", "", author)

    def add(self, ref: str, parent: str | None, tree: dict[str, Blob], title: str, message: str, author: str) -> Commit:
        date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        oids = {path: blob.git_oid for path, blob in tree.items()}
        oid = sha1(json.dumps([len(self.commits), parent, title, oids]).encode()).hexdigest()
        self.commits.append(Commit(oid, parent, title, message, author, date, dict(sorted(tree.items()))))
        self.refs[ref] = oid
        return self.commits[-1]

    def ref(self, revision: str) -> str | None:
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.refs), None)

    def commit(self, revision: str = "main") -> Commit:
        """The commit at a branch, tag, refs/..., or (abbreviated) sha."""
        oid = self.refs.get(self.ref(revision)) or (re.fullmatch(r"[0-9a-f]{7,40}", revision) and revision)
        for commit in self.commits:
            if oid and commit.oid.startswith(oid):
                return commit
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.data for path, blob in self.commit(revision).tree.items()}

    def log(self, revision: str = "main") -> list[Commit]:
        """The history of a revision, newest first."""
        commits = [self.commit(revision)]
        while commits[-1].parent:
            commits.append(self.commit(commits[-1].parent))
        return commits


ROUTES = []
REPO = "(?P<name>[^/]+(?:/[^/]+)?)"
API = f"/api/(?P<kind>model|dataset|space)s/{REPO}"
GIT = f"/(?:(?P<kind>dataset|space)s/)?{REPO}"


def route(method: str, pattern: str, write: str | None = None):
    """Answer by the decorated method; `write` is what those hear who may not write to the repository in the pattern."""

    def register(handler):
        ROUTES.append((method, re.compile(pattern), write, handler))
        return handler

    return register


class HubServer:
    """The Hub behind `url`; `tokens` maps a token to {"name": user, "role": "write" or "read", "expired": bool}."""

    def __init__(self, tokens: dict[str, dict] | None = None):
        self.tokens = dict(TOKENS if tokens is None else tokens)
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.errors: list[str] = []  # tracebacks of the server's own bugs
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, tuple[Repository, str, int]] = {}
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
                user = self.authenticate(request)
                for method, pattern, write, handler in ROUTES:
                    if method == request.method.replace("HEAD", "GET") and (match := pattern.fullmatch(path)):
                        parts = {name: value and unquote(value) for name, value in match.groupdict().items()}
                        if "name" in parts:
                            parts["repo"] = self.access(user, parts.pop("kind"), parts.pop("name"), write, request)
                        else:
                            parts["user"] = user
                        answer = handler(self, request, **parts)
                        return answer if isinstance(answer, Answer) else Answer(answer)
            raise HubError(404, "Sorry, we can't find the page you are looking for.")
        except HubError as error:
            # Over https the client takes such a 401 on a repository's URL for RepoNotFound by itself, over http not.
            if (
                error.answer.status == 401
                and str(error) != WRONG_TOKEN
                and re.match("/api/(model|dataset|space)s/|.+/resolve/", path)
            ):
                error.answer.headers.setdefault("X-Error-Code", "RepoNotFound")
            return error.answer
        except Exception:
            self.errors.append(f"{request.method} {path}\n{traceback.format_exc()}")
            return Answer({"error": "a bug of the test server, see server.errors"}, 500)

    def authenticate(self, request: Request) -> dict | None:
        if "authorization" not in request.headers:
            return None
        user = self.tokens.get(request.headers["authorization"].removeprefix("Bearer "))
        if user is None:
            raise HubError(401, WRONG_TOKEN)
        if user.get("expired"):
            raise HubError(401, f'User Access Token "{user["name"]}" is expired')
        request.user = user["name"]
        return user

    def access(self, user: dict | None, kind: str | None, name: str, write: str | None, request: Request) -> Repository:
        """The repository, if the user may see it, and write to it (or open a pull request) where that is asked for."""
        repo = self.repositories.get((kind or "model", name))
        owner = user is not None and name.split("/")[0] == user["name"]
        if repo is None or (repo.private and not owner):
            raise HubError(404, "Repository not found", "RepoNotFound") if user else HubError(401, ANONYMOUS)
        if write:
            if user is None:
                raise HubError(401, ANONYMOUS)
            # The files of a pull request, which anybody may open, are uploaded without naming a ref.
            anybody = request.flag("create_pr") or (request.path.endswith("/batch") and "ref" not in request.json)
            if user["role"] != "write" or not (owner or anybody):
                raise HubError(403, write)
        return repo

    def url_of(self, repo: Repository) -> str:
        return f"{self.url}/{'' if repo.kind == 'model' else repo.kind + 's/'}{repo.name}"

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request, user: dict | None) -> dict:
        if user is None:
            raise HubError(401, ANONYMOUS)
        auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": user["role"]}}
        return {"type": "user", "name": user["name"], "fullname": user["name"], "orgs": [], "auth": auth}

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request, user: dict | None) -> Answer:
        """Of YAML, what a look at the top-level lines can tell."""
        card = re.match(r"---\s*\n(.+?)^---\s*$", request.json["content"], re.DOTALL | re.MULTILINE)
        warnings = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
        lines = [line for line in card[1].splitlines() if not re.match(r"\s|#|$|-\s", line)] if card else []
        keys = [re.match(r"[^\s:][^:]*:(?=\s|$)", line) for line in lines]
        errors = [{"message": f"not a key: {line}"} for line, key in zip(lines, keys, strict=True) if not key]
        if len({key and key[0] for key in keys}) < len(keys):
            errors.append({"message": "duplicated mapping key"})
        return Answer({"errors": errors, "warnings": warnings}, 400 if errors else 200)

    @route("POST", "/api/repos/create")
    def create_repo(self, request: Request, user: dict | None) -> dict:
        spec, kind = request.json, request.json.get("type") or "model"
        if user is None:
            raise HubError(401, ANONYMOUS)
        namespace = spec.get("organization") or user["name"]
        if user["role"] != "write" or namespace != user["name"]:
            raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{namespace}"')
        if kind == "space" and spec.get("sdk") not in ("gradio", "streamlit", "docker", "static"):
            raise HubError(400, '"sdk" must be one of [gradio, streamlit, docker, static]')
        name = f"{namespace}/{spec['name']}"
        if existing := self.repositories.get((kind, name)):
            raise HubError(409, f"You already created this {kind} repo", url=self.url_of(existing))
        private = spec.get("visibility") == "private" or bool(spec.get("private"))
        repo = self.repositories[kind, name] = Repository(kind, name, user["name"], private, spec.get("sdk"))
        return {"url": self.url_of(repo), "name": name, "private": private}

    @route("DELETE", "/api/repos/delete")
    def delete_repo(self, request: Request, user: dict | None) -> dict:
        spec = request.json
        name = f"{spec.get('organization') or request.user}/{spec['name']}"
        repo = self.access(user, spec.get("type"), name, "You don't have the rights to delete it", request)
        del self.repositories[repo.kind, repo.name]
        return {}

    @route("POST", f"{API}/preupload/(?P<revision>[^/]+)", write=NO_UPLOAD)
    def preupload(self, request: Request, repo: Repository, revision: str) -> dict:
        tree, files = repo.commit(revision).tree, []
        ignore = request.json.get("gitIgnore") or tree.get(".gitignore", Blob(b"")).data.decode()
        for file in request.json["files"]:
            path, size, sample = file["path"], file["size"], base64.b64decode(file["sample"])
            if len(sample) != min(size, 512):
                raise HubError(400, f"{path}: a sample of {len(sample)} bytes does not fit a size of {size}")
            lfs = path.endswith(LFS_SUFFIXES) or size > LFS_SIZE or b"\0" in sample
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": _ignored(path, ignore)}
            files.append(answer | ({"oid": tree[path].etag} if path in tree else {}))
        return {"files": files}

    @route("POST", rf"{GIT}\.git/info/lfs/objects/batch", write=NO_UPLOAD)
    def lfs_batch(self, request: Request, repo: Repository) -> dict:
        objects = []
        for spec in request.json["objects"]:
            objects.append({"oid": spec["oid"], "size": spec["size"]})
            if spec["oid"] not in repo.objects:
                ticket = secrets.token_hex(16)  # like S3's, the upload's URL itself is the authorization
                self.uploads[ticket] = (repo, spec["oid"], spec["size"])
                objects[-1]["actions"] = {"upload": {"href": f"{self.url}/lfs-upload/{ticket}"}}
        return {"transfer": "basic", "objects": objects}

    @route("PUT", "/lfs-upload/(?P<ticket>[^/]+)")
    def lfs_upload(self, request: Request, user: dict | None, ticket: str) -> dict:
        if ticket not in self.uploads:
            raise HubError(403, "AccessDenied")
        repo, oid, size = self.uploads[ticket]
        blob = Blob(request.body, lfs=True)
        if (blob.sha256, len(blob.data)) != (oid, size):
            raise HubError(400, f"The upload does not have the announced sha256 {oid} and size {size}")
        repo.objects[oid] = blob
        return {}

    @route("POST", f"{API}/commit/(?P<revision>[^/]+)", write=NO_COMMIT)
    def commit(self, request: Request, repo: Repository, revision: str) -> dict:
        head, ref = repo.commit(revision), repo.ref(revision)
        if ref is None or ref.startswith("refs/tags/"):
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        try:
            lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
            (first, header), *operations = [(line["key"], line["value"]) for line in lines]
            if first != "header" or not header["summary"].strip():
                raise ValueError("no header, or no summary in it")
            if not head.oid.startswith(header.get("parentCommit", "").lower()):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            tree = dict(head.tree)
            for key, value in operations:
                _apply(repo, tree, key, value)
            if clash := [str(up) for path in tree for up in Path(path).parents if str(up) in tree]:
                raise ValueError(f'"{clash[0]}" cannot be both a file and a folder')
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise HubError(400, f"Invalid commit: {type(error).__name__} {error}") from error
        answer = {"success": True, "hookOutput": ""}
        if request.flag("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
            ref, answer["pullRequestUrl"] = f"refs/pr/{number}", f"{self.url_of(repo)}/discussions/{number}"
        new = repo.add(ref, head.oid, tree, header["summary"], header.get("description", ""), request.user)
        return answer | {"commitOid": new.oid, "commitUrl": f"{self.url_of(repo)}/commit/{new.oid}"}

    @route("POST", f"{API}/branch/(?P<branch>[^/]+)", write="Forbidden")
    def create_branch(self, request: Request, repo: Repository, branch: str) -> dict:
        return self.create_ref(repo, f"refs/heads/{branch}", request.json.get("startingPoint") or "main")

    @route("POST", f"{API}/tag/(?P<revision>[^/]+)", write="Forbidden")
    def create_tag(self, request: Request, repo: Repository, revision: str) -> dict:
        return self.create_ref(repo, f"refs/tags/{request.json['tag']}", revision)

    def create_ref(self, repo: Repository, ref: str, revision: str) -> dict:
        if ref in repo.refs:
            raise HubError(409, f"Reference already exists: {ref}")
        repo.refs[ref] = repo.commit(revision).oid
        return {"ref": ref}

    @route("GET", f"{API}/refs")
    def list_refs(self, request: Request, repo: Repository) -> dict:
        answer = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        for ref, oid in repo.refs.items():
            kind, name = ref.split("/", 2)[1:]
            group = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}[kind]
            answer[group].append({"name": name, "ref": ref, "targetCommit": oid})
        return answer

    @route("GET", f"{API}/commits/(?P<revision>[^/]+)")
    def list_commits(self, request: Request, repo: Repository, revision: str) -> list:
        keys = ("title", "message", "date")
        commits = [(c, {key: getattr(c, key) for key in keys}) for c in repo.log(revision)]
        return [{"id": c.oid, "authors": [{"user": c.author}], **values} for c, values in commits]

    @route("GET", f"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
    def list_tree(self, request: Request, repo: Repository, revision: str, path: str | None) -> list:
        prefix = f"{path.strip('/')}/" if path else ""
        entries = _entries(repo, revision, request.flag("expand"))
        inside = {path: entry for path, entry in entries.items() if path.startswith(prefix)}
        if prefix and not inside:
            raise HubError(404, f'{path} does not exist on "{revision}"', "EntryNotFound")
        return [e for path, e in inside.items() if request.flag("recursive") or "/" not in path[len(prefix) :]]

    @route("POST", f"{API}/paths-info/(?P<revision>[^/]+)")
    def paths_info(self, request: Request, repo: Repository, revision: str) -> list:
        form = parse_qs(request.body.decode())
        entries = _entries(repo, revision, form.get("expand", [""])[0].lower() == "true")
        return [entries[path.strip("/")] for path in form.get("paths", []) if path.strip("/") in entries]

    @route("GET", f"{API}/revision/(?P<revision>[^/]+)")
    @route("GET", API)  # after all others: it would take "gpt2/refs" for a name
    def info(self, request: Request, repo: Repository, revision: str = "main") -> dict:
        commit, siblings = repo.commit(revision), []
        for path, blob in commit.tree.items():
            details = {"size": len(blob.data), "blobId": blob.git_oid, **blob.lfs_info("sha256")}
            siblings.append({"rfilename": path, **(details if request.flag("blobs") else {})})
        info = {"author": repo.name.split("/")[0], "sha": commit.oid, "siblings": siblings, "tags": []}
        info |= {"private": repo.private, "gated": "auto" if repo.gated else False, "disabled": False}
        info |= {"lastModified": commit.date, "createdAt": repo.commits[0].date, "downloads": 0, "likes": 0}
        info |= {"sdk": repo.sdk} if repo.kind == "space" else {}
        card = commit.tree["README.md"].data.decode() if "README.md" in commit.tree else ""
        info |= dict(re.findall(r"^(pipeline_tag|library_name): (\S+)$", card, re.MULTILINE))
        wanted = parse_qs(urlsplit(request.path).query).get("expand", info)
        return {"id": repo.name, **{key: info[key] for key in wanted if key in info}}

    @route("GET", f"{GIT}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def resolve(self, request: Request, repo: Repository, revision: str, path: str) -> Answer:
        if repo.gated and repo.name.split("/")[0] != request.user:
            message = f"Access to {repo.kind} {repo.name} is restricted."
            raise HubError(403 if request.user else 401, message, "GatedRepo")
        commit = repo.commit(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if (blob := commit.tree.get(path)) is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        size = len(blob.data)
        headers |= {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(size)} if blob.lfs else {}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
        if not wanted:
            return Answer(blob.data, headers=headers)
        first, last = (int(value) if value else None for value in wanted.groups())
        start = max(size - last, 0) if first is None else first
        end = size if first is None or last is None else min(last + 1, size)
        if start >= end:
            raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
        return Answer(blob.data[start:end], 206, headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"})


def _apply(repo: Repository, tree: dict[str, Blob], key: str, value: dict) -> None:
    """Do one line of a commit to `tree`."""
    path = value["path"].rstrip("/")
    if {"", ".", "..", ".git"} & set(path.split("/")):
        raise ValueError(f'invalid path "{path}"')
    if key == "file":
        data = base64.b64decode(value["content"], validate=True)
        if len(data) > LFS_SIZE:
            raise ValueError(f"Your push was rejected because it contains files larger than 10 MiB: {path}")
        tree[path] = Blob(data)
    elif key == "lfsFile":
        blob = repo.objects.get(value["oid"])
        if blob is None or value.get("size", len(blob.data)) != len(blob.data):
            raise ValueError(f"an LFS pointer pointed to a file that does not exist. Offending file: - {path}")
        tree[path] = blob
    elif key in ("deletedFile", "deletedFolder"):
        gone = [name for name in tree if (name == path if key == "deletedFile" else name.startswith(f"{path}/"))]
        if not gone:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del tree[name]
    else:
        raise ValueError(f'unknown operation "{key}"')


def _entries(repo: Repository, revision: str, expand: bool) -> dict[str, dict]:
    """The files and folders of a revision by path, as the tree API describes them."""
    log, entries = repo.log(revision), {}
    for path, blob in log[0].tree.items():
        for folder in [str(parent) for parent in Path(path).parents][-2::-1]:
            oid = sha1(f"{log[0].oid}/{folder}".encode()).hexdigest()
            entries.setdefault(folder, {"type": "directory", "oid": oid, "size": 0, "path": folder})
        size = len(blob.data)
        entries[path] = {"type": "file", "oid": blob.git_oid, "size": size, "path": path, **blob.lfs_info("oid")}
        if expand:
            older = [commit.tree.get(path) != blob for commit in log[1:]] + [True]
            last = log[older.index(True)]
            entries[path]["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
    return entries


def _ignored(path: str, gitignore: str) -> bool:
    """Whether a line of a .gitignore (without "!") names the path, a folder it is in, or one of their names."""
    parents = [str(parent) for parent in Path(path).parents][:-1]
    for line in gitignore.split():
        names = [path, *parents] if not line.endswith("/") else parents
        names = names if "/" in line.rstrip("/") else [Path(name).name for name in names]
        if any(fnmatch.fnmatch(name, line.strip("/")) for name in names):
            return True
    return False


class _HttpServer(ThreadingHTTPServer):
    request_queue_size = 64  # the client connects from many threads at once


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def respond(self) -> None:
        hub = self.hub
        request = Request(self.command, self.path, Headers({k.lower(): v for k, v in self.headers.items()}))
        hub.requests.append(request)
        fault = hub.fault(request)
        dropped = fault == "drop" and self.command != "GET"
        request.body = self.read_body(half=dropped)
        request.body_size = len(request.body)
        if dropped:
            return self.hang_up()
        answer = Answer({"error": "Internal Server Error"}, 500) if fault == "500" else hub.handle(request)
        if fault == "drop_after_commit":
            return self.hang_up()
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        headers = {"Content-Type": "application/json; charset=utf-8", "Content-Length": str(len(content))}
        headers |= {"X-Request-Id": f"Root=1-test-{len(hub.requests)}", "Connection": "close", **answer.headers}
        self.send_response(answer.status)
        for name, value in headers.items():
            self.send_header(name, value.encode("ascii", "replace").decode().replace("\n", " "))
        self.end_headers()
        if fault == "drop":  # of a download: half of it
            self.wfile.write(content[: len(content) // 2])
            return self.hang_up()
        request.status = answer.status
        self.wfile.write(content if self.command != "HEAD" else b"")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond  # noqa: N815

    def read_body(self, half: bool) -> bytes:
        size = int(self.headers.get("Content-Length", 0)) // (2 if half else 1)
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError("the client went away in the middle of its upload")
        return body

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # clients may go away at any time
            super().handle()

    def log_message(self, *args) -> None:
        pass


@dataclass
class Hub:
    """A running server, this process' client pointed at it, and the `environment` that does so for another process."""

    server: HubServer
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return self.server.url

    def api(self, token: str | bool = "hf_ada"):
        """A client of its own, as the write token of "ada" unless told otherwise; False is anonymous."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.url, token=token)


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A fresh Hub that knows TOKENS, an empty cache, and nobody logged in (set HF_TOKEN for that)."""
    # Imported here, for a server alone does not need the client: the modules that copy constants when imported.
    import huggingface_hub.hf_api
    import huggingface_hub.utils._cache_assets
    import huggingface_hub.utils._cache_manager
    import huggingface_hub.utils._git_credential
    import huggingface_hub.utils.tqdm
    from huggingface_hub import close_session

    home = str(tmp_path_factory.mktemp("hf_home"))
    with HubServer() as server:
        cache = {"HF_HUB_CACHE": f"{home}/hub", "HF_TOKEN_PATH": f"{home}/token", "HF_ASSETS_CACHE": f"{home}/assets"}
        environment = {
            **{"HF_ENDPOINT": server.url, "HF_HOME": home, "HF_MODULES_CACHE": f"{home}/modules", "HF_TOKEN": ""},
            **{"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"},
            **{"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"},
            "no_proxy": "127.0.0.1",
            **cache,
        }
        constants = {
            **{"ENDPOINT": server.url, "HF_HOME": home, "HF_MODULES_CACHE": f"{home}/modules"},
            **{"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "HF_HUB_DISABLE_PROGRESS_BARS": True},
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_URL_HOSTS": huggingface_hub.constants.HF_URL_HOSTS | {"127.0.0.1"},
            "HUGGINGFACE_HUB_CACHE": f"{home}/hub",
            "HF_STORED_TOKENS_PATH": f"{home}/stored_tokens",
            "AGENT_HARNESSES_PATH": f"{home}/agents.json",
            **cache,
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("HF_OIDC_RESOURCE", raising=False)
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] in ("huggingface_hub", "transformers"):
                for constant in constants.keys() & getattr(module, "__dict__", {}).keys():
                    monkeypatch.setattr(module, constant, constants[constant])
        # The instance behind the module's functions (create_repo, upload_folder, ...), made when it was imported.
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.url)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "_whoami_cache", {})
        _forget_clients(close_session)
        yield Hub(server, environment)
        _forget_clients(close_session)


def _forget_clients(close_session) -> None:
    """Drop the shared connections, and the HfApi that transformers makes at first use and keeps."""
    close_session()
    if "transformers.utils.hub" in sys.modules:
        sys.modules["transformers.utils.hub"]._hf_api = None
