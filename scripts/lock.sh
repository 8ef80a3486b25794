#!/usr/bin/env bash
# Resolves pyproject.toml into requirements/{cuda,cpu,dev,bench}.txt, and requirements/peers*.in into files beside them:
# exact versions with hashes, for Linux on x86-64.
# Run it after a change to the dependencies, or with --upgrade to move to newer versions.
set -euo pipefail
cd "$(dirname "$0")/.."

# Resolved for 3.11, our lowest Python; the same pins install on 3.12. Wheels only: nothing is compiled or run while installing.
# No index and no folder of one machine is written into the files.
lock() { # lock NAME ARGUMENT...: resolve into requirements/NAME.txt
    local out=requirements/$1.txt
    shift
    printf 'locking %s\n' "$out"
    uv pip compile "$@" "${upgrade[@]}" --output-file "$out" \
        --python-version 3.11 --python-platform x86_64-manylinux_2_31 --only-binary :all: \
        --overrides requirements/overrides.txt --generate-hashes --annotation-style line \
        --no-emit-index-url --no-emit-find-links --no-header --quiet
    printf '# Written by scripts/lock.sh: change pyproject.toml or the .in file and run it again.\n' | cat - "$out" > "$out.tmp"
    mv "$out.tmp" "$out"
}

upgrade=("$@")
# uv does not read pip's variable for a folder of wheels. Without one, the CPU build of torch comes from PyTorch's own index.
wheels=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
cpu_torch=(--torch-backend cpu)
[ -z "$wheels" ] || cpu_torch=(--find-links "$wheels")

# Each set is held to the versions of the one before, so that what passes on a CPU is what runs on a GPU machine.
lock cuda pyproject.toml --extra cuda
lock cpu pyproject.toml --extra cpu --constraints requirements/cuda.txt "${cpu_torch[@]}"
lock dev --group dev --constraints requirements/cuda.txt --constraints requirements/cpu.txt
lock bench pyproject.toml --extra bench --constraints requirements/cuda.txt --constraints requirements/cpu.txt --constraints requirements/dev.txt

# Peers are measured as they come: their versions are held to nobody's, but Ray's and vLLM's to ours.
lock peers requirements/peers.in
lock peers-ray requirements/peers-ray.in --constraints requirements/cpu.txt
