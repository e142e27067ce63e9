"""A server with the part of the Hugging Face Hub's API that ``huggingface_hub`` uses for repositories of files.

Repositories have one branch, which may have several names; every commit is kept, with the files as they were then.
Large files come by Git LFS.
"""

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_token_of_a_test"
LARGE = (".tar", ".zst", ".arrow", ".safetensors")  # sent by LFS, like the Hub's own .gitattributes says
MAIN = "main"


@dataclass
class Repository:
    """A repository: what each commit has, and in which order they came."""

    private: bool
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)  # id, message, files
    branches: set[str] = field(default_factory=lambda: {MAIN})

    def files(self, revision: str) -> dict[str, bytes] | None:
        if revision in self.branches:
            return self.commits[-1][2]
        return next((files for oid, _, files in self.commits if oid == revision), None)

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits.append((oid, message, files))
        return oid


class Hub:
    """State of the server."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}  # by "datasets/OWNER/NAME" or "models/OWNER/NAME"
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.uploads = 0  # objects that were sent
        self.fail_commits = 0  # so many commits are answered with 500
        self.url = ""


def entry_of(path: str, data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
    if path.endswith(LARGE):
        digest = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 134}
    return found


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextlib.contextmanager
def hub_server() -> Iterator[Hub]:
    """A running server; ``url`` is for HF_ENDPOINT."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, content: Any = None, **headers: str) -> None:
            body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", headers.get("length") or str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def missing(self, code: str) -> None:
            self.answer(404, {"error": code}, X_Error_Code=code)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return data
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def dispatch(self) -> None:
            body, parts = self.body(), urlsplit(self.path)
            path = [unquote(part) for part in parts.path.strip("/").split("/")]
            if path[0] != "lfs" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(401, {"error": "Invalid credentials"})
            elif path[0] == "lfs":
                hub.objects[path[1]] = body
                hub.uploads += 1
                self.answer(200)
            elif path[:3] == ["api", "repos", "create"]:
                self.create(json.loads(body))
            elif path == ["api", "validate-yaml"]:
                self.answer(200, {"errors": [], "warnings": []})
            elif path[0] == "api" and path[1] in ("datasets", "models"):
                self.api("/".join(path[1:4]), path[4:], body, parse_qs(parts.query))
            elif path[-4:] == ["info", "lfs", "objects", "batch"]:
                self.batch(json.loads(body))
            elif "resolve" in path:
                at = path.index("resolve")
                kind = "datasets" if path[0] == "datasets" else "models"
                self.resolve(f"{kind}/{path[at - 2]}/{path[at - 1]}", path[at + 1], "/".join(path[at + 2 :]))
            else:
                self.missing("NotFound")

        do_GET = do_POST = do_PUT = do_HEAD = dispatch

        def create(self, wanted: dict[str, Any]) -> None:
            kind = f"{wanted.get('type', 'model')}s"
            name = f"{kind}/{wanted['organization']}/{wanted['name']}"
            if name in hub.repositories:
                self.answer(409, {"error": "You already created this repo", "url": f"{hub.url}/{name}"})
                return
            hub.repositories[name] = Repository(wanted.get("private", wanted.get("visibility") == "private"))
            hub.repositories[name].commit("initial commit", {".gitattributes": b"*.tar filter=lfs\n"})
            self.answer(200, {"url": f"{hub.url}/{name.removeprefix('models/')}", "name": name})

        def api(self, name: str, rest: list[str], body: bytes, query: dict[str, list[str]]) -> None:
            repository = hub.repositories.get(name)
            if repository is None:
                self.missing("RepoNotFound")
                return
            revision = rest[1] if len(rest) > 1 else MAIN
            files = repository.files(revision)
            if files is None:
                self.missing("RevisionNotFound")
                return
            action = rest[0] if rest else "revision"
            if action == "revision":
                oid = repository.commits[-1][0] if revision in repository.branches else revision
                siblings = [{"rfilename": path} for path in files]
                self.answer(200, {"id": name.partition("/")[2], "sha": oid, "siblings": siblings})
            elif action == "tree":
                self.tree(files, "/".join(rest[2:]), query.get("recursive", ["false"])[0].lower() == "true")
            elif action == "paths-info":
                wanted = parse_qs(body.decode()).get("paths", [])
                self.answer(200, [each for path in wanted if (each := self.at(files, path.strip("/")))])
            elif action == "preupload":
                asked = json.loads(body)["files"]
                modes = {each["path"]: "lfs" if each["path"].endswith(LARGE) else "regular" for each in asked}
                self.answer(
                    200,
                    {
                        "files": [
                            {"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()
                        ]
                    },
                )
            elif action == "commit":
                self.commit(name, files, [json.loads(line) for line in body.splitlines()])
            else:
                self.missing("NotFound")

        def at(self, files: dict[str, bytes], path: str) -> dict[str, Any] | None:
            if path in files:
                return entry_of(path, files[path])
            is_folder = any(each.startswith(f"{path}/") for each in files)
            return {"type": "directory", "path": path, "oid": blob_id(path.encode()), "size": 0} if is_folder else None

        def tree(self, files: dict[str, bytes], folder: str, recursive: bool) -> None:
            prefix = f"{folder}/" if folder else ""
            inside = {path: data for path, data in files.items() if path.startswith(prefix)}
            if folder and not inside:
                self.missing("EntryNotFound")
                return
            found, folders = [], set()
            for path, data in inside.items():
                first, slash, _ = path.removeprefix(prefix).partition("/")
                if slash:
                    folders.add(prefix + first)
                if recursive or not slash:
                    found.append(entry_of(path, data))
            found += [each for path in sorted(folders) if (each := self.at(files, path))]
            self.answer(200, found)

        def batch(self, wanted: dict[str, Any]) -> None:
            objects = []
            for each in wanted["objects"]:
                upload = {"upload": {"href": f"{hub.url}/lfs/{each['oid']}"}}
                objects.append({**each, **({} if each["oid"] in hub.objects else {"actions": upload})})
            self.answer(200, {"transfer": "basic", "objects": objects})

        def commit(self, name: str, files: dict[str, bytes], lines: list[dict[str, Any]]) -> None:
            if hub.fail_commits:
                hub.fail_commits -= 1
                self.answer(500, {"error": "Internal Error"})
                return
            files, message = dict(files), ""
            if lines[0]["value"].get("parentCommit", None) not in (None, hub.repositories[name].commits[-1][0]):
                self.answer(412, {"error": "A commit has happened since. Please refresh and try again."})
                return
            for line in lines:
                value = line["value"]
                if line["key"] == "header":
                    message = value["summary"]
                elif line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = hub.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            oid = hub.repositories[name].commit(message, files)
            self.answer(
                200,
                {
                    "success": True,
                    "commitOid": oid,
                    "commitUrl": f"{hub.url}/{name.removeprefix('models/')}/commit/{oid}",
                    "hookOutput": "",
                },
            )

        def resolve(self, name: str, revision: str, path: str) -> None:
            repository = hub.repositories.get(name)
            if repository is None:
                self.missing("RepoNotFound")
                return
            files = repository.files(revision)
            if files is None or path not in files:
                self.missing("EntryNotFound")
                return
            data, headers = files[path], {"ETag": f'"{blob_id(files[path])}"', "Accept_Ranges": "bytes"}
            headers["X_Repo_Commit"] = repository.commits[-1][0]
            wanted = self.headers.get("Range")
            if wanted is None:
                self.answer(200, data, **headers)
                return
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            if int(first) >= len(data):
                self.answer(416, **headers)
                return
            part = data[int(first) : (int(last) + 1 if last else None)]
            headers["Content_Range"] = f"bytes {first}-{int(first) + len(part) - 1}/{len(data)}"
            self.answer(206, part, **headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
