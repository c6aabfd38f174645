"""A server on this machine that answers as the Hugging Face hub does for one dataset, ``owner/pets``."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Its address, and the requests it has had; the dataset's files are those of ``folder``."""
    requests: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            requests.append(f"{self.command} {self.path}")
            path = unquote(urlsplit(self.path).path)
            if "/resolve/" in path:
                self._file(folder / path.split("/resolve/")[1].split("/", 1)[1])
            elif "/tree/" in path:
                below = folder / "/".join(path.split("/tree/")[1].split("/")[1:])
                self._json([self._entry(one) for one in sorted(below.iterdir())]) if below.is_dir() else self._none(
                    "Entry"
                )
            elif path in (
                "/api/datasets/owner/pets",
                *(f"/api/datasets/owner/pets/revision/{r}" for r in ("v1", COMMIT)),
            ):
                self._json({"id": "owner/pets", "sha": COMMIT, "private": False, "siblings": []})
            else:
                self._none("Revision" if "/revision/" in path else "Repo")

        def _file(self, path: Path) -> None:
            if not path.is_file():
                return self._none("Entry")
            data = path.read_bytes()
            return self._send(200, data, {"ETag": f'"{hashlib.sha1(data, usedforsecurity=False).hexdigest()}"'})

        def _entry(self, path: Path) -> dict[str, Any]:
            kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
            return {"type": kind, "path": path.relative_to(folder).as_posix(), "size": size, "oid": "a" * 40}

        def _json(self, content: object) -> None:
            self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

        def _none(self, what: str) -> None:
            self._send(404, b"", {"X-Error-Code": f"{what}NotFound"})

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for key, value in {**headers, "X-Repo-Commit": COMMIT, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
