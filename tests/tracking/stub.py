"""As much of a W&B server as a run needs, on loopback; it keeps what arrives, and can die or fall silent."""

from __future__ import annotations

import json
import re
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Stub:
    """``configs``, ``histories`` and ``summaries`` by run id, as they were sent."""

    def __init__(self, port: int = 0) -> None:
        self.configs: dict[str, dict[str, Any]] = {}
        self.upserts: dict[str, dict[str, Any]] = {}
        self.histories: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.summaries: dict[str, dict[str, Any]] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}  # as they were announced
        self.committed: list[str] = []  # those that arrived, once for each time
        self.commits = threading.Event()  # while it is not set, nothing that is uploaded is complete
        self.commits.set()
        self.exit_codes: dict[str, int] = {}
        self.bodies: list[bytes] = []
        self._server = _Server(("127.0.0.1", port), _handler(self))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"

    def die(self) -> None:
        """From now on the port is closed; what a dying server is still asked is refused."""
        self._server.shutdown()
        self._server.server_close()
        self._dead = True

    _dead = False
    refuses = False  # every key

    def graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        operation = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
        variables = request.get("variables") or {}
        match operation[1] if operation else "":
            case "UpsertBucket":
                name = variables["name"]
                self.upserts.setdefault(name, variables)
                if variables.get("config"):
                    config = json.loads(variables["config"])
                    self.configs[name] = {key: item["value"] for key, item in config.items() if key != "_wandb"}
                project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": "team"}}
                bucket = {"id": name, "name": name, "displayName": name, "project": project, "historyLineCount": 0}
                return {"upsertBucket": {"bucket": bucket, "inserted": True}}
            case "RunResumeStatus":
                return {"model": {"id": "p", "name": "p", "bucket": self._resumed(variables["name"])}}
            case "CreateRunFiles":
                files = [{"name": name, "uploadUrl": f"{self.url}/put/{name}"} for name in variables["files"]]
                return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
            case "Viewer":
                return {"viewer": {"id": "v", "entity": "team", "username": "user", "flags": "{}"}}
            case "ArtifactType":
                return {"project": None}
            case "CreateArtifact":
                given = variables["input"]
                self.artifacts[given["artifactCollectionName"]] = given
                made = {"id": given["artifactCollectionName"], "state": "PENDING"}
                return {"createArtifact": {"artifact": {**made, "artifactSequence": {"latestArtifact": None}}}}
            case "CreateArtifactManifest" | "UpdateArtifactManifest" as asked:
                file = {"id": "f", "uploadUrl": f"{self.url}/put/manifest", "uploadHeaders": []}
                made = {"artifactManifest": {"id": f"manifest of {variables.get('artifactID')}", "file": file}}
                return {asked[0].lower() + asked[1:]: made}
            case "CreateArtifactFiles":
                files = [(one["artifactID"], one["name"]) for one in variables["input"]["artifactFiles"]]
                nodes = [
                    {
                        "artifact": {"id": artifact},
                        "storagePath": f"{artifact}/{name}", "uploadUrl": f"{self.url}/put/{artifact}/{name}",
                        "uploadHeaders": [], "uploadMultipartUrls": None,
                    }
                    for artifact, name in files
                ]  # fmt: skip
                return {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}
            case "CommitArtifact":
                self.commits.wait(30)
                self.committed.append(variables["artifactID"])
                return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}
            case "ArtifactByID":
                return {"artifact": self._committed(variables["id"])}
            case "ServerFeaturesQuery":
                return {"serverInfo": {"features": []}}
        return {}

    def _committed(self, name: str) -> dict[str, Any]:
        project = {"id": "p", "internalId": "p", "name": "p", "entity": {"name": "team"}}
        return {
            "id": name, "artifactSequence": {"name": name, "project": project}, "versionIndex": 0,
            "artifactType": {"name": self.artifacts[name]["artifactTypeName"]}, "description": None, "metadata": None,
            "ttlDurationSeconds": -1, "ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED",
            "size": 0, "digest": "", "commitHash": None, "fileCount": 1, "createdAt": "2026-01-01T00:00:00",
            "updatedAt": None, "aliases": [],
        }  # fmt: skip

    def _resumed(self, name: str) -> dict[str, Any] | None:
        if name not in self.upserts:
            return None
        history = self.histories[name]
        return {
            "id": name, "name": name, "historyLineCount": len(history), "eventsLineCount": 0, "logLineCount": 0,
            "historyTail": json.dumps([json.dumps(line) for line in history[-1:]]), "eventsTail": "[]",
            "config": "{}", "summaryMetrics": json.dumps(self.summaries.get(name, {})), "tags": [],
            "wandbConfig": '{"t": 1}',
        }  # fmt: skip

    def stream(self, name: str, body: dict[str, Any]) -> None:
        for file, part in (body.get("files") or {}).items():
            lines = [json.loads(line) for line in part["content"]]
            if file == "wandb-history.jsonl":
                self.histories[name] += lines
            elif file == "wandb-summary.json":
                self.summaries[name] = lines[-1]
        if body.get("complete"):
            self.exit_codes[name] = body["exitcode"]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is nothing to print."""


def _handler(stub: Stub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self, content: Any, status: int = 200) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            if stub._dead:
                self.close_connection = True
                return None
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            stub.bodies.append(raw)
            if stub.refuses:
                return self._answer({"errors": [{"message": "user is not logged in"}]}, 401)
            body = json.loads(raw)
            if self.path.endswith("/graphql"):
                return self._answer({"data": stub.graphql(body)})
            stub.stream(self.path.rstrip("/").split("/")[-2], body)
            return self._answer({"limits": {}})

        def do_PUT(self) -> None:
            stub.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer({})

        def do_GET(self) -> None:
            self._answer({})

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    return Handler
