"""Says which formats, runtimes, devices and bundles work here, and why the others do not."""

import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.base import machine, plugins
from stages.releasing import signing

WANTED_GB = 8


def command() -> None:
    facts = machine.facts()
    # A file or a pipe has no width, and rich would take 80 columns, in which reasons wrap.
    console = Console(soft_wrap=True, width=None if sys.stdout.isatty() else 120)
    console.print(
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {facts['os']}, Python {facts['python']}",
        highlight=False,
    )
    console.print(f"instruction sets that matter: {', '.join(facts['isa']) or 'none found'}", highlight=False)
    kind, meaning = machine.int8_kernels(facts)
    console.print(f"int8 kernels: {kind}; {meaning}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("kind", "name", "here", "why not, or version"):
        table.add_column(column)
    for kind, name, reason, note in findings():
        table.add_row(kind, name, "no" if reason else "yes", reason or note)
    console.print(table, highlight=False)


def findings() -> list[tuple[str, str, str | None, str]]:
    """(kind, name, why it does not work here or None, note) for all that targets and bundles name, and the machine."""
    rows: list[tuple[str, str, str | None, str]] = []
    for name in plugins.names("format"):
        reason, note = _import("format", name)
        if reason is None:
            exporter = plugins.load("format", name)
            reason = exporter.why_unusable() if hasattr(exporter, "why_unusable") else None
        rows.append(("format", name, reason, note))
    for name in plugins.names("runtime"):
        reason, note = _import("runtime", name)
        if reason is None:
            runtime = plugins.load("runtime", name)
            reason = runtime.why_unusable()
            note = (
                "" if reason else runtime.version() + (f" (stand-in: {runtime.STAND_IN})" if runtime.STAND_IN else "")
            )
        rows.append(("runtime", name, reason, note))
    for name in plugins.names("device"):
        reason, note = _import("device", name)
        rows.append(("device", name, reason or plugins.load("device", name).why_unusable(), note))
    for kind in ("bundle", "client", "tokenizer"):
        for name in plugins.names(kind):
            reason, note = _import(kind, name)
            module = plugins.load(kind, name) if reason is None else None
            if module is not None:
                reason = module.why_unusable() if hasattr(module, "why_unusable") else None
                note = (reason is None and hasattr(module, "version") and module.version()) or ""
            rows.append((kind, name, reason, note))
    reason = signing.why_unusable()
    return [*rows, ("release", "signing", reason, ""), _gpu(), _disk()]


def _import(kind: str, name: str) -> tuple[str | None, str]:
    try:
        plugins.load(kind, name)
    except ImportError as error:
        return f"cannot be imported: {error}", ""
    return None, ""


def _gpu() -> tuple[str, str, str | None, str]:
    import torch

    if torch.cuda.is_available():
        return "hardware", "cuda", None, torch.cuda.get_device_name(0)
    build = "" if torch.version.cuda else " (this PyTorch is a CPU build)"
    return "hardware", "cuda", f"no NVIDIA GPU that PyTorch can use; training runs on the CPU{build}", ""


def _disk() -> tuple[str, str, str | None, str]:
    free_gb = shutil.disk_usage(Path()).free / 1e9
    reason = None if free_gb >= WANTED_GB else f"{free_gb:.0f} GB free, a run with its cache wants {WANTED_GB}"
    return "hardware", "disk", reason, f"{free_gb:.0f} GB free"
