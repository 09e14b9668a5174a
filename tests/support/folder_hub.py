"""A hub of models on this machine: what huggingface_hub asks of one, answered from a folder; what it asks about the
model is counted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """name: of the one model, org/name; commit: the newest. requests: (method, path below the address), counted."""

    folder: Path
    name: str = "some/model"
    commit: str = "1" * 40
    commits: list[str] = field(default_factory=list)  # older ones, with the same files
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    address: str = ""

    def fetched(self, end: str) -> int:
        """How often files with this end were sent."""
        return sum(n for (method, path), n in self.requests.items() if method == "GET" and path.endswith(end))

    @property
    def asked(self) -> int:
        return sum(self.requests.values())

    def files(self) -> dict[str, bytes]:
        return {p.relative_to(self.folder).as_posix(): p.read_bytes() for p in self.folder.rglob("*") if p.is_file()}

    def revision(self, name: str) -> str | None:
        if name == "main":
            return self.commit
        return name if name in (self.commit, *self.commits) else None


@contextlib.contextmanager
def hub(folder: Path, **options: Any) -> Iterator[Hub]:
    """Serves the pipeline that lies in the folder."""
    found = Hub(folder, **options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(found))
    found.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(of: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer("HEAD")

        def do_GET(self) -> None:
            self._answer("GET")

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, method: str) -> None:
            path = unquote(urlsplit(self.path).path)
            of.requests[method, path] += of.name in path  # huggingface_hub has questions of its own beside
            code, body, headers = _reply(of, path)
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if method == "GET":
                self.wfile.write(body)

    return Handler


def _reply(of: Hub, path: str) -> tuple[int, bytes, dict[str, str]]:
    api, files = f"/api/models/{of.name}", f"/{of.name}/resolve/"
    if path.startswith(files):
        name, _, file = path.removeprefix(files).partition("/")
        commit, body = of.revision(name), of.files().get(file)
        if commit is not None and body is not None:
            return 200, body, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": commit}
    elif path == api or path.startswith(f"{api}/"):
        kind, _, name = path.removeprefix(api).lstrip("/").partition("/")
        commit = of.revision(name or "main")
        if commit is not None:
            listed = _tree(of) if kind == "tree" else _info(of, commit)
            return 200, json.dumps(listed).encode(), {"Content-Type": "application/json"}
    return 404, b"{}", {"X-Error-Code": "RevisionNotFound" if of.name in path else "RepoNotFound"}


def _info(of: Hub, commit: str) -> dict[str, Any]:
    siblings = [{"rfilename": name} for name in of.files()]
    return {"_id": "0" * 24, "id": of.name, "modelId": of.name, "sha": commit, "siblings": siblings, "tags": []}


def _tree(of: Hub) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
        for name, body in of.files().items()
    ]
