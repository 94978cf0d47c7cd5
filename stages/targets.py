"""What the three stages that run once for each target share."""

import argparse

from pipeline.errors import SettingsError
from pipeline.params import Params
from pipeline.plugins import nearest
from pipeline.records import Artefact, Card


def parse_target(params: Params, description: str | None) -> str:
    """The target named by `--target`.

    Raises:
        SettingsError: params.yaml has no such target.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--target", required=True, help="a name under targets: in params.yaml")
    name = parser.parse_args().target
    if name not in params.targets:
        raise SettingsError(f"no target '{name}' in params.yaml{nearest(name, params.targets)}")
    return name


def artefact_bytes(card: Card, artefact: Artefact) -> int:
    """Size of the artefact alone, a file or a folder of files, without tokenizer and reference."""
    return sum(fact.bytes for file, fact in card.files.items() if file.split("/")[0] == artefact.file)
