#!/usr/bin/env bash
# Installs what signs bundles, from the lock beside this file, in an environment of its own: it needs newer versions of
# packages than a converter of Decant's admits (sigstore-models: typing-extensions 4.14; xdsl 0.28: below 4.13).
set -euo pipefail
venv="$1"
here="$(cd "$(dirname "$0")" && pwd)"
target="$venv/share/decant/signing"

[ -x "$target/bin/python" ] || "$venv/bin/python" -m venv "$target"
"$target/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps --requirement "$here/requirements.lock"
