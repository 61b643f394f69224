# make demo | test | setup | lint | format | sanitize | emulate | cuda | bench | clean
VENV := .venv
PYTHON_IN := $(VENV)/bin/python
READY := $(VENV)/.ready
SOURCES := pyproject.toml setup.py constraints.txt tools/setup.sh tools/ffcv.sh $(shell find csrc -type f)
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test setup lint format sanitize emulate cuda bench clean
demo: $(READY)
	$(VENV)/bin/ulfast attack --method orthogonal

test: $(READY)
	$(PYTHON_IN) -m pytest -q -n auto --maxprocesses 8

setup: $(READY)
$(READY): $(SOURCES)
	tools/setup.sh
	@touch $@
	@case "$$EXTRAS" in *dev*) touch $(VENV)/.dev ;; esac

$(VENV)/.dev: $(READY)
	EXTRAS=test,dev tools/setup.sh
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
