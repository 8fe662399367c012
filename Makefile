# Set-up and the commands of every day. `make demo` and `make test` work on a fresh machine with Python 3.11 or 3.12.
#
#   TORCH=cpu      no GPU needed (default); TORCH=cuda adds FlashAttention for Hopper and newer GPUs
#   TORCH_INDEX=   the package index that has the PyTorch build you want, if it is not pip's own

PYTHON ?= python3
TORCH ?= cpu
TORCH_VERSION ?= 2.13.0
TORCH_INDEX ?=
VENV ?= .venv
BIN := $(VENV)/bin
comma := ,
OUTPUT ?= demo
STACK ?= stack

.PHONY: help demo stack test lint clean

help:
	@echo "make demo   eight videos on the embedded model, in $(OUTPUT)/ (OUTPUT=DIR)"
	@echo "make stack  Prefect server, S3 and a worker on this machine, until Ctrl-C; data in $(STACK)/ (STACK=DIR)"
	@echo "make test   the whole test suite"
	@echo "make lint   ruff and mypy"
	@echo "make clean  remove the virtual environment and the demo"

EXTRAS := $(if $(filter cuda,$(TORCH)),dev$(comma)flash-attn,dev)

# The stamps' names carry what was installed, so that another build of PyTorch, or another TORCH, installs anew.
PYTORCH := $(VENV)/.torch-$(TORCH_VERSION)$(subst /,_,$(subst :,_,$(TORCH_INDEX)))
INSTALLED := $(VENV)/.installed-$(TORCH)

$(PYTORCH):
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(TORCH_VERSION)
	@touch $@

$(INSTALLED): $(PYTORCH) pyproject.toml infra/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint infra/constraints.txt --editable '.[$(EXTRAS)]'
	$(BIN)/python -m compileall -q fastvideo flows tasks  # pip does not where it only links: jobs start half a second sooner
	@rm -f $(VENV)/.installed-*
	@touch $@

demo: $(INSTALLED)
	$(BIN)/fastvideo dataset run --config infra/demo.yaml --output $(OUTPUT)

stack: $(INSTALLED)
	$(BIN)/python -m flows.stack --home $(STACK)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OUTPUT)
