"""Checks a bundle that came from somewhere: files, signature, golden vectors.

    decant verify artifacts/bundles/web.zip
    decant verify 1.2.0/web --key public.pem

Believes nothing that the bundle says and runs none of its code. Exit status 0 when all was checked, 3 when something
could not be (a signature without --key, a runtime that is not installed), 4 when the bundle is not as it should be.
"""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pipeline.base.errors import IntegrityError, UnusableRuntimeError
from pipeline.formats.bundles import SIGNATURE, check_files, check_kinds, read_manifest, unpack
from stages.releasing import signing
from stages.releasing.checks import check_bill, replay


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder or its zip.")],
    key: Annotated[Path | None, typer.Option(help="The public key that must have signed it, as PEM.")] = None,
) -> int:
    if not bundle.exists():
        raise IntegrityError(f"{bundle}: no such folder or file")
    with tempfile.TemporaryDirectory() as scratch:
        folder = bundle
        if bundle.is_file():
            folder = Path(scratch) / "bundle"
            unpack(bundle, folder)
        return verify(folder, key)


def verify(folder: Path, key: Path | None) -> int:
    """Prints what was checked and what could not be.

    Returns:
        The exit status.

    Raises:
        IntegrityError: the first thing that is not as it should be.
    """
    missing = []
    if key is not None:
        check_kinds(folder)  # before another program reads it
        signing.check(folder, key)
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    size = sum(file.bytes for file in manifest.files.values())
    print(f"✓ {manifest.name} {manifest.version} for {manifest.platform}: {len(manifest.files)} files, {size:,} bytes")
    if key is not None:
        print(f"✓ signed with the key of {key}")
    elif (folder / SIGNATURE).is_file():
        missing.append("the signature: name the public key with --key")
    if (reason := check_bill(folder, manifest)) is None:
        print("✓ the bill of materials follows CycloneDX 1.7")
    else:
        missing.append(f"the bill of materials: {reason}")
    try:
        rows, runtime = replay(folder, manifest)
        print(f"✓ {rows} golden vectors answered as they should be, in {runtime}")
    except UnusableRuntimeError as error:
        missing.append(f"the golden vectors: {error}")
    for one in missing:
        print(f"○ not checked: {one}")
    print(f"its verdict: {manifest.verdict}, of its target '{manifest.target}': {manifest.target_verdict}")
    return 3 if missing else 0
