"""What a bundle is made of and under which licences: notices for people, a bill of materials for programs.

The bill is CycloneDX 1.7 as plain JSON: the library that checks it cannot write model cards yet.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from export import bundles
from export.bundles import Part, write_json
from pipeline.base.machine import version_of
from pipeline.base.records import Interval
from pipeline.settings.card import CardSettings

BILL = "sbom.cdx.json"
NOTICES, LICENSES = "NOTICES.md", "licenses"
# Beside the code that ships, since an installed Decant has no folder around it.
LICENSE = Path(bundles.__file__).parent / "clients" / "LICENSE"
# Of identifiers that follow from content alone, so that two builds have the same.
NAMESPACE = uuid.UUID("6f0c7a52-64e4-4f1e-9d5c-6d6563616e74")


def write_notices(folder: Path, card: CardSettings, base_models: Sequence[str], parts: Sequence[Part]) -> None:
    """NOTICES.md, and every licence in full below licenses/."""
    texts = {"Decant": LICENSE.read_text("utf-8"), **{part.name: part.notice for part in parts if part.files}}
    (folder / LICENSES).mkdir()
    for name, text in texts.items():
        (folder / LICENSES / f"{name}.txt").write_text(text.rstrip() + "\n", "utf-8", newline="\n")
    made_of = " and ".join(base_models)
    lines = [
        f"# What {card.name} contains",
        f"- The model's weights: {card.license}, distilled and fine-tuned from {made_of}, whose own terms hold too.",
        f"- Trained on data under {card.data_license}. Texts of it may stand in golden.json.",
        f"- Code of this folder: Apache-2.0, from Decant ([in full]({LICENSES}/Decant.txt)).",
        *(
            f"- {part.name} {part.version}: {part.license} ([in full]({LICENSES}/{part.name}.txt)), "
            f"in {', '.join(part.files)}."
            for part in parts
            if part.files
        ),
        *(f"- Not inside, but needed: {part.name} {part.version}, {part.license}." for part in parts if not part.files),
    ]
    (folder / NOTICES).write_text(lines[0] + "\n\n" + "\n".join(lines[1:]) + "\n", "utf-8", newline="\n")


def write_bill(
    folder: Path,
    card: CardSettings,
    facts: Mapping[str, Any],
    parts: Sequence[Part],
    scores: Mapping[str, tuple[str, Interval]],
    hub_name: str,
) -> None:
    """sbom.cdx.json.

    Args:
        folder: the bundle.
        card: what people call the model, and its terms.
        facts: of the manifest.
        parts: what is inside or has to be there.
        hub_name: what model hubs call the task.
        scores: name of a slice, '' for all of test -> (name of the metric, what the artefact scores).
    """
    digest = facts["sources"]["artefact"]
    model = {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": card.name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [_license(card.license)],
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": hub_name,
                "architectureFamily": "transformer",
                "datasets": [
                    {
                        "type": "dataset",
                        "name": "training data",
                        "contents": {"properties": [{"name": "decant:digest", "value": facts["sources"]["data"]}]},
                    }
                ],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "one label"}],
            },
            "quantitativeAnalysis": {
                "performanceMetrics": [
                    {
                        "type": metric,
                        "value": f"{value.value:.6f}",
                        **({"slice": name} if name else {}),
                        "confidenceInterval": {"lowerBound": f"{value.low:.6f}", "upperBound": f"{value.high:.6f}"},
                    }
                    for name, (metric, value) in scores.items()
                ]
            },
            "considerations": {
                **({"useCases": [card.use]} if card.use else {}),
                **({"technicalLimitations": [card.limits]} if card.limits else {}),
            },
        },
    }
    libraries = [
        {
            "type": "library",
            "bom-ref": part.purl,
            "name": part.name,
            **({"version": part.version} if part.version else {}),
            "licenses": [_license(part.license)],
            "purl": part.purl,
            # what is not inside is still needed
            "scope": "required",
        }
        for part in parts
    ]
    version = version_of("decant")
    write_json(
        folder / BILL,
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.7",
            "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, json.dumps([digest, facts['platform'], card.name]))}",
            "version": 1,
            "metadata": {
                "tools": {"components": [{"type": "application", "name": "decant", "version": version or "0"}]},
                "component": {
                    "type": "application",
                    "bom-ref": "bundle",
                    "name": f"{card.name} for {facts['platform']}",
                },
            },
            "components": [model, *libraries],
            "dependencies": [{"ref": "bundle", "dependsOn": ["model", *(part.purl for part in parts)]}],
        },
    )


def _license(name: str) -> dict[str, Any]:
    """An SPDX id or expression as one, in SPDX's own spelling, anything else as a name."""
    try:
        found = canonicalize_license_expression(name)
    except InvalidLicenseExpression:
        return {"license": {"name": name}}
    if found.startswith("LicenseRef-"):
        return {"license": {"name": found}}
    return {"expression": found} if " " in found else {"license": {"id": found}}
