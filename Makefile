# The commands of this repository; `make` alone lists them.
# They need python3 >= 3.11 with venv, git, make, sh and coreutils, and nothing else: no other
# tool may appear in a recipe, except uv, which is used when it is there.

PYTHON ?= python3
PYTHON_MIN = 3, 11
RUN = .venv/bin/
LOCK = uv pip compile -q --universal --python-version 3.11 --generate-hashes \
       --no-header --no-annotate pyproject.toml

.NOTPARALLEL: # two stamps install into one .venv
# the tests start hundreds of processes: not each of them is to compile all that it imports
unexport PYTHONDONTWRITEBYTECODE
.PHONY: help demo up test faults golden check lock bench bench-peers clean

help:
	@echo "make demo    a real workflow of real agents on a fresh bus [REPO=/any/git/repository]"
	@echo "make up      a bus that stays until Ctrl-C"
	@echo "make test    the test suite"
	@echo "make faults  every process killed at every point where it hurts"
	@echo "make golden  keep a history as this build writes it, for its successors to open"
	@echo "make check   style, types, imports and the rules of the tree"
	@echo "make lock    pin the dependencies anew after a change of pyproject.toml (needs uv)"
	@echo "make bench   measure, beside the limits of this machine [ONLY=id,... STRICT=1]"
	@echo "make bench-peers  install the peers that some of its rows are measured beside"
	@echo "make clean   remove what these commands made, except the data of a bus"

demo: .venv/.demo
	@$(RUN)mcp-bus demo $(if $(REPO),--repo "$(REPO)")

up: .venv/.demo
	@exec $(RUN)mcp-bus up

test: .venv/.dev
	@$(RUN)python -m pytest -q -n 4 --dist worksteal --ignore=tests/faults

faults: .venv/.dev
	@$(RUN)python -m pytest -q -n 2 --dist worksteal tests/faults

golden: .venv/.dev
	@$(RUN)python -m tests.golden.make

check: .venv/.dev
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	$(RUN)mypy
	$(RUN)lint-imports
	$(RUN)python -m pytest -q tests/repository

# dev is the largest set: the others take its versions, so that one .venv serves all of them
lock:
	@command -v uv >/dev/null || { echo "make lock needs uv on PATH" >&2; exit 1; }
	$(LOCK) --group dev --extra demo -o requirements/dev.txt
	$(LOCK) --group build --extra demo -c requirements/dev.txt -o requirements/demo.txt
	$(LOCK) --group build --extra server -c requirements/dev.txt -o requirements/server.txt
	$(LOCK) --group peers -c requirements/dev.txt -o requirements/peers.txt

bench: .venv/.dev
	@$(RUN)python -m benchmarks $(if $(ONLY),--only "$(ONLY)") $(if $(filter 1,$(STRICT)),--strict)

# peers have dependencies of their own, which must not decide what ours are
bench-peers: .venv-peers/.peers
	@echo "make bench now measures beside what is in .venv-peers"

clean:
	rm -rf .venv .venv-peers .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	rm -rf build dist benchmarks/results/latest.json

# --- the environment --------------------------------------------------------------------------
# Each stamp says that its venv holds its lock and, in .venv, this checkout; later runs start at
# once.

.venv/.demo: .venv/.made requirements/demo.txt pyproject.toml
	$(call install,requirements/demo.txt,--no-build-isolation -e .)

.venv/.dev: .venv/.made requirements/dev.txt pyproject.toml
	$(call install,requirements/dev.txt,--no-build-isolation -e .)

.venv-peers/.peers: .venv-peers/.made requirements/peers.txt
	$(call install,requirements/peers.txt)

# without pip, which uv does not need and which takes seconds to unpack
.venv/.made .venv-peers/.made:
	@command -v "$(PYTHON)" >/dev/null || \
	  { echo "$(PYTHON) is not on PATH: install Python 3.11 or newer" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < ($(PYTHON_MIN)))' || \
	  { echo "$(PYTHON) is older than 3.11: name a newer one, make PYTHON=python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import venv' 2>/dev/null || \
	  { echo "$(PYTHON) has no venv: install it (Debian, Ubuntu: python3-venv)" >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear --without-pip $(@D)
	@touch $@

# $(1) the lock, $(2) what else, without its dependencies
define install
@echo "installing $(1) into $(@D)"
@python=$(@D)/bin/python; if command -v uv >/dev/null; then \
  uv pip install -q --compile-bytecode --python $$python --require-hashes -r $(1) \
  $(if $(2),&& uv pip install -q --python $$python --no-deps $(2)) ; \
else \
  { $$python -c 'import pip' 2>/dev/null || $$python -m ensurepip >/dev/null 2>&1 || \
    { echo "$(PYTHON) has no ensurepip: install python3-venv (Debian, Ubuntu) or uv" >&2; \
      exit 1; }; } && \
  pip="$$python -m pip install -qq --disable-pip-version-check --no-deps" && \
  $$pip --require-hashes -r $(1) $(if $(2),&& $$pip $(2)) ; \
fi
@touch $@
endef
