# make chat    a chat with the embedded demo model (creates the environment on first use)
# make test    everything: format, lint, types, tests
# make check   format, lint and types only
# make fuzz    hostile files by the ten thousand, for half an hour or so
# make bench   this program against mlx-lm in one run: with a GPU that has room for it the full
#              shape of 8x7B, of random weights, else the demo; BENCH="..." asks for something else
# make quality what quantizing costs: every effort and mlx-lm in 4, 3 and 2 bits, minutes
# make routing which experts the demo's router chooses: policies of what to keep, and foresight
# make bench-convert SOURCE=folder    the same for converting; a 16-bit checkpoint is needed

VENV := .venv
BIN := $(VENV)/bin
# The first of these that is new enough; PYTHON=... chooses another.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.14,$(shell $(p) -c 'import sys; sys.version_info < (3, 11) and sys.exit(1); print("$(p)")' 2>/dev/null)))

.PHONY: chat test check fuzz bench quality routing bench-convert format clean

chat: $(VENV)/ready
	@$(BIN)/mixtral-mlx chat demo

test: check
	@$(BIN)/python -m pytest -n 2 --dist loadfile

check: $(VENV)/ready-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy

fuzz: $(VENV)/ready-dev
	@$(BIN)/python -m pytest -m fuzz --hypothesis-profile=long -n 2

bench: $(VENV)/ready
	@$(BIN)/mixtral-mlx bench $(or $(BENCH),$$($(BIN)/python -m mlx_mixtral.lab.choice))

quality: $(VENV)/ready
	@$(BIN)/python examples/demo_model/quality_table.py

routing: $(VENV)/ready
	@$(BIN)/python examples/streaming/policies.py

bench-convert: $(VENV)/ready
	@$(BIN)/python -m convert.bench $(SOURCE)

format: $(VENV)/ready-dev
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Installing is quiet and speaks on standard error, so that `echo hello | make chat` prints
# the answer alone.
$(VENV)/ready: pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo 'error: this needs Python 3.11 or newer; install it (brew install python@3.13, or' \
	  'python.org), or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3' >&2; exit 1; }
	@echo 'Installing into $(VENV) (once, about a minute) ...' >&2
	@$(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . >&2
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' >&2
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
