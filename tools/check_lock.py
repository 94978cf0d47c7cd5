"""Which locked packages have no wheel for a platform. Needs pip 25.2 or newer, so from an environment of its own:

    python3.11 -m venv /tmp/check && /tmp/check/bin/pip install 'pip>=25.2' packaging
    /tmp/check/bin/python tools/check_lock.py linux-aarch64 macos-arm64 linux-x86_64

Asks pip, for each line of requirements.lock, which versions have a wheel that the platform's Python 3.11 can install.
It reads index pages alone and downloads no package: `pip download` would fetch gigabytes. A line whose marker excludes
the platform is not asked for. "Source only" means that pip builds it: see docs/machines.md for what such a build lacks.
Exit status 1 when a package has neither wheel nor source: it needs a marker, in
pyproject.toml where Decant names it and in requirements.lock.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"
GLIBC = [17, 24, 26, 27, 28, 31, 34, 35]


def linux(machine: str) -> list[str]:
    """Every tag that a distribution of today (glibc 2.35) accepts."""
    return [f"manylinux2014_{machine}", *(f"manylinux_2_{minor}_{machine}" for minor in GLIBC), f"linux_{machine}"]


PLATFORMS = {
    "linux-x86_64": ("linux", "Linux", "x86_64", linux("x86_64")),
    "linux-aarch64": ("linux", "Linux", "aarch64", linux("aarch64")),
    "macos-arm64": ("darwin", "Darwin", "arm64", [f"macosx_{major}_0_{m}" for major in range(11, 16)
                                                  for m in ("arm64", "universal2")]),
}  # fmt: skip


def find_missing(platform: str, requirements: list[Requirement]) -> list[str]:
    """The lines that have no wheel there, each with what there is instead."""
    with ThreadPoolExecutor(3) as pool:
        found = pool.map(lambda requirement: _judge(requirement, PLATFORMS[platform][3]), requirements)
        return [line for line in found if line]


def applies(requirement: Requirement, platform: str) -> bool:
    """Whether the line's marker includes the platform."""
    sys_platform, system, machine, _ = PLATFORMS[platform]
    there = {"sys_platform": sys_platform, "platform_system": system, "platform_machine": machine}
    return requirement.marker is None or requirement.marker.evaluate(there)


def _judge(requirement: Requirement, tags: list[str]) -> str | None:
    platforms = [f"--platform={tag}" for tag in tags]
    if _has(requirement, "--only-binary=:all:", "--implementation=cp", *platforms):
        return None
    source = _has(requirement, f"--no-binary={requirement.name}")
    return f"{requirement.name} {requirement.specifier}: {'source only, pip builds it' if source else 'nothing'}"


def _has(requirement: Requirement, *options: str) -> bool:
    asked = ["index", "versions", requirement.name, "--pre", "--json", "--python-version=3.11", *options]
    answer = subprocess.run([sys.executable, "-m", "pip", *asked], capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return any(requirement.specifier.contains(version, True) for version in json.loads(answer.stdout)["versions"])
    if "No matching distribution" in answer.stderr:
        return False
    raise SystemExit(f"pip {' '.join(asked)} failed:\n{answer.stderr}")


def main(platforms: list[str]) -> int:
    if Version(metadata.version("pip")) < Version("25.2"):  # older ones overlook --only-binary here
        raise SystemExit(
            f"found pip {metadata.version('pip')}, expected 25.2 or newer; see the first lines of this file"
        )
    if not platforms or set(platforms) - set(PLATFORMS):
        raise SystemExit(f"usage: python tools/check_lock.py PLATFORM...; platforms: {', '.join(PLATFORMS)}")
    lines = [line.partition("#")[0].strip() for line in LOCK.read_text("utf-8").splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    status = 0
    for platform in platforms:
        wanted = [requirement for requirement in requirements if applies(requirement, platform)]
        missing = find_missing(platform, wanted)
        status |= any("nothing" in line for line in missing)
        print(
            f"{platform}: {len(wanted)} lines apply, {len(missing)} without a wheel", *missing, sep="\n  ", flush=True
        )
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
