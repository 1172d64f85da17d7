# Every target makes what it needs.
#
#   make setup     .venv with everface, torch and all that the tests and checks use; an editable install, with everface._native where
#                  cmake and a C++ compiler are found
#   make demo      render the bundled image and voice with the bundled model into out/
#   make test      the tests that need no GPU, in minutes
#   make test-all  the longest of them too
#   make check     ruff and pyright over every source file
#   make gpu       tests and benches on the CUDA device of this machine: what bench/results/ lacks, within nine minutes
#   make gpu-tree  build/gpu-tree.tar.gz, all that `make gpu` needs on another machine
#   make fuzz      mutated inputs into every parser; needs everface[fuzz]
#   make audit     known vulnerabilities of what the image installs, where the package index serves them; needs everface[audit]
#   make bench     time the stream on this machine
#   make native    build everface._native and libeverface into python/everface/
#   make release   sdist, wheel, bill of materials and checksums of the last commit in dist/, built twice to the same bits
#   make install   build libeverface and install it, its headers and its CMake and pkg-config files below PREFIX
#   make clean     remove .venv and everything that was built
#
#   PYTHON=python3.12        the interpreter that .venv is made with
#   TORCH_INDEX=ADDRESS      the package index to take torch from, for example the one with PyTorch's CPU wheels
#   TORCH=torch==2.13.0      take this build of torch, whatever its size
#   PY=python3               run with this interpreter as it is and set nothing up (a machine that has torch already)
#   ROUND=1                  one of the three rounds of `make gpu`, each within nine minutes
#   GPU='--soak 300'         options of `make gpu`: python -m bench.gpu --help
#   SECONDS=60 TARGET=image  `make fuzz`: how long each target runs; only one of them. EXECUTIONS=1000000: so many, however long they take
#   WORKERS=3                test processes; more than cores, as many tests wait
#   PREFIX=/usr/local        where `make install` installs to

PYTHON ?= python3
WORKERS ?= 3
PREFIX ?= /usr/local
VENV := .venv
SHELL := bash

ifdef PY
READY :=
RUN := PYTHONPATH=$(CURDIR)/python$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PY)
INTERPRETER := $(shell command -v $(PY))
else
READY := $(VENV)/.ready
RUN := $(VENV)/bin/python
INTERPRETER := $(CURDIR)/$(VENV)/bin/python
endif

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --no-compile# pip compiles on one core; we do it afterwards, on all
NUMPY := numpy>=2.0,<2.4# the interpreter of triton 3.6 breaks on 2.4

.PHONY: setup demo test test-all check gpu gpu-tree fuzz audit bench native module release install clean
.DELETE_ON_ERROR:

setup: $(READY)

demo: $(READY)
	$(RUN) -m everface demo

test: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) --dist worksteal -m "not gpu and not long" --benchmark-disable --durations 5

test-all: $(READY)
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(WORKERS) --dist worksteal -m "not gpu" --benchmark-disable --durations 5

check: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath $(INTERPRETER)

gpu: $(READY)
	$(RUN) -m bench.gpu $(if $(ROUND),--round $(ROUND)) $(GPU)

gpu-tree:
	$(PYTHON) -m bench.tree build/gpu-tree.tar.gz

fuzz: $(READY)
	nice $(RUN) -m tests.fuzz --seconds $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60) $(if $(EXECUTIONS),--executions $(EXECUTIONS)) $(if $(TARGET),--target $(TARGET))

audit: $(READY)
	$(RUN) -m pip_audit --disable-pip --require-hashes --strict --progress-spinner off -r deploy/requirements.txt

bench: $(READY)
	$(RUN) -m everface bench

# Needs cmake and a C++17 compiler; CUDA and NCCL are found when the program runs.
native: $(READY)
	cmake -S . -B build/native -DPython_EXECUTABLE=$(INTERPRETER) -DCMAKE_INSTALL_LIBDIR=lib -DEVERFACE_CLIENT=ON
	cmake --build build/native --parallel 2
	cmake --install build/native --prefix python/everface/sdk --component client

# everface._native alone, as `make setup` builds it.
module:
	cmake -S . -B build/native -DPython_EXECUTABLE=$(INTERPRETER) -DEVERFACE_CLIENT=OFF
	cmake --build build/native --parallel 2

release: $(READY)
	$(RUN) -m deploy.release dist

# Needs no Python.
install:
	cmake -S . -B build/client -DEVERFACE_PYTHON=OFF
	cmake --build build/client --target everface
	cmake --install build/client --prefix $(PREFIX) --component client

clean:
	rm -rf $(VENV) build dist out python/everface/_native*.so python/everface/sdk .pytest_cache .ruff_cache .benchmarks python/everface.egg-info
	find kernels runtime python tests bench examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "everface needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "setuptools>=77"
	touch $@

# torch comes first and alone, so that nothing later resolves it again. With an NVIDIA driver it is 2.11, what an H200 was measured with: it brings
# Triton 3.6, and the kernels for sm_90 are written in that release's Gluon (3.7 was not tried). Its plain builds bring gigabytes of CUDA on
# Linux x86_64: without an NVIDIA driver only the CPU build is taken there, and if pip fails we stop and say what to do.
$(VENV)/.torch: | $(VENV)/.python
ifdef TORCH
	$(INSTALL) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)") "$(TORCH)"
else ifdef TORCH_INDEX
	$(INSTALL) --index-url "$(TORCH_INDEX)" torch==2.13.0
else
	@if nvidia-smi -L >/dev/null 2>&1; then \
	  $(INSTALL) torch==2.11.0; \
	elif [ "$$(uname -sm)" != "Linux x86_64" ]; then \
	  $(INSTALL) torch==2.13.0; \
	elif ! $(INSTALL) torch==2.13.0+cpu; then \
	  echo "everface: the CPU build of torch could not be installed; pip says why above." >&2; \
	  echo "everface: if pip found none, name the index of PyTorch's CPU wheels (see its 'Get started' page): make TORCH_INDEX=ADDRESS" >&2; \
	  echo "everface: or take the build that brings gigabytes of CUDA: make TORCH=torch==2.13.0" >&2; \
	  exit 1; \
	fi
endif
	touch $@

# A CUDA build of torch brings its own triton; elsewhere 3.6.0 lets the tests run the kernels under its interpreter.
$(VENV)/.ready: pyproject.toml setup.py $(VENV)/.torch
	torch=$$($(VENV)/bin/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))') && \
	$(INSTALL) --no-build-isolation -e ".[test,check]" "$$torch" "$(NUMPY)"
	@if [ "$$(uname -sm)" = "Linux x86_64" ] && ! $(VENV)/bin/python -c 'import triton' 2>/dev/null; then \
	  $(INSTALL) triton==3.6.0; \
	fi
	$(VENV)/bin/python -m compileall -q -j 0 $(VENV)/lib >/dev/null 2>&1 || true # a package may hold a template that is no Python
	@if command -v cmake >/dev/null && command -v $(CXX) >/dev/null; then $(MAKE) --no-print-directory module >$(VENV)/native.log 2>&1 || \
	  echo "everface: everface._native was not built, so a CPU takes up to twice as long; $(VENV)/native.log says why" >&2; \
	else echo "everface: without cmake and a C++ compiler everface._native is not built, so a CPU takes up to twice as long" >&2; fi
	touch $@
