# make demo | test | test-rest | test-all | coverage | setup | lint | format | docs | results | sanitize | emulate | cuda |
# bench | clean
VENV := .venv
PYTHON_IN := $(VENV)/bin/python
READY := $(VENV)/.ready
EMULATED := $(VENV)/.emulated
PYTEST := $(PYTHON_IN) -m pytest -q -n auto --maxprocesses 8
SOURCES := pyproject.toml setup.py constraints.txt tools/setup.sh tools/ffcv.sh $(shell find csrc -type f)
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test test-rest test-all coverage setup lint format docs results sanitize emulate cuda bench clean
demo: $(READY)
	$(VENV)/bin/ulfast attack --method orthogonal

# Every test that is not marked slow. ARGS goes to pytest: make test ARGS="tests/ops -x".
test: $(EMULATED)
	$(PYTEST) $(ARGS)

# The tests marked slow: full products of parameters, every documented command, kills, several processes, a browser.
test-rest: $(EMULATED)
	$(PYTEST) -m slow $(ARGS)

test-all:
	$(MAKE) test
	$(MAKE) test-rest

# Line coverage of the quick tests; of all with ARGS='-m ""'.
coverage: $(EMULATED)
	$(PYTEST) --cov --cov-report=term:skip-covered $(ARGS)

# The CUDA kernels for the CPU, on which tests/cuda_emulation runs.
$(EMULATED): $(READY) $(wildcard tests/cuda_emulation/*.h tests/cuda_emulation/*.cpp) tests/cuda_emulation/conftest.py
	$(PYTHON_IN) tests/cuda_emulation/conftest.py
	@touch $@

setup: $(READY)
$(READY): $(SOURCES)
	tools/setup.sh
	@touch $@
	@case "$$EXTRAS" in *dev*) touch $(VENV)/.dev ;; esac
	@case "$$EXTRAS" in *docs*) touch $(VENV)/.docs ;; esac

$(VENV)/.dev: $(READY)
	EXTRAS=test,dev tools/setup.sh
	@touch $@

$(VENV)/.docs: $(READY)
	EXTRAS=test,docs tools/setup.sh
	@touch $@

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP)
	$(VENV)/bin/mypy ulfast
	$(VENV)/bin/lint-imports
	@! grep -nE '#include *[<"](torch|ATen|c10)' -r csrc || { echo 'csrc includes a torch header'; exit 1; }

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

# The site of docs/ in build/site; a broken link or anchor is an error.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(PYTHON_IN) -m mkdocs build --strict --quiet --clean

# The tables of README.md and docs/ anew from the files in benchmarks/results.
results: $(READY)
	$(PYTHON_IN) tools/results.py

# The operators' tests once more, on kernels built with AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: $(READY)
	tools/sanitize.sh

# The operators' tests on the AVX-512 kernels where the processor has no AVX-512; not part of CI.
emulate: $(READY)
	tools/emulate_avx512.sh

# Compiles every CUDA file for every default architecture and says what spills; needs nvcc, no GPU.
cuda: $(READY)
	tools/compile_cuda.sh

bench: $(READY)
	$(PYTHON_IN) benchmarks/run.py

clean:
	rm -rf $(VENV) build dist *.egg-info ulfast/*.so
