# `make demo` and `make test` need only python3 (3.10 or later, with its headers), a C++ compiler and the network: they
# make .venv, with fastenh in it, first. PYTHON=... names an environment of yours instead, with fastenh[dev] installed.
.PHONY: demo test bench cuda-report lint

ifdef PYTHON
ready:
else
PYTHON := .venv/bin/python
ready: .venv/ready
endif
.PHONY: ready
fastenh = $$(dirname "$$(command -v $(PYTHON))")/fastenh

.venv/ready: setup.py pyproject.toml $(wildcard csrc/*)
	test -x .venv/bin/pip || python3 -m venv .venv
	.venv/bin/pip install -q "setuptools>=77" "pybind11>=2.13" ninja
	.venv/bin/pip install -q --no-build-isolation -e ".[dev]"
	touch $@

# A photograph that comes with scikit-image, as it is and 1.5 stops too dark and too blue: before, after, and both.
demo: ready
	$(PYTHON) docs/demo.py demo
	$(fastenh) enhance demo/photo.jpg demo/too_dark.jpg -o demo/retouched/ --compare --overwrite
	@echo "Before and after, side by side: $(CURDIR)/demo/retouched/too_dark_compare.jpg"

test: ready
	$(PYTHON) -m pytest -n auto --maxprocesses 8 --dist worksteal

bench: ready
	$(PYTHON) -m pytest --benchmark

# What nvcc made of every CUDA kernel: registers, spills, instructions per pixel. Needs no GPU.
cuda-report: ready
	$(PYTHON) benchmarks/cuda_report.py

# For a machine with an NVIDIA GPU, nvcc and torch; needs no network and leaves the environment as it is. OUT=folder gets
# logs and results too.
gpu-check:
	$(or $(shell command -v $(PYTHON)),python3) benchmarks/gpu_check.py $(if $(OUT),--out "$(OUT)")

lint: ready
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
