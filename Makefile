# Everything here can be typed by hand; `make help` lists it.
CONFIG ?= local
WORKERS ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
# On a cluster the nodes need Podman, not the machine that submits; roles in images bring all that they need.
PROFILE = profiles/$(CONFIG).toml
FROZEN := $(filter 2,$(shell grep -sc '^\(runtime\|trainer\) = ".*\.sif"' $(PROFILE)))
SLURM  := $(shell grep -s '^kind = "slurm"' $(PROFILE))
NEEDS  := $(if $(FROZEN),$(VENV)/.login,$(if $(SLURM),$(VENV)/.cluster,$(VENV)/.local podman))
SETS    = $(foreach pair,$(SET),--set '$(pair)')
ROLES   = $(if $(RUNTIME_ONLY),--runtime-only) $(foreach url,$(RUNTIME_URL),--runtime-url '$(url)') \
          $(if $(API_KEY_FILE),--api-key-file '$(API_KEY_FILE)')
.DEFAULT_GOAL := help
.PHONY: images apptainer help setup plan launch resume status logs stop list report sweep check test format clean podman slurm

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(NEEDS) ## install what a launch of CONFIG needs

plan: $(NEEDS) ## does a profile fit where it is to run: make plan CONFIG=dev
	@$(BIN)/skyrl-stack plan $(CONFIG) $(ROLES) $(SETS)

# RUNTIME_ONLY=1 starts no trainer; RUNTIME_URL="http://..." API_KEY_FILE=... starts a trainer alone, for a runtime that runs.
launch: $(NEEDS) ## run a profile: make launch CONFIG=local|dev [RESUME=1] [DRY_RUN=1] [SET="a.b=c d.e=f"]
	@$(BIN)/skyrl-stack launch $(CONFIG) $(if $(RESUME),--resume) $(if $(DRY_RUN),--dry-run) $(ROLES) $(SETS)

resume: | $(BIN)/skyrl-stack ## go on with the newest run: make resume [RUN=directory] [SET=...]
	@$(BIN)/skyrl-stack resume $(RUN) $(ROLES) $(SETS)

status: | $(BIN)/skyrl-stack ## what the newest run is doing: make status [RUN=directory] [WATCH=1]
	@$(BIN)/skyrl-stack status $(RUN) $(if $(WATCH),--watch)

logs: | $(BIN)/skyrl-stack ## follow what both roles print: make logs [RUN=directory]
	@$(BIN)/skyrl-stack logs --follow $(RUN)

stop: | $(BIN)/skyrl-stack ## end the newest run: make stop [RUN=directory]
	@$(BIN)/skyrl-stack stop $(RUN)

list: | $(BIN)/skyrl-stack ## all runs and their states
	@$(BIN)/skyrl-stack list

report: $(VENV)/.local ## table of the newest run: make report [RUN=directory]
	@$(BIN)/skyrl-stack report $(RUN)

sweep: $(VENV)/.local ## remove what a power cut left of earlier runs
	@$(BIN)/skyrl-stack sweep

images: | $(BIN)/skyrl-stack ## build runtime.sif and trainer.sif: make images [NAME=runtime] [FROM=oci-archive:base.tar] [CPU=1]
	@$(BIN)/skyrl-stack images build $(NAME) $(if $(FROM),--from $(FROM)) $(if $(CPU),--cpu)

check: $(VENV)/.dev ## style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

test: check podman slurm apptainer ## check, then all tests, two files at a time: make test [WORKERS=0] [ARGS="-m 'not training'"]
	$(BIN)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

format: $(VENV)/.dev ## rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the Python environment; runs and caches stay
	rm -rf $(VENV)

podman:
	@scripts/setup-podman

slurm:
	@scripts/setup-slurm

apptainer:
	@scripts/setup-apptainer

$(BIN)/skyrl-stack:
	@$(MAKE) --no-print-directory setup

# A stamp per dependency group: the second `make` starts at once.
$(VENV)/.%: uv.lock pyproject.toml scripts/setup-python
	@scripts/setup-python $*
	@touch $@
