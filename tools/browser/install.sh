#!/usr/bin/env bash
# Installs what the runtime 'browser' needs: onnxruntime-web into the environment, from the lock beside this file, and
# Chromium from Debian's or Ubuntu's packages where no browser is at hand and this user may install one.
set -euo pipefail
venv="$(cd "$1" && pwd -P)" # npm takes a link on the way for a package of its own
here="$(cd "$(dirname "$0")" && pwd)"
target="$venv/share/decant/browser"

command -v npm >/dev/null || { echo "npm is not installed; install Node.js 20 or later, then run make browser again" >&2; exit 1; }
mkdir -p "$target"
cp "$here/package.json" "$here/package-lock.json" "$target/"
npm ci --prefix "$target" --ignore-scripts --no-audit --no-fund --loglevel=error

for name in "${CHROME:-}" chromium chromium-browser google-chrome google-chrome-stable; do
  if [ -n "$name" ] && command -v "$name" >/dev/null; then
    echo "browser: $(command -v "$name")"
    exit 0
  fi
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
else
  echo "no Chromium found: install it, or name a browser in CHROME" >&2
  exit 1
fi
