"""What the three stages that run once for each target share."""

import argparse

from pydantic import ValidationError

from pipeline.base.errors import IntegrityError, SettingsError, UnusableRuntimeError
from pipeline.base.plugins import nearest
from pipeline.base.records import Artefact, Card, Measurement
from pipeline.settings.params import Params
from pipeline.settings.targets import Target


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


def artefact_of(card: Card) -> Artefact:
    """What a card says of its artefact.

    Raises:
        UnusableRuntimeError: it could not be written on the machine that converted; the message is the reason.
        IntegrityError: the card names a file that is not one of the folder's, or says something else.
    """
    if card.facts["artefact"] is None:
        raise UnusableRuntimeError(card.facts["not_made"])
    try:
        artefact = Artefact.model_validate(card.facts["artefact"])
    except ValidationError as error:
        raise IntegrityError(
            f"a card's artefact: {error.errors()[0]['msg']}; run `dvc repro` to export it again"
        ) from error
    if not any(name.split("/")[0] == artefact.file for name in card.files):
        raise IntegrityError(f"a card's artefact is '{artefact.file}', which is no file of its folder; run `dvc repro`")
    return artefact


def artefact_bytes(card: Card, artefact: Artefact) -> int:
    """Size of the artefact alone, a file or a folder of files, without tokenizer and reference."""
    return sum(fact.bytes for file, fact in card.files.items() if file.split("/")[0] == artefact.file)


def no_measurement(name: str, target: Target, reason: str) -> Measurement:
    """The record of a target that was not timed."""
    return Measurement(
        target=name,
        runtime=target.runtime,
        device=target.device,
        artefact_digest="",
        not_measured=reason,
        size_bytes=0,
    )
