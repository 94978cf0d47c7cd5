"""What holds for every test: shapes are checked, and 8-bit files may be executed on an emulated CPU.

Shapes are checked at run time in tests only, so training pays nothing: here every annotation becomes a check.
"""

from functools import partial

import pytest
from jaxtyping import install_import_hook

# before any test imports them; modules imported earlier would stay unchecked
install_import_hook(
    [
        "pipeline.signals.attention_analysis",
        "pipeline.signals.cka",
        "pipeline.signals.class_divergences",
        "pipeline.signals.divergences",
        "pipeline.signals.hidden_states",
        "pipeline.models.layer_maps",
        "pipeline.losses",
        "pipeline.signals.reader",
        "pipeline.training.teacher_signals",
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
    from pipeline.base import emulation, plugins

    assert emulation.why_unusable() is None, emulation.why_unusable()
    for name in WITH_8_BIT_KERNELS:
        runtime = plugins.load("runtime", name)
        if runtime.why_unusable() is None:
            opened = partial(_open_without_vnni, request.node, name, runtime.open_session)
            request.getfixturevalue("monkeypatch").setattr(runtime, "open_session", opened)


def _open_without_vnni(test, name, open_here, folder, artefact, threads):
    from eval.isolated import open_session

    if artefact.precision != "int8":
        return open_here(folder, artefact, threads)
    test.user_properties.append(("without VNNI", name))
    return open_session(name, folder, artefact, threads, emulated=True)


def pytest_terminal_summary(terminalreporter, config):
    """Which tests did so: a run in which none executed anything there would be as green."""
    if not config.getoption("--without-vnni"):
        return
    for outcome in ("passed", "failed"):
        tests = [report for report in terminalreporter.getreports(outcome) if dict(report.user_properties)]
        terminalreporter.write_line(f"{len(tests)} {outcome} with 8-bit files on an emulated CPU without VNNI:")
        for test in sorted(tests, key=lambda report: report.nodeid):
            runtimes = sorted({name for _, name in test.user_properties})
            terminalreporter.write_line(f"  {test.nodeid} ({', '.join(runtimes)})")
