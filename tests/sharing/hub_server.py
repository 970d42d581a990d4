"""A Hugging Face Hub on loopback, in memory: what its own clients need to write and read data sets.

Commits are whole trees; files are blobs by their sha256. It keeps what was sent to it, so that a
test can count, and takes a hook before a commit, so that a test can be somebody else. Writes, and
reads of private repositories, need the token.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from hub_repository import LARGE, LAST_COMMIT, Refused, Repository, git_oid

TOKEN = "hf_secretsecretsecret"


class Hub(ThreadingHTTPServer):
    """What a test sets up beforehand and looks at afterwards.

    Attributes:
        repositories: by name.
        blobs: by sha256.
        uploads: sha256 of every large file that was sent, in order.
        requests: method and path of every request.
        before_commit: called when a commit has arrived, before it is looked at.
        refuse_upload: whether a large file is refused; called with how many were sent before.
    """

    daemon_threads = True
    more_reads: ClassVar[list[Any]] = []

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: list[str] = []
        self.requests: list[str] = []
        self.before_commit: Callable[[], None] = lambda: None
        self.refuse_upload: Callable[[int], bool] = lambda _: False
        self.lock = threading.RLock()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""

    def create(self, name: str, *, private: bool = False) -> Repository:
        made = self.repositories[name] = Repository(private)
        made.commit("main", {".gitattributes": self.keep(b"*.parquet filter=lfs\n")})
        return made

    def keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return digest

    def has(self, digest: str) -> bool:
        """Whether a large file was sent."""
        return digest in self.blobs

    def storage(self, digest: str) -> dict[str, str]:
        """Headers that say where else a file can be had."""
        return {}

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds at a revision."""
        repository = self.repositories[name]
        tree = repository.commits[repository.find(revision) or ""]
        return {path: self.blobs[digest] for path, digest in tree.items()}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.respond([*READS, *self.server.more_reads])

    def do_GET(self) -> None:
        self.respond([*READS, *self.server.more_reads])

    def do_POST(self) -> None:
        self.respond(WRITES)

    def do_PUT(self) -> None:
        self.respond([(r"/lfs/([0-9a-f]{64})", Handler.upload)])

    def respond(self, routes: Any) -> None:
        parts = urlsplit(self.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.server.lock:
            self.server.requests.append(f"{self.command} {parts.path}")
            try:
                for pattern, action in routes:
                    if found := re.fullmatch(pattern, parts.path):
                        action(self, *map(unquote, found.groups(default="")))
                        return
                raise Refused(404, message=f"no route: {self.command} {parts.path}")
            except Refused as error:
                headers = {"X-Error-Code": error.code} if error.code else {}
                headers |= {"X-Error-Message": error.message} if error.message else {}
                self.answer(json.dumps({"error": error.message}).encode(), error.status, headers)

    def answer(self, data: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def json(self, value: Any, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    @property
    def authorised(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, name: str, *, write: bool = False) -> Repository:
        found = self.server.repositories.get(name)
        if found is None or (found.private and not self.authorised):
            raise Refused(401, "RepoNotFound", "Repository not found")
        if write and not self.authorised:
            raise Refused(403, message="you have no right to write here")
        return found

    def tree_of(self, name: str, revision: str) -> tuple[str, dict[str, str]]:
        repository = self.repository(name)
        sha = repository.find(revision or "main")
        if sha is None:
            raise Refused(404, "RevisionNotFound", "Invalid rev id")
        return sha, repository.commits[sha]

    def entry(self, path: str, digest: str) -> dict[str, Any]:
        data = self.server.blobs[digest]
        made = {"type": "file", "path": path, "size": len(data), "oid": git_oid(data)}
        if LARGE.match(path):
            made["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return {**made, "lastCommit": LAST_COMMIT}

    def info(self, name: str, revision: str) -> None:
        sha, tree = self.tree_of(name, revision)
        siblings = [{"rfilename": path} for path in sorted(tree)]
        private = self.repository(name).private
        self.json({"id": name, "sha": sha, "private": private, "siblings": siblings, "tags": []})

    def tree(self, name: str, revision: str, folder: str) -> None:
        _, tree = self.tree_of(name, revision)
        prefix = f"{folder}/" if folder else ""
        below = {path for path in tree if path.startswith(prefix)}
        if folder and not below:
            raise Refused(404, "EntryNotFound", "no such folder")
        asked = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower()
        names = set()
        for path in below:
            steps = path.removeprefix(prefix).split("/")
            ends = range(1, len(steps) + 1) if asked in ("true", "1") else [1]
            names |= {prefix + "/".join(steps[:end]) for end in ends}
        self.json([self.described(path, tree) for path in sorted(names)])

    def paths_info(self, name: str, revision: str) -> None:
        _, tree = self.tree_of(name, revision)
        if self.headers.get("Content-Type", "").startswith("application/json"):
            asked = json.loads(self.body)["paths"]
        else:
            asked = parse_qs(self.body.decode())["paths"]
        folders = {path.rpartition("/")[0] for path in tree}
        there = [path for path in asked if path in tree or path in folders]
        self.json([self.described(path, tree) for path in there])

    def described(self, path: str, tree: dict[str, str]) -> dict[str, Any]:
        if path in tree:
            return self.entry(path, tree[path])
        return {"type": "directory", "path": path, "oid": "0" * 40, "lastCommit": LAST_COMMIT}

    def resolve(self, name: str, revision: str, path: str) -> None:
        sha, tree = self.tree_of(name, revision)
        commit = {"X-Repo-Commit": sha}
        if path not in tree:
            raise Refused(404, "EntryNotFound", "Entry not found")
        data = self.server.blobs[tree[path]]
        large = LARGE.match(path) is not None
        headers = commit | {"ETag": f'"{tree[path] if large else git_oid(data)}"'}
        headers |= self.server.storage(tree[path]) if large else {}
        headers |= {"Accept-Ranges": "bytes", "X-Linked-Size": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.answer(data, 200, headers)
            return
        start, stop = int(asked[1]), min(len(data), int(asked[2] or len(data)) + 1)
        if start >= len(data):
            raise Refused(416)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        self.answer(data[start:stop], 206, headers)

    def create(self) -> None:
        if not self.authorised:
            raise Refused(401, message="Invalid credentials")
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.server.url}/datasets/{name}"
        if name in self.server.repositories:
            self.json({"error": "You already created this dataset repo", "url": url}, 409)
            return
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.server.create(name, private=private)
        self.json({"url": url, "name": name})

    def branch(self, name: str, branch: str) -> None:
        repository = self.repository(name, write=True)
        if branch in repository.branches:
            raise Refused(409, message="Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self.json({})

    def validate(self) -> None:
        front = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            found = yaml.safe_load(front[1]) if front else None
        except yaml.YAMLError as error:
            self.json({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        empty = {"message": "empty or missing yaml metadata in repo card"}
        self.json({"errors": [], "warnings": [] if isinstance(found, dict) else [empty]})

    def preupload(self, name: str, revision: str) -> None:
        self.repository(name, write=True)
        _, tree = self.tree_of(name, revision)
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            large, oid = LARGE.match(path) is not None, None
            if path in tree:
                oid = tree[path] if large else git_oid(self.server.blobs[tree[path]])
            mode = "lfs" if large else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json({"files": answers})

    def batch(self, name: str) -> None:
        self.repository(name, write=True)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            if asked["oid"] not in self.server.blobs:
                href = f"{self.server.url}/lfs/{asked['oid']}"
                asked = asked | {"actions": {"upload": {"href": href}}}
            objects.append(asked)
        self.json({"transfer": "basic", "objects": objects})

    def upload(self, digest: str) -> None:
        if self.server.refuse_upload(len(self.server.uploads)):
            raise Refused(403, message="the line is cut")
        if self.server.keep(self.body) != digest:
            raise Refused(400, message="the bytes have another digest")
        self.server.uploads.append(digest)
        self.answer(b"")

    def commit(self, name: str, revision: str) -> None:
        self.server.before_commit()
        repository = self.repository(name, write=True)
        head, tree = self.tree_of(name, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != head:
            raise Refused(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(tree)
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = self.server.keep(base64.b64decode(value["content"]))
                case "lfsFile" if self.server.has(value["oid"]):
                    files[value["path"]] = value["oid"]
                case "deletedFile" if value["path"] in files:
                    del files[value["path"]]
                case other:
                    raise Refused(400, message=f"cannot commit {other}: {value}")
        sha = repository.commit(revision, files)
        url = f"{self.server.url}/datasets/{name}/commit/{sha}"
        self.json({"success": True, "commitOid": sha, "commitUrl": url})


NAME = r"([^/]+/[^/]+)"
READS = [
    (rf"/api/datasets/{NAME}(?:/revision/([^/]+))?", Handler.info),
    (rf"/api/datasets/{NAME}/tree/([^/]+)(?:/(.+))?", Handler.tree),
    (rf"/datasets/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]
WRITES = [
    (r"/api/repos/create", Handler.create),
    (r"/api/validate-yaml", Handler.validate),
    (rf"/api/datasets/{NAME}/branch/([^/]+)", Handler.branch),
    (rf"/api/datasets/{NAME}/paths-info/([^/]+)", Handler.paths_info),
    (rf"/api/datasets/{NAME}/preupload/([^/]+)", Handler.preupload),
    (rf"/api/datasets/{NAME}/commit/([^/]+)", Handler.commit),
    (rf"/datasets/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
]


@contextmanager
def hub(server: Hub) -> Iterator[Hub]:
    """A Hub at work."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
