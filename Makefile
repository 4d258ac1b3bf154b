# `make run` and `make test` need only Python 3.11 or newer, a C++17 compiler and make; they set
# up everything else themselves. All that is fetched or built is in .venv/, native/build/,
# lmlite/lib/ and .local/, which `make clean` removes.

PYTHON        ?= python3
MODEL         ?=
ARGS          ?=
MINUTES       ?= 60
LLAMA_CPP_DIR ?=
LIBWEBP_DIR   ?=
CMAKE_ARGS    ?=
ARCH          ?= x86_64 aarch64

BUILD   := native/build
SOURCE  := $(if $(LLAMA_CPP_DIR),$(abspath $(LLAMA_CPP_DIR)),$(CURDIR)/$(BUILD)/llama.cpp)
WEBP    := $(if $(LIBWEBP_DIR),$(abspath $(LIBWEBP_DIR)),$(CURDIR)/$(BUILD)/libwebp)
LIBRARY := lmlite/lib/liblmlite.so
BRIDGE  := $(wildcard native/*.h native/*.cpp) native/CMakeLists.txt \
           lmlite/worker/llama/capi.py lmlite/worker/llama/mtmd.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PRECIOUS: .venv/%/.complete
.PHONY: help run test test-all native pyz wheel test-pyz abi lint coverage conformance clients prometheus balancers real-model fuzz fuzz-images fuzz-http soak reliability bench profile tiny-model tiny-check patch-check clean

help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 14

run: native ## serve on 127.0.0.1:1234 (MODEL=path.gguf, ARGS="--ctx 8192")
	@exec $(PYTHON) -m lmlite serve $(MODEL) $(ARGS)

test: native .venv/test/.complete ## run the tests (ARGS="-k name", ARGS=--durations=20 lists the slowest)
	@LMLITE_LLAMA_CPP=$(SOURCE) .venv/test/bin/python -m tests $(ARGS)

test-all: native .venv/test/.complete ## run all tests, the long ones too
	@LMLITE_LLAMA_CPP=$(SOURCE) .venv/test/bin/python -m tests -m "long or not long" $(ARGS)

native: $(LIBRARY) ## build llama.cpp and the bridge (LLAMA_CPP_DIR=tree, CMAKE_ARGS=-DGGML_CUDA=ON)

abi: $(BUILD)/llama.cpp.found ## let the C compiler check the ctypes declarations against the headers
	@$(PYTHON) -c 'from lmlite.worker.llama.capi import c_check; print(*c_check(), sep="\n")' \
	  > $(BUILD)/abi.c
	@cc -fsyntax-only -Inative -I$(SOURCE)/include -I$(SOURCE)/ggml/include \
	  -I$(SOURCE)/tools/mtmd $(BUILD)/abi.c
	@echo "the declarations agree with the headers"

lint: .venv/lint/.complete ## check style and types (ruff, mypy)
	@.venv/lint/bin/ruff check .
	@.venv/lint/bin/ruff format --check .
	@.venv/lint/bin/mypy

# The code that reads untrusted bytes (requests, images, model files), and its tests.
COVERED      := lmlite/server/front/wire.py lmlite/server/front/chunked_body.py lmlite/server/front/connection.py \
  lmlite/frames.py lmlite/gguf/file.py lmlite/gguf/header.py lmlite/gguf/shape.py \
  lmlite/gguf/projector.py lmlite/server/models/model_check.py lmlite/server/api/chat/images.py \
  lmlite/server/api/chat/image_formats.py lmlite/downloads/hub.py lmlite/downloads/web.py \
  lmlite/downloads/transfer.py lmlite/downloads/part.py
COVERED_BY   := tests/server/front tests/gguf tests/test_frames.py tests/server/models/test_model_check.py \
  tests/server/api/chat/test_images.py tests/downloads
TOO_SLOW     := --deselect tests/gguf/test_file.py::test_a_large_vocabulary_is_read_in_half_a_second
COVERAGE     := COVERAGE_FILE=.venv/coverage/data .venv/coverage/bin/python -m coverage
LEAST        := 95

coverage: native .venv/coverage/.complete ## measure test coverage of the code that reads untrusted bytes
	@LMLITE_LLAMA_CPP=$(SOURCE) $(COVERAGE) run --branch \
	  --include=$$(echo $(COVERED) | tr ' ' ,) -m pytest $(COVERED_BY) $(TOO_SLOW) $(ARGS)
	@$(COVERAGE) report --show-missing
	@for file in $(COVERED); do \
	  $(COVERAGE) report --include=$$file --fail-under=$(LEAST) > /dev/null \
	    || { echo "$$file: less than $(LEAST)%"; exit 1; }; \
	done

conformance: native .venv/conformance/.complete ## validate every reply against OpenAI's schemas
	@.venv/conformance/bin/python -m tests.conformance $(ARGS)

clients: native .venv/clients/.complete .venv/instructor/.complete .venv/programs/.complete .venv/frameworks/.complete .venv/harness/.complete ## run the real clients: OpenAI, Anthropic, agents
	@.venv/clients/bin/python -m tests.clients

prometheus: native .venv/test/.complete $(if $(shell command -v promtool),,.venv/prometheus/.complete) ## check /metrics, alerts and dashboard with Debian's Prometheus
	@.venv/test/bin/python -m pytest tests/served/test_fleet_figures.py -rs $(ARGS)

balancers: native .venv/test/.complete ## run HAProxy and nginx, fetched from Debian, before three servers
	@.venv/test/bin/python -m tests.balancers.programs
	@.venv/test/bin/python -m pytest tests/balancers -m "long or not long" $(ARGS)

real-model: .venv/build/.complete ## fetch SmolLM2-135M-Instruct, 98 MB, for tests that need a real model
	@.venv/build/bin/python -m lmlite get smollm2-135m --models .local > /dev/null

fuzz: native ## load 20,000 damaged model files (ARGS="--count 1000 --seed 2")
	@$(PYTHON) -m tests.fuzz.gguf $(ARGS)

fuzz-images: native ## send 100,000 damaged images (ARGS="--count 1000 --seed 2")
	@$(PYTHON) -m tests.fuzz.images $(ARGS)

fuzz-http: ## send damaged requests to the server's front (ARGS="raw --count 200000 --seed 2")
	@$(PYTHON) -m tests.fuzz.http $(ARGS)

soak: native .venv/test/.complete ## serve for an hour while injecting faults (MINUTES=5 ARGS="kills --seed 2")
	@.venv/test/bin/python -m tests.reliability.soak --minutes $(MINUTES) $(ARGS)

reliability: native .venv/test/.complete ## print each promise and the tests that prove it (ARGS="F2 M", ARGS=--all)
	@LMLITE_LLAMA_CPP=$(SOURCE) .venv/test/bin/python -m tests.reliability $(ARGS)

bench: $(BUILD)/peer.built ## measure beside llama-server, half an hour (ARGS="--only stream")
	@LMLITE_LLAMA_CPP=$(SOURCE) $(PYTHON) -m tests.bench $(ARGS)

profile: native ## measure Python's own share of a step (ARGS="--functions 20")
	@$(PYTHON) -m tests.bench.profile_step $(ARGS)

tiny-model: native .venv/tiny/.complete ## train the embedded model and its projector again, with a GPU (ARGS="--seed 2")
	@.venv/tiny/bin/python -m tests.tiny_model.train $(ARGS)
	@.venv/tiny/bin/python -m tests.tiny_model.eye

tiny-check: native .venv/check/.complete ## measure the skills of the embedded model (ARGS="--n 20 --show 3")
	@.venv/check/bin/python -m tests.tiny_model.check $(ARGS)

clean: ## remove everything that was fetched or built
	rm -rf .venv $(BUILD) lmlite/lib .local

# ---- the native libraries -------------------------------------------------------------------
# Each rule creates its target file as its last step. So make repeats an interrupted rule, and
# skips a complete one.

$(LIBRARY): $(BRIDGE) $(BUILD)/llama.cpp.found $(BUILD)/libwebp.found $(BUILD)/options
	@command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || { \
	  echo "lmlite needs a C++17 compiler: install g++ or clang" \
	       "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++)"; exit 1; }
	@echo "building llama.cpp: about 4 minutes on two cores, once"
	$(call build,cmake,lmlite/lib)

# Builds the libraries. Arguments: the build's folder in $(BUILD), where the libraries go, options.
define build
	@$(PYTHON) -c 'from lmlite.worker.llama.capi import layout_lines; print(*layout_lines(), sep="\n")' \
	  > $(BUILD)/layout.inc
	@$(WITH_CMAKE) cmake -S native -B $(BUILD)/$(1) -G Ninja -DLLAMA_CPP_DIR=$(SOURCE) \
	  -DLIBWEBP_DIR=$(WEBP) $(3) $(CMAKE_ARGS) \
	  > $(BUILD)/configure.log 2>&1 || { cat $(BUILD)/configure.log; exit 1; }
	@$(WITH_CMAKE) cmake --build $(BUILD)/$(1)
	@rm -rf $(2)
	@$(WITH_CMAKE) cmake --install $(BUILD)/$(1) --component lmlite --strip --prefix $(CURDIR)/$(2) > /dev/null
	@touch $(2)/liblmlite.so
endef

# ---- the one file ---------------------------------------------------------------------------
# zig compiles for each machine, with the oldest C library that the file is to run on.

TARGET_x86_64       := x86_64-linux-gnu.2.28
TARGET_aarch64      := aarch64-linux-gnu.2.28
TARGET_armv7l       := arm-linux-gnueabihf.2.28
TARGET_x86_64-musl  := x86_64-linux-musl
TARGET_aarch64-musl := aarch64-linux-musl
CROSS_LIBRARIES     := $(ARCH:%=$(BUILD)/lib-%/liblmlite.so)

pyz: $(CROSS_LIBRARIES) ## pack lmlite into one file for other machines (ARCH=armv7l, ARGS=--no-model)
	@for arch in $(ARCH); do \
	  $(PYTHON) native/pack.py --libraries $(BUILD)/lib-$$arch --platform linux-$$arch \
	    $(NOTICES) $(ARGS) || exit 1; \
	done

wheel: $(CROSS_LIBRARIES) .venv/test/.complete .venv/wheel/.complete ## pack wheels for pip, and check them
	@for arch in $(ARCH); do \
	  $(PYTHON) -m native.wheels --libraries $(BUILD)/lib-$$arch --platform manylinux_2_28_$$arch \
	    $(NOTICES) || exit 1; \
	done
	@AUDITWHEEL=.venv/wheel/bin/auditwheel \
	  .venv/test/bin/python -m pytest tests/pyz/test_wheels.py -m "long or not long" $(ARGS)

# Emulation is slow: other systems than this machine's are tried when ARCH names them.
SYSTEMS := $(if $(filter command%,$(origin ARCH)),$(ARCH),$(shell uname -m))
test-pyz: .venv/test/.complete ## run the one file on other systems and processors (ARCH=aarch64, x86_64-musl)
	@$(MAKE) --no-print-directory pyz ARCH="$(SYSTEMS)" ARGS=
	@for system in $(SYSTEMS); do \
	  LMLITE_PYZ=$$system .venv/test/bin/python -m pytest tests/pyz/test_systems.py \
	    -m "long or not long" -rs $(ARGS) || exit 1; \
	done

$(BUILD)/lib-%/liblmlite.so: $(BRIDGE) $(wildcard native/zig.*) $(BUILD)/llama.cpp.found \
                             $(BUILD)/libwebp.found | .venv/build/.complete .venv/zig/.complete
	@echo "building llama.cpp for $*: about 15 minutes on two cores, once"
	$(call build,cmake-$*,$(@D),-DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/native/zig.cmake -DZIG_TARGET=$(TARGET_$*) \
	  -DZIG=$(ZIG)/zig)

# The licences of what the libraries contain: zig adds LLVM's library of C++.
ZIG      = $$(.venv/zig/bin/python -c 'import ziglang; print(ziglang.__path__[0])')
NOTICES  = --notice $(SOURCE)/LICENSE --notice $(SOURCE)/licenses/LICENSE-jsonhpp \
           --notice $(WEBP)/COPYING --notice $(ZIG)/lib/libcxx/LICENSE.TXT

# llama.cpp's own server and benchmark, built from the source without our patches.
UNPATCHED := $(if $(LLAMA_CPP_DIR),$(SOURCE),$(SOURCE).unpatched)
$(BUILD)/unpatched.found: $(BUILD)/llama.cpp.found
	@$(if $(LLAMA_CPP_DIR),,rm -rf $(UNPATCHED) && cp -R $(SOURCE) $(UNPATCHED) && \
	  $(call patch,--revert $(UNPATCHED)))
	@touch $@

$(BUILD)/peer.built: $(LIBRARY) $(BUILD)/unpatched.found
	@echo "building llama-server and llama-bench: about 6 minutes on two cores, once"
	@$(WITH_CMAKE) cmake -S native -B $(BUILD)/peer -G Ninja -DLLAMA_CPP_DIR=$(UNPATCHED) \
	  -DLIBWEBP_DIR=$(WEBP) -DGGML_OPENMP=ON $(CMAKE_ARGS) \
	  > $(BUILD)/configure.log 2>&1 || { cat $(BUILD)/configure.log; exit 1; }
	@$(WITH_CMAKE) cmake --build $(BUILD)/peer --target llama-server llama-bench
	@touch $@

# Each build of ggml's operations takes 2 minutes. Those for another machine run in qemu's user mode.
ifeq ($(origin ARCH),command line)
OPS      := $(BUILD)/ops-$(ARCH)
OPS_FOR  := -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/native/zig.cmake -DZIG=$(ZIG)/zig \
            -DZIG_TARGET=$(subst gnu,musl,$(TARGET_$(ARCH):.2.28=)) \
            -DCMAKE_CROSSCOMPILING_EMULATOR=$$($(PYTHON) -m tests.pyz.roots $(ARCH))
patch-check: .venv/zig/.complete
else
OPS      := $(BUILD)/ops
endif
patch-check: $(BUILD)/unpatched.found ## compare operations with those of llama.cpp without the patches (ARCH=aarch64)
	@$(if $(LLAMA_CPP_DIR),echo "patch-check is about the pinned source: not with LLAMA_CPP_DIR"; exit 1)
	@$(call ops,upstream,$(UNPATCHED),write)
	@$(call ops,patched,$(SOURCE),check)
ops = $(WITH_CMAKE) cmake -S tests/native -B $(OPS)/$(1) -G Ninja -DLLAMA_CPP_DIR=$(2) $(OPS_FOR) $(CMAKE_ARGS) \
        > $(BUILD)/configure.log 2>&1 || { cat $(BUILD)/configure.log; exit 1; }; \
      $(WITH_CMAKE) cmake --build $(OPS)/$(1) --target $(3)

# Each patch can be removed; the others fit without it.
PATCHES    := $(sort $(wildcard native/patches/*.patch))
patch       = $(PYTHON) native/patches/apply.py $(1) $(PATCHES)

# If the machine lacks CMake or Ninja, both are installed in .venv/build.
TOOLS      := $(if $(and $(shell command -v cmake),$(shell command -v ninja)),,cmake ninja)
WITH_CMAKE := PATH="$(CURDIR)/.venv/build/bin:$$PATH"
$(LIBRARY): | .venv/build/.complete

# Written only when the options change, because a newer file makes the libraries be built again.
.PHONY: force
$(BUILD)/options: force
	@mkdir -p $(BUILD)
	@echo '$(OPTIONS)' | cmp -s - $@ || echo '$(OPTIONS)' > $@
OPTIONS := $(SOURCE) $(LIBWEBP_DIR:%=% )$(CMAKE_ARGS) $(notdir $(PATCHES))

# Downloads a source package and unpacks a source tree from it to $(BUILD)/NAME.part. Arguments:
# NAME (its pin is native/NAME.txt), the package's size, the tree's path in it, that path's depth.
package = $(shell sed -n 's/==.*//p' native/$(1).txt)
define fetch
	@rm -rf $(BUILD)/$(1).download $(BUILD)/$(1) $(BUILD)/$(1).part
	@mkdir -p $(BUILD)/$(1).part
	@echo "fetching the source of $(1) ($(2))"
	@.venv/build/bin/pip download --quiet --disable-pip-version-check --no-deps \
	  --no-binary $(package) --require-hashes -r native/$(1).txt -d $(BUILD)/$(1).download
	@# -m: times in the archive may be in the future, which confuses build tools
	@tar -xzmf $(BUILD)/$(1).download/*.tar.gz -C $(BUILD)/$(1).part \
	  --strip-components=$(4) --exclude=.git --wildcards '*/$(3)/*'
	@rm -rf $(BUILD)/$(1).download
endef

ifdef LLAMA_CPP_DIR
$(BUILD)/llama.cpp.found: $(BUILD)/options
	@test -f $(SOURCE)/include/llama.h || { \
	  echo "LLAMA_CPP_DIR=$(LLAMA_CPP_DIR) is not a llama.cpp source tree"; exit 1; }
	@touch $@
else
$(BUILD)/llama.cpp.found: native/llama.cpp.txt native/patches/apply.py $(PATCHES) $(BUILD)/options | .venv/build/.complete
	$(call fetch,llama.cpp,77 MB,vendor/llama.cpp,3)
	@$(call patch,$(BUILD)/llama.cpp.part)
	@mv $(BUILD)/llama.cpp.part $(BUILD)/llama.cpp
	@touch $@
endif

ifdef LIBWEBP_DIR
$(BUILD)/libwebp.found: $(BUILD)/options
	@test -f $(WEBP)/src/webp/decode.h || { \
	  echo "LIBWEBP_DIR=$(LIBWEBP_DIR) is not a libwebp source tree"; exit 1; }
	@touch $@
else
$(BUILD)/libwebp.found: native/libwebp.txt $(BUILD)/options | .venv/build/.complete
	$(call fetch,libwebp,20 MB,thirdparty/libwebp,5)
	@mv $(BUILD)/libwebp.part $(BUILD)/libwebp
	@touch $@
endif

# ---- throw-away environments ----------------------------------------------------------------

PACKAGES_build       := pip $(TOOLS)
PACKAGES_zig         := --require-hashes -r native/zig.txt
PACKAGES_test        := pytest==8.4.2 jinja2==3.1.6
PACKAGES_coverage    := pytest==8.4.2 coverage==7.17.4
PACKAGES_wheel       := auditwheel==6.8.2
PACKAGES_lint        := ruff==0.14.6 mypy==1.18.2 pytest==8.4.2
PACKAGES_conformance := jsonschema==4.26.0
PACKAGES_clients     := openai==3.54.0 anthropic==2.12.0 pydantic-ai-slim[openai]==2.68.0 openai-agents==0.24.0 mcp==2.3.0 \
                        langchain==1.5.2 langchain-openai==1.7.4 ollama==0.6.3
PACKAGES_programs    := llm==0.36 openai==3.57.0 prometheus-client==0.26.0 pydantic==2.14.4
PACKAGES_frameworks  := litellm==1.110.2 openai==2.54.0 llama-index-llms-openai-like==0.8.1 smolagents[openai]==1.26.0
PACKAGES_harness     := lm-eval[api]==0.4.13
PACKAGES_instructor  := instructor==1.17.0 openai==3.3.0
PACKAGES_tiny        := torch==2.13.0 numpy==2.4.6 jinja2==3.1.6 pillow==13.0.0
PACKAGES_check       := pillow==13.0.0

# Debian's package, unpacked in place of installed: nothing of it starts by itself.
.venv/prometheus/.complete:
	@command -v dpkg >/dev/null || { \
	  echo "install Prometheus: this target fetches it only on Debian and Ubuntu"; exit 1; }
	@echo "fetching Debian's Prometheus (19 MB)"
	@rm -rf .venv/prometheus
	@mkdir -p .venv/prometheus
	@cd .venv/prometheus && apt-get download --quiet prometheus && dpkg -x *.deb .
	@touch $@

.venv/%/.complete: Makefile
	@echo "making the environment .venv/$*"
	@rm -rf .venv/$*
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lmlite needs Python 3.11 or newer; name it with make PYTHON=..."; exit 1; }
	@$(PYTHON) -m venv .venv/$* || { \
	  echo "Python's venv module is missing (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@.venv/$*/bin/pip install --quiet --disable-pip-version-check $(PACKAGES_$*)
	@touch $@
