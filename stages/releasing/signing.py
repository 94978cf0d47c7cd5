"""Signatures of bundles as OpenSSF Model Signing v1.0 has them: ECDSA P-256 over a list of every file's SHA-256.

The package model-signing writes and checks them, in an environment of its own (`make signing`).
"""

import base64
import subprocess
import sys
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.base.errors import EnvironmentFault, IntegrityError, SettingsError
from pipeline.formats.bundles import SIGNATURE

PYTHON = Path(sys.prefix) / "share" / "decant" / "signing" / "bin" / "python"
TIMEOUT_S = 600
UNREADABLE = (OSError, ValueError, TypeError, UnsupportedAlgorithm)
NEW_KEY = "openssl ecparam -genkey -name prime256v1 -noout -out KEY.pem; openssl ec -in KEY.pem -pubout -out PUBLIC.pem"


def why_unusable() -> str | None:
    """The reason why nothing can be signed or checked here, or None."""
    return None if PYTHON.is_file() else "not installed: model-signing; run: make signing"


def public_key(private: Path) -> str:
    """What an app is built with: the public half of a key in a PEM file, base64 of its SubjectPublicKeyInfo.

    Raises:
        SettingsError: it cannot be read, needs a password, or is another kind of key.
    """
    try:
        key = serialization.load_pem_private_key(private.read_bytes(), None)
    except UNREADABLE as error:
        raise SettingsError(f"{private}: no private key that can be read ({error}); to make one: {NEW_KEY}") from error
    _expect_p256(private, key)
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    assert isinstance(key, ec.EllipticCurvePrivateKey), "as was asked"
    return base64.b64encode(key.public_key().public_bytes(serialization.Encoding.DER, spki)).decode()


def _expect_p256(path: Path, key: object) -> None:
    kinds = (ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey)
    if not isinstance(key, kinds) or not isinstance(key.curve, ec.SECP256R1):
        raise SettingsError(f"{path}: found another kind of key, expected ECDSA P-256; to make one: {NEW_KEY}")


def sign(folder: Path, private: Path) -> None:
    """Writes the signature of every file of a folder into it."""
    done = _run("sign", folder, "--private_key", private)
    if done.returncode != 0:
        raise EnvironmentFault(f"{folder}: cannot be signed: {_last_line(done)}")


def check(folder: Path, public: Path) -> None:
    """Checks the signature of a folder, and that it covers every file.

    Raises:
        SettingsError: the key cannot be read.
        IntegrityError: there is none, another key made it, or a file is not as it was signed.
    """
    try:
        key = serialization.load_pem_public_key(public.read_bytes())
    except UNREADABLE as error:
        raise SettingsError(
            f"{public}: no public key that can be read ({error}); expected PEM, see docs/ship.md"
        ) from error
    _expect_p256(public, key)
    if not (folder / SIGNATURE).is_file():
        raise IntegrityError(f"{folder}: no {SIGNATURE}, so nobody signed it; ask for a release, or leave --key out")
    done = _run("verify", folder, "--public_key", public)
    if done.returncode != 0:
        raise IntegrityError(f"{folder / SIGNATURE}: not verified with {public}: {_last_line(done)}")


def _run(verb: str, folder: Path, *key: str | Path) -> subprocess.CompletedProcess[str]:
    if (reason := why_unusable()) is not None:
        raise EnvironmentFault(reason)
    words = (verb, "key", "--no-ignore-git-paths", "--signature", folder / SIGNATURE, *key, folder)
    command = [str(PYTHON), "-I", "-m", "model_signing", *map(str, words)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise EnvironmentFault(f"{folder}: model-signing was not done within {TIMEOUT_S} s; try again") from None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"exit status {done.returncode}"
