# Every target sets up what it needs in .venv, once: again only when settings.ini or setup.py changes.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
RUNTIME := .venv/.runtime
DEV := .venv/.dev
PIP_INSTALL := PYTHONWARNINGS=ignore::UserWarning $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --use-pep517

.DEFAULT_GOAL := help
.PHONY: help train test docs lab paper bench notebooks export clean

help: ## Show this list
	@echo 'Usage: make TARGET [ARGS="..."] [PYTHON=python3.12]'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-12s%s\n", $$1, $$2 }' Makefile

train: $(RUNTIME) ## Train and evaluate on the bundled emoji, or go on where it stopped; ARGS go to "gradient_surgery train"
	@$(BIN)/gradient_surgery train --resume $(ARGS)

test: $(DEV) ## Run every notebook and all tests; ARGS go to pytest
	@$(BIN)/pytest $(ARGS)

docs: $(DEV) ## Build the website in _docs
	@$(BIN)/python scripts/docs.py $(ARGS)

lab: $(DEV) ## Open the notebooks in JupyterLab
	@$(BIN)/jupyter lab nbs $(ARGS)

paper: $(DEV) ## Make the runs behind the paper that are not done yet, their tables, and its pages; ARGS go to "gradient_surgery experiment"
	@$(BIN)/gradient_surgery experiment all --full $(ARGS)
	@find nbs/paper -name '*.ipynb' -not -path '*/.*' | sort | OMP_NUM_THREADS=1 xargs -n 1 -P "$$(getconf _NPROCESSORS_ONLN)" $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --coalesce-streams --inplace
	@$(BIN)/nbdev_clean

bench: $(DEV) ## Measure speed and memory; JSON and figures in runs/speed; ARGS go to benchmarks/losses.py
	@$(BIN)/python benchmarks/losses.py $(ARGS)
	@$(BIN)/python benchmarks/evaluation.py
	@$(BIN)/python benchmarks/images.py --output runs/speed/images.json
	@$(BIN)/python benchmarks/training.py
	@$(BIN)/papermill --log-level ERROR --no-progress-bar -p folder runs/speed -p pictures runs/speed nbs/paper/speed.ipynb runs/speed/speed.ipynb

notebooks: $(DEV) ## Execute every notebook in place, then do what "export" does
	@$(BIN)/nbdev_export
	@find nbs -name '*.ipynb' -not -path '*/.*' | sort | xargs $(BIN)/jupyter nbconvert --log-level WARN --to notebook --execute --coalesce-streams --inplace
	@$(MAKE) --no-print-directory export

export: $(DEV) ## Write the package and README.md from the notebooks; strip what must not be committed
	@$(BIN)/nbdev_export
	@$(BIN)/python scripts/reference.py
	@$(BIN)/nbdev_clean
	@$(BIN)/python scripts/readme.py

clean: ## Remove what was built; .venv and runs stay
	@rm -rf _docs build dist *.egg-info .pytest_cache .hypothesis
	@find gradient_surgery nbs scripts tests -depth \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'Python 3.11 or newer is needed, and "$(PYTHON)" is not. Name one: make PYTHON=python3.12 ...' >&2; exit 1; }
	@echo 'Making .venv with $(PYTHON) ...'
	@$(PYTHON) -m venv .venv || { rm -rf .venv; \
	  echo 'Python could not make a virtual environment. On Debian or Ubuntu: apt-get install python3-venv' >&2; exit 1; }

$(RUNTIME): settings.ini setup.py | $(BIN)/pip
	@echo 'Installing gradient_surgery with PyTorch in .venv: minutes, and about 6 GB on Linux ...'
	@$(PIP_INSTALL) -e .
	@touch $@

$(DEV): settings.ini setup.py | $(BIN)/pip
	@echo 'Installing gradient_surgery with PyTorch and the tools for notebooks, tests and site in .venv: minutes, and about 6 GB on Linux ...'
	@$(PIP_INSTALL) -e '.[dev,docs,pretrained,data,onnx,paper]'
	@touch $(RUNTIME) $@
