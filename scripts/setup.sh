#!/usr/bin/env bash
# Makes .venv (or VENV) hold exactly what requirements/ pins, plus this checkout. Does nothing when nothing changed.
#   DEVICE=cpu|cuda   which set; without it, cuda where nvidia-smi finds a GPU, else cpu
#   VENV=...          another folder than .venv: a machine whose pools are of two devices needs both sets
#   PYTHON=...        which interpreter; without it, python3.11, python3.12 or a python3 of one of these versions
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
. scripts/pip_settings.sh

say() { printf 'setup: %s\n' "$*"; }

fail() { # fail LINE...: what is wrong and how to mend it
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

choose_device() {
    local device=${DEVICE:-}
    if [ -z "$device" ]; then
        device=cpu
        if [[ $(nvidia-smi --list-gpus 2> /dev/null || true) == GPU* ]]; then device=cuda; fi
    fi
    case $device in
        cpu | cuda) printf '%s' "$device" ;;
        *) fail "DEVICE=$device: choose cpu or cuda" ;;
    esac
}

is_supported() { # is_supported INTERPRETER: runs, and is a version that Ballast supports
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' > /dev/null 2>&1
}

choose_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if is_supported "$candidate"; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "Python 3.11 or 3.12 is needed; found: $("${PYTHON:-python3}" --version 2>&1 || true)" \
        "Debian 12:    sudo apt install python3 python3-venv python3-dev" \
        "Ubuntu 24.04: sudo apt install python3 python3-venv python3-dev" \
        "elsewhere:    install Python 3.11, then make setup PYTHON=/its/bin/python3.11"
}

check_compiler() { # vLLM and Triton compile small programs when an engine starts
    command -v gcc > /dev/null || fail "gcc is missing: sudo apt install gcc g++"
    local missing=()
    command -v g++ > /dev/null || missing+=(g++)
    "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' || missing+=(python3-dev)
    if [ ${#missing[@]} -gt 0 ]; then
        say "note: without ${missing[*]} an engine cannot compile a model (sudo apt install ${missing[*]})"
    fi
}

# Any uv that knows --torch-backend will do; a machine without one gets the pinned uv, its hash checked.
choose_uv() {
    local candidate
    for candidate in uv "$venv/bin/uv"; do
        if [[ $("$candidate" pip sync --help 2> /dev/null || true) == *--torch-backend* ]]; then
            command -v "$candidate"
            return
        fi
    done
}

remove_unfit_environment() { # remove_unfit_environment DEVICE
    local why="" held=cpu folder=$PWD
    [ -e "$venv" ] || return 0
    is_supported "$venv/bin/python" || why="its Python no longer runs or is not 3.11 or 3.12"
    # Switching in place would keep the other set's torch: the same version to pip, another build.
    if [ -e "$stamp" ]; then read -r held _ folder < "$stamp"; fi
    [ "$held" = "$1" ] || why="it holds the $held set"
    [ "$folder" = "$PWD" ] || why="the checkout has moved, and its scripts name the old folder"
    if [ -n "$why" ]; then
        say "removing $venv: $why"
        rm -rf "$venv"
    fi
}

create_environment() { # create_environment PYTHON: sets uv
    uv=$(choose_uv)
    if [ -z "$uv" ]; then
        "$1" -c 'import ensurepip, venv' 2> /dev/null || fail "Python's venv module is missing: sudo apt install python3-venv"
        say "getting uv, the installer"
        "$1" -m venv "$venv"
        sed -n '/^uv==/,/# via/p' requirements/dev.txt > "$venv/uv.txt"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --requirement "$venv/uv.txt"
        uv=$venv/bin/uv
    elif [ ! -e "$venv" ]; then
        "$uv" venv --quiet --python "$(command -v "$1")" "$venv"
    fi
}

install() { # install DEVICE
    local options=(--python "$venv/bin/python" --require-hashes --only-binary :all:)
    if [ "$1" = cpu ] && [ -z "${UV_FIND_LINKS:-}" ]; then options+=(--torch-backend cpu); fi
    if [ "$1" = cuda ]; then unset UV_FIND_LINKS; fi # a folder with the CPU torch would be preferred
    # Through a pipe uv shows plain lines instead of bars; its list of every package is left out.
    "$uv" pip sync "${options[@]}" "requirements/$1.txt" requirements/dev.txt requirements/bench.txt 2>&1 | sed -u '/^ [-+~] /d; s/^/setup:   /'
    "$uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
}

device=$(choose_device)
python=$(choose_python)
stamp=$venv/ballast-setup
want="$device $(cat "requirements/$device.txt" requirements/dev.txt requirements/bench.txt pyproject.toml scripts/setup.sh | sha256sum | cut -c1-64) $PWD"
if [ "$(cat "$stamp" 2> /dev/null || true)" = "$want" ] && is_supported "$venv/bin/python"; then
    say "$venv is up to date ($device)"
    exit
fi

case $device in
    cpu) say "[1/3] CPU set (DEVICE=cuda chooses the other) with $("$python" --version)" ;;
    cuda) say "[1/3] CUDA set (DEVICE=cpu chooses the other) with $("$python" --version)" ;;
esac
check_compiler "$python"
remove_unfit_environment "$device"
create_environment "$python"
printf '%s incomplete %s\n' "$device" "$PWD" > "$stamp"
hand_on_pip_settings
say "[2/3] installing $(grep -c '==' "requirements/$device.txt") pinned packages; the first time downloads them"
install "$device"
printf '%s\n' "$want" > "$stamp"
say "[3/3] ready after $SECONDS s: $venv"
