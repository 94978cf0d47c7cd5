"""Packages that only some formats and runtimes need; each group is an extra of pyproject.toml."""

from importlib import util


def why_missing(extra: str, *modules: str) -> str | None:
    """Why something cannot be used that needs these modules, with the command that installs them; or None."""
    absent = [module for module in modules if util.find_spec(module) is None]
    if not absent:
        return None
    return f"not installed: {', '.join(absent)}; run: pip install -c requirements.lock '.[{extra}]'"
