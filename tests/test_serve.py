"""`decant serve`: what it offers, with the headers that threads of WebAssembly need, and nothing outside artifacts/."""

import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from fakes import ROOT

from pipeline.base.errors import EnvironmentFault, IntegrityError
from stages.commands import serve


@pytest.fixture
def served(tmp_path):
    """(address, lines that were printed before) of a server on a project with a report and a bundle."""
    (tmp_path / "secret.txt").write_text("not served")
    for name in ("report/index.html", "bundles/web/index.html", "bundles/web/page.js"):
        file = tmp_path / "artifacts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("served")
    command = [sys.executable, "-m", "stages", "serve", "--port", "0", "--folder", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline().strip() for _ in range(3)]
        yield lines[0].partition(": ")[2].removesuffix("/report/index.html"), lines
        process.terminate()


def test_it_says_where_everything_is_and_serves_it_isolated(served):
    address, lines = served
    assert [line.partition(":")[0] for line in lines] == ["the report", "the page of the web bundle", "all bundles"]
    with urllib.request.urlopen(f"{address}/bundles/web/page.js") as found:
        assert found.read() == b"served"
        assert found.headers["Content-Type"] == "text/javascript"
        assert found.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert found.headers["Cross-Origin-Embedder-Policy"] == "require-corp"


@pytest.mark.parametrize("path", ["/../secret.txt", "/%2e%2e/secret.txt", "/bundles/../../secret.txt", "//secret.txt"])
def test_nothing_outside_artifacts_is_served(served, path):
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{served[0]}{path}")


def test_nothing_to_serve_and_a_port_in_use_are_said(served, tmp_path):
    with pytest.raises(IntegrityError, match="neither a report nor bundles; run `dvc repro` first"):
        serve.command(port=0, folder=tmp_path / "elsewhere")
    port = int(served[0].rpartition(":")[2])
    with pytest.raises(EnvironmentFault, match=f"port {port}: .*; name another with --port"):
        serve.command(port=port, folder=tmp_path)
