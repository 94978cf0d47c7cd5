# Two commands matter: `make demo` and `make test`. Both make .venv from the lock first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# PyTorch's own index of CPU builds, for machines without a GPU. `make demo TORCH_INDEX=` skips it,
# `make demo TORCH_INDEX=https://...` names another.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

# Files whose tests open 8-bit artefacts themselves: what those answer must not depend on the CPU's instructions.
EIGHT_BIT := $(addprefix tests/test_,to_onnx.py to_ort.py to_openvino.py to_litert.py to_executorch.py distillation_token.py)

.PHONY: demo mac browser clients signing test test-all test-without-vnni lint types layers lock schema clean help
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

demo: $(READY) ## build everything on the bundled data and print the verdict
	@$(BIN)/python -m stages.commands.demo

mac: $(READY) ## on a Mac: the Core ML targets in Core ML itself, into the report that is here
	@$(BIN)/python -m stages.commands.mac

browser: $(READY) ## what the runtime 'browser' needs: onnxruntime-web, and Chromium where it is missing
	@bash tools/browser/install.sh "$(VENV)"

clients: $(READY) ## what bundles for apps are checked with: Kotlin's compiler, JavaScript's tokenizers (needs npm, Java)
	@bash tools/clients/install.sh "$(VENV)"

signing: $(READY) ## what signs bundles, in an environment of its own
	@bash tools/signing/install.sh "$(VENV)"

test: $(READY) ## the fast test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow"

test-all: $(READY) ## every test
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

test-without-vnni: $(READY) ## tests of formats, their 8-bit files executed on an emulated CPU without VNNI (needs qemu-user)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --without-vnni $(EIGHT_BIT)

lint: $(READY) ## ruff: rules and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY) ## mypy
	@$(BIN)/mypy

layers: $(READY) ## import-linter: stages -> {export, eval} -> pipeline
	@$(BIN)/lint-imports --no-cache

schema: $(READY) ## params.schema.json anew
	@$(BIN)/decant schema

lock: $(READY) ## requirements.lock anew, without index addresses or local version parts
	$(BIN)/pip-compile -q --upgrade --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --strip-extras \
	  --no-header --annotation-style=line --all-extras -o requirements.lock pyproject.toml

clean: ## remove everything that was made, the environment included
	rm -rf $(VENV) artifacts workspaces *.egg-info .pytest_cache .mypy_cache .ruff_cache

# The environment is made again when the lock or the project's metadata change. A half-made one has no marker file.
$(READY): requirements.lock pyproject.toml tools/install.sh
	@bash tools/install.sh "$(PYTHON)" "$(VENV)" "$(TORCH_INDEX)"
	@touch $(READY)
