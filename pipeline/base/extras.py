"""Packages that only some formats and runtimes need; each group is an extra of pyproject.toml."""

import platform
from importlib import metadata, util


def why_missing(extra: str, *modules: str) -> str | None:
    """Why something cannot be used that needs these modules, with the command that installs them; or None.

    Where a marker in pyproject.toml keeps one of them from this platform no command would help, and the reason says so.
    """
    absent = [module for module in modules if util.find_spec(module) is None]
    if not absent:
        return None
    excluded = [name for name in _excluded_here(extra) if name.replace("-", "_") in absent]
    if excluded:
        return f"no wheel for this platform ({platform.system()} {platform.machine()}): {', '.join(excluded)}"
    return f"not installed: {', '.join(absent)}; run: pip install -c requirements.lock '.[{extra}]'"


def _excluded_here(extra: str) -> list[str]:
    """Packages of the extra whose marker excludes this machine, as the installed metadata has them."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("decant") or []
    except metadata.PackageNotFoundError:  # run from a folder, without an installation
        return []
    wanted = [one for one in map(Requirement, lines) if one.marker and f'extra == "{extra}"' in str(one.marker)]
    return [one.name for one in wanted if one.marker and not one.marker.evaluate({"extra": extra})]
