"""Signs the bundles of the last build as a version that apps can update to.

    decant release 1.2.0 --key private.pem
    decant release 1.2.0 --key private.pem --to /var/www/releases --not-tried ios

Takes no bundle whose verdict is not a pass or whose code was not tried here, unless it is named, and no version below
one that is released. Prints the public key that apps are built with. The folder can be served as it is.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.base import guard
from pipeline.base.workspace import Workspace
from stages.releasing import signing
from stages.releasing.releases import release


def command(
    version: Annotated[str, typer.Argument(help="Three numbers, such as 1.2.0.")],
    key: Annotated[Path, typer.Option(help="The private key that signs, ECDSA P-256 as PEM.")],
    to: Annotated[Path, typer.Option(help="Folder of releases.")] = Path("releases"),
    not_tried: Annotated[
        list[str] | None, typer.Option(help="A platform whose code was not run here, such as ios on Linux.")
    ] = None,
    without: Annotated[list[str] | None, typer.Option(help="A platform to leave out.")] = None,
    folder: Annotated[Path, typer.Option(help="The project.")] = Path(),
) -> None:
    with guard.lock(to / "index.json"):
        made = release(Workspace(folder), version, key, to, not_tried=not_tried or (), without=without or ())
    for one in made:
        print(f"✓ {one.name} {one.version} for {one.platform}: {to / one.path}")
    print(f"public key for apps: {signing.public_key(key)}")
