# `make demo` and `make test` do all the set-up themselves, in .venv.
VENV ?= .venv
PYTHON ?= python3
RUN = $(VENV)/bin/python
HAS_NODE = node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2> /dev/null

.PHONY: demo test test-long test-slow test-oldest test-arm64 test-c test-js test-studio fuzz conformance zoo anomaly bench cuda check docs dist studio native format models schema clean

demo: $(VENV)/installed
	$(VENV)/bin/vae-export demo --out out/demo

# The processes that tests start share compiled modules, even where the caller's environment writes none.
test test-long test-slow: export PYTHONDONTWRITEBYTECODE =

# A file's tests run in one process, and share what it has trained.
test: $(VENV)/installed-dev
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile

# What takes seconds: documents, clean installs, clusters, kills at random, the quick benchmark, long forms of short tests.
test-long: $(VENV)/installed-dev
	$(RUN) -m pytest -m long -n auto --maxprocesses 4 --dist loadfile

# Every model of docs/compatibility.md that the installed libraries have, and many kills: half an hour.
test-slow: $(VENV)/installed-dev
	$(RUN) -m pytest -m slow -n auto --maxprocesses 4 --dist loadfile

# The runtime's tests on the oldest ONNX Runtime and numpy that are supported, without torch.
test-oldest: .venvs/oldest/installed
	.venvs/oldest/bin/python -m pytest tests/runtime

# Noise vectors and `verify` on emulated aarch64; Debian or Ubuntu, x86-64.
test-arm64:
	bash tests/arm64/run.sh

# vae-runtime in C: builds, tests, sanitizers, valgrind, fuzzing, aarch64; what the machine lacks is skipped by name.
test-c: $(VENV)/installed-dev
	bash runtime/c/test.sh $(RUN)

# The npm package in Node and headless Chromium; skipped without Node 20 or newer.
test-js:
	@if $(HAS_NODE); \
	then cd runtime/js && npm ci --ignore-scripts --no-fund --no-audit && npm test; \
	else echo "test-js: skipped: expected Node 20 or newer, got $$(node --version 2> /dev/null || echo nothing)"; fi

# The page to look at bundles in headless Chromium, held against Python; skipped without Node 20 or newer.
test-studio: $(VENV)/installed-dev
	@if $(HAS_NODE); then $(MAKE) studio/vae_runtime_studio/page && \
		PYTHON="$(abspath $(RUN))" node --test --test-concurrency=1 studio/test/studio.test.mjs; \
	else echo "test-studio: skipped: expected Node 20 or newer, got $$(node --version 2> /dev/null || echo nothing)"; fi

# Fuzz what reads bundles, ten minutes for each target, on Linux; make fuzz FUZZ_SECONDS=60. The corpora stay in out/fuzz.
FUZZ_SECONDS ?= 600
fuzz: .venvs/fuzz/installed
	for target in archive golden graph manifest sums; do \
		.venvs/fuzz/bin/python -m tests.fuzz $$target $(FUZZ_SECONDS) || exit 1; done

# Ask every host that this machine has the cases of conformance/, and write docs/conformance.md.
conformance: $(VENV)/installed-dev
	$(RUN) -m conformance

# Export every model of docs/compatibility.md, other libraries' among them, and write that page; takes half an hour.
zoo: .venvs/zoo/installed
	PYTHONPATH=tests .venvs/zoo/bin/python -m zoo

# What docs/anomaly.md measures, beside pyod's VAE: trains the recipe `digits`. Skipped without the environment of `make zoo`.
ZOO = .venvs/zoo/bin/python
anomaly:
	@if [ -x $(ZOO) ]; \
	then $(ZOO) -m vae_export train --recipe digits --out out/anomaly/run && \
		$(ZOO) -m vae_export export out/anomaly/run --out out/anomaly/bundle --formats onnx --force && \
		PYTHONPATH=tests $(ZOO) -m zoo.anomaly out/anomaly/bundle; \
	else echo "anomaly: skipped: expected $(ZOO), got nothing; make .venvs/zoo/installed installs it"; fi

# docs/benchmarks.md: trains, installs every contender under .venvs, measures; make bench MNIST=DIR BENCH="--quick"
bench: $(VENV)/installed-dev
	$(RUN) -m benchmarks $(if $(MNIST),--mnist "$(MNIST)") $(BENCH)

# On a machine with an NVIDIA GPU: the tests of CUDA, and docs/benchmarks-cuda.md. It takes the packages that PYTHON has;
# ORT_CUDA=DIR holds an ONNX Runtime that was carried there. Without a GPU it is skipped with a message.
cuda:
	@PYTHONPATH="$(CURDIR)/runtime:$(CURDIR)" $(PYTHON) -m benchmarks.gpu \
		$(if $(ORT_CUDA),--onnxruntime "$(ORT_CUDA)") $(CUDA)

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The pages of docs/ and the API reference as a static site, out/site; a warning or a dead link is an error.
docs: $(VENV)/installed-docs
	$(RUN) -m sphinx -q -W --keep-going -E -b html docs out/site

# A release, tried before it is made: sdists, wheels built from them, installed where nothing else is, and the README run there.
dist: $(VENV)/installed-dev
	rm -rf dist .venvs/dist
	$(RUN) -m hatchling build -t sdist -d "$(CURDIR)/dist"
	cd runtime && "$(abspath $(RUN))" -m hatchling build -t sdist -d "$(CURDIR)/dist"
	$(RUN) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w dist dist/*.tar.gz
	@if $(HAS_NODE); then $(MAKE) studio; \
	else echo "dist: without vae-runtime-studio: expected Node 20 or newer, got nothing"; fi
	$(MAKE) native
	$(PYTHON) -m venv .venvs/dist
	.venvs/dist/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		dist/vae_runtime-*.whl "$$(ls dist/vae_export-*.whl)[cpu]" pytest hypothesis
	.venvs/dist/bin/python -m pytest tests/test_readme.py -m "not slow" -k "README.md"

# The page to look at bundles, as the wheel dist/vae_runtime_studio-*.whl; needs Node 20 or newer.
studio: .venvs/studio/installed studio/vae_runtime_studio/page
	cd studio && "$(CURDIR)/.venvs/studio/bin/python" -m hatchling build -t wheel -d "$(CURDIR)/dist"

# The noise in C as wheels, dist/vae_runtime_native-*.whl, for every Linux with glibc 2.17 or newer on x86-64 and arm64: zig
# has a C compiler for each, and auditwheel says whether the wheel keeps what its name promises.
native: .venvs/native/installed
	cd runtime/native && "$(CURDIR)/.venvs/native/bin/python" -m hatchling build -t sdist -d "$(CURDIR)/dist"
	for machine in x86_64 aarch64; do \
		(cd runtime/native && CC="'$(CURDIR)/.venvs/native/bin/python' -m ziglang cc -target $$machine-linux-gnu.2.17" \
			VAE_NATIVE_PLATFORM=manylinux_2_17_$$machine.manylinux2014_$$machine \
			"$(CURDIR)/.venvs/native/bin/python" -m hatchling build -t wheel -d "$(CURDIR)/dist") && \
		.venvs/native/bin/auditwheel show dist/vae_runtime_native-*_$$machine.whl | tr '\n' ' ' | \
			grep -Eq "platform tag:[ \"]*manylinux_2_(5|1[0-7])_$$machine" || exit 1; done

.venvs/native/installed: constraints.txt
	$(PYTHON) -m venv .venvs/native
	.venvs/native/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling ziglang auditwheel
	touch $@

.venvs/studio/installed: constraints.txt
	$(PYTHON) -m venv .venvs/studio
	.venvs/studio/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling
	touch $@

.PHONY: studio/vae_runtime_studio/page
studio/vae_runtime_studio/page: runtime/js/node_modules/.package-lock.json
	cd runtime/js && npm run --silent build
	node studio/build.mjs

runtime/js/node_modules/.package-lock.json: runtime/js/package-lock.json
	cd runtime/js && npm ci --ignore-scripts --no-fund --no-audit

format: $(VENV)/installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# docs/bundle-format.schema.json, made of the fields of the manifest.
schema: $(VENV)/installed-dev
	$(RUN) -m vae_runtime.schema > docs/bundle-format.schema.json

# The bundles that ship. mnist takes MNIST=DIR, the folder with its four IDX files, gzipped or not; pictures takes scikit-image.
models: $(VENV)/installed-dev
	$(RUN) models/build.py $(if $(MNIST),--mnist "$(MNIST)")

clean:
	rm -rf out dist .venvs $(VENV)

$(VENV)/installed: pyproject.toml runtime/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e 'runtime[cpu]' -e '.[cpu]'
	touch $@

# What tests, linters and measurements need beside it.
$(VENV)/installed-dev: $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e 'runtime[cpu]' -e '.[cpu,dev]'
	touch $@

$(VENV)/installed-docs: $(VENV)/installed-dev
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e 'runtime[cpu]' -e '.[cpu,dev,docs]'
	touch $@

.venvs/zoo/installed: pyproject.toml runtime/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venvs/zoo
	.venvs/zoo/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e 'runtime[cpu]' -e '.[cpu,dev,zoo]'
	touch $@

.venvs/fuzz/installed: runtime/pyproject.toml constraints.txt
	$(PYTHON) -m venv .venvs/fuzz
	.venvs/fuzz/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e runtime 'atheris>=3'
	touch $@

.venvs/oldest/installed: runtime/pyproject.toml tests/oldest.txt
	$(PYTHON) -m venv .venvs/oldest
	.venvs/oldest/bin/python -m pip install --quiet --disable-pip-version-check -c tests/oldest.txt -e 'runtime[cpu,image]' pytest hypothesis jsonschema
	touch $@
