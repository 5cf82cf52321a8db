#!/usr/bin/env bash
# Write cpu.lock (everything `make serve` needs), dev.lock (what tests and checks add) and gpu.lock (a GPU image's) from
# pyproject.toml.
# Versions already locked are kept while they fit; `make lock UPGRADE=1` takes the newest.
set -euo pipefail
cd "$(dirname "$0")/.."

options=(--override requirements/overrides.txt --python-version 3.11 --no-header --no-annotate --quiet
  --find-links "${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}")
[[ -z "${UPGRADE:-}" ]] || options+=(--upgrade)

part=$(mktemp -d)
trap 'rm -rf "$part"' EXIT
cp requirements/cpu.lock "$part/cpu" 2>/dev/null || true
cat requirements/cpu.lock requirements/dev.lock >"$part/all" 2>/dev/null || true

# setuptools builds the editable install, which runs without build isolation.
.venv/bin/uv pip compile pyproject.toml - --extra cpu "${options[@]}" -o "$part/cpu" <<<"setuptools>=77" >/dev/null
.venv/bin/uv pip compile pyproject.toml --extra cpu --extra dev --constraint "$part/cpu" "${options[@]}" -o "$part/all" >/dev/null

# A GPU image differs where vLLM's CUDA build does: PyTorch's own wheels, other kernels, another compiler.
cp requirements/gpu.lock "$part/gpu" 2>/dev/null || true
.venv/bin/uv pip compile pyproject.toml - --extra gpu --extra traces --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
  --no-header --no-annotate --quiet ${UPGRADE:+--upgrade} -o "$part/gpu" <<<"setuptools>=77" >/dev/null

write() { # write NAME TITLE <PACKAGES
  { echo "# $2 Made by \`make lock\`; install with pip's --no-deps."; grep '^[a-z0-9]' | LC_ALL=C sort; } >"$part/$1.new"
  mv "$part/$1.new" "requirements/$1"
}
write cpu.lock "Every package of \`make serve\`, pinned." <"$part/cpu"
LC_ALL=C comm -13 <(LC_ALL=C sort "$part/cpu") <(LC_ALL=C sort "$part/all") | write dev.lock "What tests and checks add to cpu.lock, pinned."
write gpu.lock "Every package of a GPU image, pinned." <"$part/gpu"
