"""A server that answers like the model hub, from folders, and counts what is asked of it."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """A running server.

    Attributes:
        environment: makes the hub's client use it.
        downloads: how often each file was sent, by OWNER/NAME/PATH.
    """

    environment: dict[str, str] = field(default_factory=dict)
    downloads: Counter[str] = field(default_factory=Counter)


class HubHandler(SimpleHTTPRequestHandler):
    """Serves a folder with repositories of one commit each."""

    def __init__(self, *arguments: Any, hub: Hub, **options: Any) -> None:
        self.hub = hub
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        if not self.path.startswith("/api/models/"):
            if "/resolve/" in self.path:
                self.hub.downloads[without_revision(self.path).lstrip("/")] += 1
            super().do_GET()
            return
        repository = "/".join(self.path.split("/")[3:5])
        folder = Path(self.directory) / repository
        files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        answer: Any = {"id": repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        if "/tree/" in self.path:
            answer = [
                {"type": "file", "path": name, "size": size, "oid": etag(f"/{repository}/{name}")}
                for name, size in files.items()
            ]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def translate_path(self, path: str) -> str:
        return super().translate_path(without_revision(path))

    def end_headers(self) -> None:
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{etag(self.path)}"')
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


def without_revision(path: str) -> str:
    return re.sub("/resolve/[^/]+", "", path)


def etag(path: str) -> str:
    return re.sub("[^a-zA-Z0-9]", "-", without_revision(path))


@contextmanager
def model_hub(folder: Path) -> Iterator[Hub]:
    """Serve OWNER/NAME/... below a folder."""
    hub = Hub()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(HubHandler, hub=hub, directory=str(folder))) as server:
        hub.environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1"}
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield hub
        finally:
            server.shutdown()
