"""Which entry of the quantization plan a target takes."""

import json
from types import ModuleType
from typing import Any

from pipeline.base import plugins
from pipeline.base.workspace import Workspace
from pipeline.quantization.plan import Plan, Plans, Scheme
from pipeline.settings.params import Params
from pipeline.settings.targets import Target


def exporter_of(target: Target) -> tuple[ModuleType, Any]:
    """(exporter, its options) of a target."""
    exporter = plugins.load("format", target.format)
    return exporter, exporter.Params.model_validate_json(json.dumps(target.options))


def schemes_of(params: Params) -> list[Scheme]:
    """What the targets' formats do with activations and weights, each once."""
    found: dict[str, Scheme] = {}
    for target in params.targets.values():
        exporter, options = exporter_of(target)
        scheme = exporter.scheme(target.precision, options)
        if scheme is not None:
            found[scheme.name] = scheme
    return list(found.values())


def plan_of(target: Target, workspace: Workspace) -> Plan:
    """The entry of the quantization plan for a target's scheme; the caller has verified the plan's folder."""
    exporter, options = exporter_of(target)
    plans = Plans.model_validate_json((workspace.quantized / "plan.json").read_text("utf-8"))
    return plans.entry(exporter.scheme(target.precision, options))
