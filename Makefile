# Everything here can be typed by hand; `make help` lists it.
CONFIG ?= local
VENV   := .venv
BIN    := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help setup launch report sweep check test format clean podman

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.local podman ## install what a local launch needs

launch: $(VENV)/.local podman ## run a profile: make launch CONFIG=local [RESUME=1] [SET="a.b=c d.e=f"]
	@$(BIN)/skyrl-stack launch $(CONFIG) $(if $(RESUME),--resume) $(foreach pair,$(SET),--set '$(pair)')

report: $(VENV)/.local ## table of the newest run: make report [RUN=directory]
	@$(BIN)/skyrl-stack report $(RUN)

sweep: $(VENV)/.local ## remove what a power cut left of earlier runs
	@$(BIN)/skyrl-stack sweep

check: $(VENV)/.dev ## style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: check podman ## check, then all tests: make test [ARGS="-m 'not training'"]
	$(BIN)/pytest $(ARGS)

format: $(VENV)/.dev ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the Python environment; runs and caches stay
	rm -rf $(VENV)

podman:
	@scripts/setup-podman

# A stamp per dependency group: the second `make` starts at once.
$(VENV)/.%: uv.lock pyproject.toml scripts/setup-python
	@scripts/setup-python $*
	@touch $@
