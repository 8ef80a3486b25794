#!/usr/bin/env bash
# Makes .venv-peers and .venv-peers-ray hold what `ballast bench peers` measures Ballast against. Run by `make setup-peers`.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
. scripts/pip_settings.sh

install() { # install FOLDER FILE...: exactly what the files pin
    local folder=$1 options=(--require-hashes --only-binary :all:)
    shift
    [ -n "${UV_FIND_LINKS:-}" ] || options+=(--torch-backend cpu)
    [ -e "$folder" ] || "$bin/uv" venv --quiet --python "$bin/python" "$folder"
    "$bin/uv" pip sync --quiet --python "$folder/bin/python" "${options[@]}" "$@"
    printf 'setup: ready: %s\n' "$folder"
}

hand_on_pip_settings
install .venv-peers requirements/peers.txt
install .venv-peers-ray requirements/cpu.txt requirements/peers-ray.txt
