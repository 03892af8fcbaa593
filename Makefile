# make demo: fresh machine -> virtual environment -> the tour notebook on emoji, whose runs are stored; TRAIN=1 trains them now.
# make check: style, types and the fast tests. make test: everything CI checks.
# Each installs what it needs; PYTHON chooses the interpreter (3.10 or newer). All they write is ignored by git.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin
TYPES  ?= $(BIN)/mypy
# Processes side by side, each of one thread (tests/conftest.py). loadgroup hands out one test, or one group, at a time.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadgroup

# Bytecode is worth writing: with shape checks it costs each test process 8 s to compile anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo static fast check test bench attack figures lab clean
.DEFAULT_GOAL := demo

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.txt
	touch $@

demo: install
	@begin=$$(date +%s); \
	mkdir -p runs/tour && cd notebooks && \
	$(BIN)/papermill 00_tour.ipynb ../runs/tour/00_tour.ipynb -p out ../runs/tour $(if $(TRAIN),-r stored "") --log-output && \
	cat ../runs/tour/table.md && \
	echo "demo: $$(($$(date +%s) - begin)) s after installation"

static: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(TYPES)

fast: install
	$(PYTEST) -p no:nbmake -m "not slow" tests

check: install
	@$(MAKE) --no-print-directory -j 2 static fast

# The tests leave the tree as they found it.
test: static
	@before=$$(git status --porcelain 2>&1); \
	$(PYTEST) --nbmake --nbmake-timeout=300 tests notebooks && \
	if [ "$$(git status --porcelain 2>&1)" != "$$before" ]; then \
		git status --porcelain; echo "the tests changed the tree"; exit 1; \
	fi

# Peers that no wheel or no newer numpy suits are installed as they can be; one that fails is reported as absent.
bench: install
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[bench]'
	-$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation graph-walker
	-$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps pecanpy nptyping numba-progress gensim smart_open
	$(BIN)/python tests/bench_walks.py
	$(BIN)/python tests/bench_metrics.py
	$(BIN)/python tests/bench_training.py

# Kills, failing writes, hostile files and command lines; the record of what was found goes to BENCHMARKS.md.
attack: install
	$(BIN)/python tests/attack/attack.py

# Pictures for a talk, SVG and PNG, from emoji and the committed records.
figures: install
	$(BIN)/sagkit study figures --talk --out runs/figures

# JupyterLab on copies of the notebooks, kept under runs/lab with what is changed in them.
lab: install
	@mkdir -p runs/lab/notebooks
	@ln -sfn ../../figures runs/lab/figures
	@for page in notebooks/*.ipynb; do [ -e "runs/lab/$$page" ] || cp "$$page" "runs/lab/$$page"; done
	$(BIN)/jupyter-lab --ServerApp.root_dir="$(CURDIR)/runs/lab" --LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb

clean:
	rm -rf runs build dist .*_cache .benchmarks .hypothesis *.egg-info
