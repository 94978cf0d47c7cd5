"""Serves report, web demo and bundles to this machine's browser.

    decant serve
    decant serve --port 8080

Pages are isolated from other origins, so that WebAssembly may have threads. Ends with Ctrl-C.
"""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated

import typer

from pipeline.base.errors import EnvironmentFault, IntegrityError
from pipeline.base.workspace import Workspace

PLACES = (
    ("the report", "report/index.html"),
    ("the page of the web bundle", "bundles/web/index.html"),
    ("all bundles", "bundles/"),
    ("accepted versions", "history/index.html"),
)


def command(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    folder: Annotated[Path, typer.Option(help="The project.")] = Path(),
) -> None:
    artifacts = Workspace(folder).artifacts
    there = [(what, place) for what, place in PLACES if (artifacts / place).exists()]
    if not there:
        raise IntegrityError(f"{artifacts}: neither a report nor bundles; run `dvc repro` first")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(artifacts)))
    except OSError as error:
        raise EnvironmentFault(f"port {port}: {error.strerror}; name another with --port") from error
    with server:
        address = f"http://127.0.0.1:{server.server_port}"
        for what, place in there:
            print(f"{what}: {address}/{place}", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("ended")


class Handler(SimpleHTTPRequestHandler):
    """Files of artifacts/ alone, none of which a browser keeps."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: what is served is nobody's business."""
