# make setup | demo | test | test-fast | test-sanitize | chaos | lint | bench | docs
# All commands run in .venv, which the first target creates.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
# The demo needs fewer packages than the tests, so its set-up is shorter.
LEAN := .venv/.installed-for-demo
STAMP := .venv/.installed
SOURCES := pyproject.toml constraints.txt setup.py kernels/build_library.py $(shell find kernels/csrc -name '*.cpp' -o -name '*.h' -o -name '*.hpp')
export PYTHONWARNINGS ?= ignore::FutureWarning

# Filters pip's output: large downloads, builds and the installation, so that set-up shows progress.
PROGRESS := awk '/Downloading .*\([0-9.]+ [MG]B\)|Building|Preparing editable|Installing collected|Successfully/ {print "  " substr($$0, 1, 100); fflush()}'

.PHONY: chaos gpu gpu-pack setup demo test test-fast test-sanitize lint bench docs wheels wheelhouse clean

setup: $(STAMP)

# $(1): the extras to install.
define install
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "SPDF needs Python 3.11, 3.12 or 3.13; this is %d.%d: set PYTHON=" % v)'
	@command -v c++ >/dev/null || { echo "SPDF needs a C++ compiler: install g++ or clang++"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "SPDF needs python3-venv"; exit 1; }
	@echo "Installing into .venv (one to two minutes the first time)"
	@$(BIN)/python -m pip install --progress-bar off --disable-pip-version-check --constraint constraints.txt --editable '.[$(1)]' | $(PROGRESS)
	@touch $@
endef

$(LEAN): $(SOURCES)
	$(call install,scores$(COMMA)report)

$(STAMP): $(SOURCES)
	$(call install,all$(COMMA)dev$(COMMA)docs)
	@touch $(LEAN)

COMMA := ,

# Without SPDF_DATA: text of the Python installation and synthetic fine-tuning data. With it: its text/ and e2e/.
demo:
	@echo "The demo takes about five minutes on two idle cores; the first set-up takes one to two more"
	@$(MAKE) --no-print-directory $(LEAN)
	@$(BIN)/python -m spdf_launcher.demo

# Two test processes of one thread each, because most tests are short and serial. The Slurm tests depend on timing, so they
# run separately.
test: setup
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not slurm'
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m slurm

test-fast: setup
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m 'not slow and not slurm and not distributed'

test-sanitize: setup
	@bash kernels/csrc/sanitize.sh

# Injects faults into real commands for MINUTES (20): damaged files, kills, signals, races, full disks (docs/reliability.md).
MINUTES ?= 20
chaos: setup
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python -m chaos --minutes $(MINUTES) --json build/chaos.json $(CHAOS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo

bench: setup
	@$(BIN)/spdf bench gemm

# Fails on any warning, such as a broken link or a name that is not documented.
docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo "The documentation is in build/site/index.html"

# Measures the GPU kernels on this machine's NVIDIA GPU, in less than eight minutes. For a machine without internet, run
# `make gpu-pack` here, copy .gpu_pack to the machine, and run `bash .gpu_pack/run.sh` there.
gpu: setup
	@PYTHONPATH=kernels $(BIN)/python -m gpu_lab run

gpu-pack: setup
	@PYTHONPATH=kernels $(BIN)/python -m gpu_lab pack

# Builds the wheels of spdf-dist and spdf-kernels for x86-64 and aarch64; the other processor needs a cross compiler.
wheels: setup
	@$(BIN)/python tools/wheelhouse.py --own --out dist

# Collects all wheels for a cluster without internet: make wheelhouse TARGET_PYTHON=3.12 MACHINE=x86_64 EXTRAS=all,gpu
wheelhouse: setup
	@$(BIN)/python tools/wheelhouse.py --out wheelhouse $(if $(TARGET_PYTHON),--python $(TARGET_PYTHON)) \
	  $(if $(MACHINE),--machine $(MACHINE)) $(if $(EXTRAS),--extras $(EXTRAS))

clean:
	rm -rf .venv build *.egg-info
