# `make demo` and `make test` need only python3 (3.11 or later, with its headers), a C++ compiler and the network: they
# make .venv, with fastenh and the versions of constraints.txt in it, first. PYTHON=... names an environment of yours
# instead, with fastenh[dev] installed.
.PHONY: demo test test-newest bench cuda-report gpu-check lint

ifdef PYTHON
ready:
else
PYTHON := .venv/bin/python
ready: .venv/ready
endif
.PHONY: ready
fastenh = $$(dirname "$$(command -v $(PYTHON))")/fastenh

# $(call install,ENVIRONMENT,OPTIONS): makes the environment where it is missing, and installs fastenh[dev] into it.
define install
	@$$(command -v $(1)/bin/python || echo python3) -c 'import sys; sys.version_info < (3, 11) and sys.exit( \
	"fastenh needs Python 3.11 or later, but %s is Python %d.%d" % ((sys.executable,) + sys.version_info[:2]))'
	test -x $(1)/bin/pip || python3 -m venv $(1)
	$(1)/bin/pip install -q $(2) "setuptools>=77" "pybind11>=2.13" ninja
	$(1)/bin/pip install -q $(2) --no-build-isolation -e ".[dev]"
endef

.venv/ready: setup.py pyproject.toml constraints.txt $(wildcard csrc/*)
	$(call install,.venv,-c constraints.txt)
	touch $@

# A photograph that comes with scikit-image, as it is and 1.5 stops too dark and too blue: before, after, and both.
demo: ready
	$(PYTHON) docs/demo.py demo
	$(fastenh) enhance demo/coffee.jpg demo/china.jpg demo/astronaut.jpg -o demo/retouched/ --compare --overwrite
	@echo "Before and after, side by side: $(CURDIR)/demo/retouched/*_compare.jpg"

test: ready
	$(PYTHON) -m pytest -n auto --maxprocesses 8 --dist worksteal

# The same tests with the newest versions that pip finds, in an environment of their own.
test-newest:
	$(call install,build/newest,--upgrade --upgrade-strategy eager)
	$(MAKE) test PYTHON=build/newest/bin/python

bench: ready
	$(PYTHON) -m pytest --benchmark

# What nvcc made of every CUDA kernel: registers, spills, instructions per pixel. Needs no GPU.
cuda-report: ready
	$(PYTHON) benchmarks/cuda_report.py

# For a machine with an NVIDIA GPU, nvcc and torch; needs no network and does not change the environment. OUT=folder
# receives logs and results too.
gpu-check:
	$(or $(shell command -v $(PYTHON)),python3) benchmarks/gpu/check.py $(if $(OUT),--out "$(OUT)")

lint: ready
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
