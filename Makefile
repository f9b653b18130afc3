# Everyday commands. `make` builds build/duet; `make demo` and `make test` first install what is
# missing on Debian 12 (tools/install_deps.sh says what). The build itself is CMake + Ninja.
BUILD ?= build
PREFIX ?= /usr/local
JOBS ?= $(shell nproc)
CMAKE_FLAGS ?=

.PHONY: all build configure demo test bench lint format docs install deps clean

all: build

deps:
	@tools/install_deps.sh build

configure:
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release $(CMAKE_FLAGS) > /dev/null

build: deps configure
	@cmake --build $(BUILD) --parallel $(JOBS) --target duet

demo: deps configure
	@cmake --build $(BUILD) --parallel $(JOBS) --target duet offline_dbo measure_overlap
	@BUILD=$(BUILD) examples/demo.sh

test: deps configure
	@cmake --build $(BUILD) --parallel $(JOBS)
	@ctest --test-dir $(BUILD) --output-on-failure --no-tests=error -j $(JOBS)

bench:
	@tools/install_deps.sh build bench
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DDUET_BENCH=ON $(CMAKE_FLAGS) > /dev/null
	@cmake --build $(BUILD) --parallel $(JOBS)
	@$(BUILD)/duet bench kernels --threads 1
	@for b in $(BUILD)/bench/*_bench; do [ -x $$b ] && [ -f $$b ] && { echo "== $$b"; $$b || exit 1; }; done; true

# FILES="a.cc b.cc" limits clang-tidy; FORMAT_ONLY=1 leaves it out.
lint: deps
	@tools/install_deps.sh lint
	@tools/lint.sh $(FILES)

format:
	@git ls-files 'src/*.cc' 'src/*.h' 'include/*.h' 'tests/*.cc' 'tests/*.h' 'bench/*.cc' 'bench/*.h' 'examples/*.cc' | xargs clang-format-14 -i

docs: build
	@$(BUILD)/duet internal flags-markdown > docs/flags.md

install: build
	@cmake --install $(BUILD) --prefix $(PREFIX)

clean:
	@rm -rf $(BUILD)
