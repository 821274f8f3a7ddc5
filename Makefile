# Two commands: `make demo` and `make test`. Everything they need is installed into .venv on first use.
DATA ?= builtin
SOURCE ?=
NIGHTS ?= 4
DEMO_HOME ?= demo/$(DATA)
PYTHON ?= $(shell command -v python3.11 || command -v python3)
UP ?=
BIN := .venv/bin

.PHONY: demo up down test soak lint docs clean

demo: .venv/installed
	$(BIN)/mmrec demo --data $(DATA) $(if $(SOURCE),--source $(SOURCE)) --home $(DEMO_HOME) --nights $(NIGHTS)

# Airflow, MLflow and a page of links over the demo's home, on loopback; `make down` ends just these
up: .venv/installed
	$(BIN)/python infra/local/stack.py up --home $(DEMO_HOME) $(UP)

down: .venv/installed
	$(BIN)/python infra/local/stack.py down --home $(DEMO_HOME)

# a file's tests stay in one process, because they share what took long to make; in the order of their names, so that
# what is left for the end is short
TWO := --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: lint
	$(BIN)/python -m pytest --engine spark $(TWO)
	$(BIN)/python -m pytest $(TWO)

# what takes hours: tests that `make test` leaves out; nights under a real Airflow on SQLite and on PostgreSQL, with
# kills; figures to docs/evidence
soak: .venv/installed
	$(BIN)/python -m pytest --deep -m deep --engine spark
	$(BIN)/python -m pytest --deep -m deep
	$(BIN)/python -m tests.soak.nights --db sqlite --out docs/evidence/nights-sqlite.json
	$(BIN)/python -m tests.soak.nights --db postgres --out docs/evidence/nights-postgres.json
	$(BIN)/python -m tests.soak.kills --kills 200 --seed 1 --out docs/evidence/kills.json
	$(BIN)/python -m tests.soak.simulator --steps 520000 --seed 1 --out docs/evidence/simulator-1.json
	$(BIN)/python -m tests.soak.simulator --steps 520000 --seed 600 --out docs/evidence/simulator-600.json

lint: .venv/installed
	$(BIN)/ruff check mmrec dags jobs infra tests
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m mmrec.docs --check

docs: .venv/installed
	$(BIN)/python -m mmrec.docs

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "mmrec needs Python 3.11: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements.txt
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps --editable .
	touch $@

clean:
	rm -rf .venv demo .pytest_cache .ruff_cache .hypothesis
