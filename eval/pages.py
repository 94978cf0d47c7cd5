"""A headless browser with one page that does what this process asks of it, and the server that the page comes from.

Modules that a page imports are files of this machine; nothing else can be reached. The way between here and the page is
in no figure: the page times itself.
"""

import atexit
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

from eval import dying
from pipeline.base.errors import ModelError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START_TIMEOUT_S = 60.0
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    # nothing but the page: no look-ups of updates, no calls home
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-quic",
    "--disable-sync",
    # a page that nobody looks at must not be slowed down
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
)
CONTENT_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".mjs": "text/javascript",
    ".wasm": "application/wasm",
}
# A page defines `tasks`, functions by name; it asks for one, does it, and sends the answer when it asks for the next.
LOOP = """
let answer = {ready: true};
for (;;) {
  const task = await (await fetch("./next", {method: "POST", body: JSON.stringify(answer)})).json();
  try { answer = await tasks[task.do](task); } catch (error) { answer = {error: String(error?.message ?? error)}; }
}
"""


def why_missing() -> str | None:
    """The reason why there is no browser, or None."""
    if find_browser() is None:
        return f"no browser: none of {', '.join(BROWSERS)} is on PATH; install Chromium, or name one in $CHROME"
    return None


def find_browser() -> str | None:
    """The browser named by $CHROME, or the first that is on PATH."""
    named = os.environ.get("CHROME")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, BROWSERS)), None)


class Page:
    """A browser with one page, and the server that the page talks to."""

    speaker = "the page"  # who says what goes wrong in it

    def __init__(self, html: str, files: Mapping[str, Path]) -> None:
        """Opens it and waits until it asks for its first task.

        Args:
            html: the page; its module ends with LOOP.
            files: what the page may fetch, by the name below its own address.
        """
        self.html, self.files = html, dict(files)
        self.tasks: queue.Queue[dict[str, Any]] = queue.Queue()
        self.answers: queue.Queue[dict[str, Any]] = queue.Queue()
        # Other programs of this machine can reach the port, but not guess the path.
        self.secret = token_urlsafe()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._profile = tempfile.mkdtemp(prefix="decant-browser-")
        self._browser = self._start()
        atexit.register(self.close)
        self._wait(Path("the page"), START_TIMEOUT_S)

    def _start(self) -> subprocess.Popen:
        browser = find_browser()
        assert browser is not None, "asked for although why_missing() has a reason"
        # Root has no sandbox of Chromium's; the page is ours and reaches nothing else.
        flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else []), f"--user-data-dir={self._profile}"]
        url = f"http://127.0.0.1:{self._server.server_port}/{self.secret}/"
        return subprocess.Popen(
            dying.command(browser, *flags, url),
            cwd=dying.ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, task: dict[str, Any], path: Path) -> dict[str, Any]:
        """Has the page do something, and gives its answer.

        Raises:
            ModelError: the page says that it failed, or the browser ended.
        """
        self.tasks.put(task)
        found = self._wait(path, None)
        if "error" in found:
            raise ModelError(f"{path}: {self.speaker} says: {found['error'].splitlines()[0][:300]}; export it again")
        return found

    def _wait(self, path: Path, timeout_s: float | None) -> dict[str, Any]:
        waited_s = 0.0
        while timeout_s is None or waited_s < timeout_s:
            try:
                return self.answers.get(timeout=1.0)
            except queue.Empty:
                waited_s += 1.0
            if self._browser.poll() is not None:
                raise ModelError(f"{path}: the browser ended with status {self._browser.returncode}; try again")
        raise ModelError(f"{path}: the browser did not open it within {timeout_s:g} s; try again")

    def close(self) -> None:
        """Ends the browser and the server."""
        self._browser.kill()
        self._browser.wait()
        self._server.shutdown()
        self._server.server_close()
        shutil.rmtree(self._profile, ignore_errors=True)


def _handler(page: Page) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # one connection for all tasks

        def do_GET(self) -> None:
            secret, _, name = self.path.lstrip("/").partition("/")
            if secret != page.secret or name not in ("", *page.files):
                self._answer(404, b"", "text/plain")
            elif name == "":
                self._answer(200, page.html.encode(), "text/html")
            else:
                kind = CONTENT_TYPES.get(Path(name).suffix, "application/octet-stream")
                self._answer(200, page.files[name].read_bytes(), kind)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != f"/{page.secret}/next":
                self._answer(404, b"", "text/plain")
                return
            page.answers.put(json.loads(body))
            self._answer(200, json.dumps(page.tasks.get()).encode(), "application/json")

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            # Both isolate the page, without which it has one thread and a clock of a tenth of a millisecond.
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    return Handler
