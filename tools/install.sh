#!/usr/bin/env bash
# Makes the environment from the lock: tools/install.sh PYTHON VENV TORCH_INDEX
#
# On a machine without an NVIDIA GPU, PyTorch comes from its index of CPU builds, since the plain Linux wheel pulls in
# several GB of CUDA packages. An index that cannot be reached makes pip retry for minutes, so it is probed once, briefly;
# without it the plain install is used.
set -euo pipefail
python=$1 venv=$2 torch_index=$3
log="$venv/install.log"

if ! command -v "$python" >/dev/null; then
  python=python3
fi
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))'; then
  echo "error: found $("$python" --version 2>&1), expected Python 3.11 or 3.12; run 'make PYTHON=/path/to/python3.11 ...'" >&2
  exit 4
fi
echo "making $venv with $("$python" --version) (a few minutes the first time; log in $log)"
started=$SECONDS
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"

extra=()
if [ "$(uname -s)" = Linux ] && ! nvidia-smi >/dev/null 2>&1 && [ -n "$torch_index" ]; then
  if curl --silent --fail --location --max-time 5 --output /dev/null "$torch_index/torch/"; then
    extra=(--extra-index-url "$torch_index")
  else
    echo "the index of CPU builds does not answer; installing PyTorch from where pip looks by default"
  fi
fi

step() { # step "what is done" command...
  echo "  $1"
  shift
  if ! "$@" >>"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "error: '$*' failed; the whole log is in $log" >&2
    exit 4
  fi
}
torch=$(grep -E '^torch==' requirements.lock | cut -d' ' -f1)
pip=("$venv/bin/python" -m pip --disable-pip-version-check)
# torch alone first: with it in place, nothing else can pull another build in.
step "PyTorch ($torch)" "${pip[@]}" install ${extra[@]+"${extra[@]}"} "$torch" # macOS has bash 3.2, where an empty array is unbound
step "the other packages of the lock" "${pip[@]}" install -r requirements.lock
step "Decant itself" "${pip[@]}" install --no-deps --no-build-isolation -e .
echo "environment ready after $((SECONDS - started)) s"
