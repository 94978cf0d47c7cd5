"""Facts about this machine that a timing needs beside it. Only what stays the same from minute to minute: a changed
file re-runs every benchmark. What changes (load, clock, steal) is taken at the time of measuring, by `conditions`."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

# What a timing or an answer depends on.
PACKAGES = ("torch", "transformers", "onnxscript", "onnx", "onnxruntime", "coremltools", "numpy")
# Instruction sets that decide which kernels run.
ISA_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "asimddp", "i8mm", "bf16", "sve")


def facts() -> dict[str, Any]:
    """CPU, instruction sets, cores, memory, operating system and the versions of what runs models."""
    info = _cpu_info()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "os": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in PACKAGES},
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def conditions() -> dict[str, Any]:
    """What the machine is doing right now: load, steal, clock and the cores this process may use."""
    frequency = psutil.cpu_freq()
    times = psutil.cpu_times()
    return {
        "load_1min": round(os.getloadavg()[0], 2),
        "steal_seconds_since_boot": round(getattr(times, "steal", 0.0), 1),
        "clock_mhz": round(frequency.current) if frequency else None,
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }


def int8_kernels(facts: dict[str, Any]) -> tuple[str, str]:
    """What this CPU multiplies 8-bit numbers with, and a sentence on what that means for int8 files."""
    isa, arm = set(facts["isa"]), facts["architecture"].lower() in ("arm64", "aarch64")
    if arm and facts["os"].startswith("Darwin"):  # every Apple Silicon has them, and /proc/cpuinfo is not there to ask
        return "Arm dot products", _ARM
    if arm and facts["os"].startswith("Linux"):
        return ("Arm dot products" if isa & {"asimddp", "i8mm"} else "Arm without dot products"), _ARM
    if isa & {"avx512_vnni", "avx_vnni"}:
        return "VNNI", "products are summed in 32 bits, and int8 pays most"
    if isa & {"avx512f", "avx2"}:
        return ("AVX-512 without VNNI" if "avx512f" in isa else "AVX2"), _PAIRS
    return "unknown", "this system does not say what its CPU can do; only a measurement tells whether int8 pays"


_ARM = "products are never added in pairs of 16 bits, so nothing saturates"
_PAIRS = (
    "products are added in pairs in 16 bits, which saturates unless a file's weights are pair-safe (Decant's are, and "
    "the check 'kernels' proves it), and int8 gains less: about 1.7 times fp32 in onnxruntime, while OpenVINO's int8 "
    "can be slower than its fp32"
)


def version_of(package: str) -> str | None:
    """The installed version, without a build's local part; None when the package is absent."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _cpu_info() -> dict[str, str]:
    if sys.platform != "linux":
        return {}
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    pairs = (line.partition(":") for line in lines)
    info: dict[str, str] = {}
    for key, _, value in pairs:
        info.setdefault(key.strip(), value.strip())
    return info


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text("utf-8").strip()
    except OSError:
        return None
