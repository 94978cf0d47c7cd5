"""What holds for every test: shapes are checked, and 8-bit files may be executed on an emulated CPU.

Shapes are checked at run time in tests only, so training pays nothing: here every annotation becomes a check.
"""

from functools import partial

import pytest
from jaxtyping import install_import_hook

# before any test imports them; modules imported earlier would stay unchecked
install_import_hook(
    [
        "pipeline.attention_analysis",
        "pipeline.cka",
        "pipeline.class_divergences",
        "pipeline.divergences",
        "pipeline.hidden_states",
        "pipeline.layer_maps",
        "pipeline.losses",
        "pipeline.signals",
        "pipeline.teacher_signals",
    ],
    "beartype.beartype",
)

WITH_8_BIT_KERNELS = ("onnxruntime", "openvino", "litert", "executorch")


def pytest_addoption(parser):
    parser.addoption("--without-vnni", action="store_true", help="8-bit files run on an emulated x86 without VNNI")


@pytest.fixture(autouse=True)
def without_vnni(request):
    """With `--without-vnni`, sessions on 8-bit files open in a process on an emulated CPU; the rest stays native."""
    if not request.config.getoption("--without-vnni"):
        return
    from pipeline import emulation, plugins

    assert emulation.why_unusable() is None, emulation.why_unusable()
    for name in WITH_8_BIT_KERNELS:
        runtime = plugins.load("runtime", name)
        if runtime.why_unusable() is None:
            opened = partial(_open_without_vnni, name, runtime.open_session)
            request.getfixturevalue("monkeypatch").setattr(runtime, "open_session", opened)


def _open_without_vnni(name, open_here, folder, artefact, threads):
    from eval.isolated import open_session

    if artefact.precision != "int8":
        return open_here(folder, artefact, threads)
    return open_session(name, folder, artefact, threads, emulated=True)
