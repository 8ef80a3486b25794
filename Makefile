# The two commands to know are `make serve` and `make test`; each installs what it needs first, once.
#   make serve PORT=9000 CONFIG=my.yaml     make test ARGS="-k sse"     DEVICE=cpu|cuda chooses the set that is installed
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DEFAULT_GOAL := help
.PHONY: help setup setup-peers serve test lint style types imports image clean

export DEVICE PYTHON VENV
BIN := $(or $(VENV),.venv)/bin
UP_ARGUMENTS := $(if $(CONFIG),--config "$(CONFIG)") $(if $(PORT),--port "$(PORT)")

help: ## show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## install the pinned packages into .venv (make serve and make test do this too)
	@scripts/setup.sh

setup-peers: setup ## install what `ballast bench peers` measures Ballast against, into .venv-peers and .venv-peers-ray
	@scripts/setup_peers.sh

serve: setup ## start the server in the foreground; Ctrl-C stops all of it
	@exec $(BIN)/ballast up $(UP_ARGUMENTS)

test: setup ## run every test: first the quick ones, then those on a real engine
	@exec $(BIN)/python -m pytest $(ARGS)

lint: style types imports image ## run every static check

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy --strict -p serving -p models -p kernels -p benchmarks

imports: setup
	$(BIN)/lint-imports --no-logo

image: setup
	$(BIN)/hadolint Dockerfile.cuda

clean: ## remove .venv and everything that tools left here
	rm -rf .venv .venv-peers .venv-peers-ray .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage htmlcov dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
