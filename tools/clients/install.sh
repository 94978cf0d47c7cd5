#!/usr/bin/env bash
# Installs what bundles for apps are checked with, from the lock beside this file, into the environment.
set -euo pipefail
venv="$(cd "$1" && pwd -P)" # npm takes a link on the way for a package of its own
here="$(cd "$(dirname "$0")" && pwd)"
target="$venv/share/decant/clients"

command -v npm >/dev/null || { echo "npm is not installed; install Node.js 20 or later, then run make clients again" >&2; exit 1; }
mkdir -p "$target"
cp "$here/package.json" "$here/package-lock.json" "$target/"
npm ci --prefix "$target" --ignore-scripts --no-audit --no-fund --loglevel=error
command -v java >/dev/null || echo "no Java here: the code for Android is not compiled (Debian: default-jre-headless)"
