# make demo: fresh machine -> virtual environment -> the tour notebook on the procedural data set.
# make test: everything CI checks. Both install what they need; PYTHON chooses the interpreter (3.10 or newer).
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(abspath $(VENV))/bin

.PHONY: install demo test bench figures lab clean
.DEFAULT_GOAL := demo

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -r requirements.txt
	touch $@

demo: install
	@begin=$$(date +%s); \
	mkdir -p figures/tour && cd notebooks && \
	$(BIN)/papermill 00_tour.ipynb ../figures/tour/00_tour.ipynb -p out ../figures/tour -r stored "" --log-output && \
	cat ../figures/tour/table.md && \
	echo "demo: $$(($$(date +%s) - begin)) s after installation"

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=300 notebooks

# Peers that no wheel or no newer numpy suits are installed as they can be; one that fails is reported as absent.
bench: install
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[bench]'
	-$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation graph-walker
	-$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps pecanpy nptyping numba-progress gensim smart_open
	$(BIN)/python tests/bench_walks.py
	$(BIN)/python tests/bench_metrics.py
	$(BIN)/python tests/bench_training.py

# Pictures for a talk, SVG and PNG, from the procedural set and the committed records.
figures: install
	$(BIN)/python -m sagkit.figures --out figures/talk

lab: install
	$(BIN)/jupyter-lab --ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks/00_tour.ipynb

clean:
	rm -rf runs build .pytest_cache .ruff_cache .benchmarks .hypothesis *.egg-info
