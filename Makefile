# `make help` lists what there is. Everything happens in .venv, which the first target that needs it makes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The pip that a Python brings along may be years old, and needs twice the time to find and unpack what the tests need.
PIP := pip==26.3
# Processes for pytest: three more than cores, because many tests wait for what a server does.
JOBS = $(shell echo $$(($$(nproc) + 3)))

# The native kernel, where it can be built: yes or no; not of the environment, where others may mean something else by it.
NATIVE = yes
PROGRAM := $(VENV)/.installed-$(if $(filter bench,$(MAKECMDGOALS)),bench,runtime)
KERNEL := $(or $(patsubst yes,$(VENV)/.installed-native,$(patsubst no,without-native,$(filter yes no,$(NATIVE)))),$(error NATIVE is yes or no, and not "$(NATIVE)"))

SPARK_VERSIONS ?= 3.5.1 3.5.9 4.0.0 4.1.4
# Iceberg's reader of Parquet, in a Spark of these: its runtime for Spark is a jar of 47 MB, which Maven fetches.
ICEBERG ?= 3.5.9/iceberg-1.10.1
ICEBERG_JAR := org.apache.iceberg:iceberg-spark-runtime-3.5_2.12

# Delta in a Spark of these, and DuckDB with its extension for Delta: the extension on PyPI is of another version.
DELTA ?= 3.5.9/delta-3.3.2
DUCKDB_DELTA ?= 1.4.4

# Telegraf with what the tests need: its other plugins would take half an hour to compile.
TELEGRAF := github.com/influxdata/telegraf/cmd/telegraf@v1.37.2
TELEGRAF_TAGS := custom,inputs.file,inputs.socket_listener,parsers.influx,serializers.influx
TELEGRAF_TAGS := $(TELEGRAF_TAGS),outputs.influxdb,outputs.influxdb_v2,outputs.http

HELM := helm.sh/helm/v3/cmd/helm@v3.22.0
KUBECONFORM := github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0
AZURITE := azurite@3.35.0
FAKE_GCS := github.com/fsouza/fake-gcs-server@v1.56.1
COMPOSE := github.com/compose-spec/compose-go/v2/cmd@v2.16.2

# DuckDB of a version whose extensions are on PyPI.
DUCKDB ?= 1.5.5

.DEFAULT_GOAL := help
.PHONY: help serve native without-native test coverage test-quick test-full test-release test-readers test-spark test-tables test-clients test-senders test-chart test-image \
	test-clouds test-systemd day lint bench fuzz dist release deb lint-deb image test-env clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

serve: $(VENV)/.installed-runtime $(KERNEL) ## install if needed, then run the server with config.toml; NATIVE=no does without the native kernel
	@exec $(BIN)/arcpipe serve --config config.toml

native: $(BIN)/python ## build the native kernel, which reads lines and columns faster, and install it; needs a C compiler
	$(BIN)/python native/install.py

without-native: | $(BIN)/python
	@$(BIN)/python native/install.py --remove

# The tests start hundreds of processes, each of which would compile all that it imports.
test test-quick test-full test-release test-readers test-spark test-tables test-clients test-senders test-chart test-image test-clouds test-systemd day fuzz: export PYTHONDONTWRITEBYTECODE =

# quick: a minute. full: what CI runs. release: all there is, some hours; the last part needs root.
SET ?= full
PYTEST = $(BIN)/pytest -n $(JOBS) --dist worksteal

test: test-env test-$(SET) ## run the tests; SET=quick, full (the default) or release; ARGS="-k name" goes to pytest

test-quick: test-env
	$(BIN)/pytest -n $$(nproc) --dist worksteal --set quick $(ARGS)

test-full: test-env
	$(PYTEST) $(ARGS)

test-release: test-env $(VENV)/.installed-release
	ARCPIPE_TEST_LONG=1 ARCPIPE_CRASH_STATES=100000 $(PYTEST) $(ARGS)
	$(MAKE) --no-print-directory day DAYS=2 ARGS=
	$(MAKE) --no-print-directory fuzz FUZZ_SECONDS=600 ARGS=
	if [ "$$(id -u)" = 0 ]; then $(MAKE) --no-print-directory test-systemd ARGS=; else echo "not run, as it needs root: make test-systemd"; fi

# Of a run with ARCPIPE_TEST_COVERAGE=1: the floor is in pyproject.toml.
coverage: test-env ## tell which lines the quick tests reached, and fail below the floor
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

lint: test-env ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-systemd: test-env ## boot a minimal Debian with arcpipe as its service: needs root, takes minutes
	ARCPIPE_TEST_SYSTEMD=1 $(BIN)/pytest -n 0 -rsP tests/systemd $(ARGS)

test-readers: test-env ## read the files with every engine of Python, ClickHouse among them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable '.[test,readers]' --constraint constraints.txt
	$(BIN)/pytest -n $(JOBS) --dist worksteal tests/readers $(ARGS)

# Spark is 300 MB to 500 MB a version, and needs Java 17 or newer; each version gets an environment of its own.
test-spark: test-env $(SPARK_VERSIONS:%=.venv-spark-%/.installed) $(ICEBERG:%=.venv-spark-%.jar) ## read the files with Spark, SPARK_VERSIONS (3.5.1 3.5.9 4.0.0 4.1.4), and with Iceberg; needs Java, and Maven or ICEBERG=
	ARCPIPE_TEST_SPARK='$(SPARK_VERSIONS) $(ICEBERG)' $(BIN)/pytest -n 0 tests/readers -k spark $(ARGS)

.venv-spark-%/.installed:
	$(PYTHON) -m venv .venv-spark-$*
	.venv-spark-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-compile pyspark==$*
	@touch $@

.venv-spark-$(ICEBERG).jar: .venv-spark-$(firstword $(subst /, ,$(ICEBERG)))/.installed
	mvn -q dependency:copy -Dartifact=$(ICEBERG_JAR):$(lastword $(subst -, ,$(ICEBERG))) -DoutputDirectory='$(CURDIR)/$(@D)'
	mv $(@D)/iceberg-spark-runtime-*.jar $@

# Engines and catalogues that read, change and maintain tables, and are too large for each run of CI.
TABLES_NEED := .tables/iceberg-rest/.installed .tables/duckdb/.installed .venv-spark-$(ICEBERG).jar
TABLES_NEED += .venv-spark-$(DELTA)/.installed .venv-duckdb-$(DUCKDB_DELTA)/.installed
test-tables: test-env $(TABLES_NEED) ## tables in every catalogue, as Spark and DuckDB read and change them; needs Java, Maven and PostgreSQL; half an hour
	ARCPIPE_TEST_LONG=1 ARCPIPE_TEST_SPARK_TABLES='$(ICEBERG)' ARCPIPE_TEST_DELTA='$(DELTA) $(DUCKDB_DELTA)' \
		$(BIN)/pytest -n 2 tests/tables $(ARGS)

# Apache Iceberg's own REST catalogue, which it has for tests.
.tables/iceberg-rest/.installed: tests/tables/iceberg-rest.xml
	mvn -q -f $< dependency:copy-dependencies -DoutputDirectory='$(CURDIR)/$(@D)'
	@touch $@

.tables/duckdb/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile duckdb==$(DUCKDB) \
		duckdb-extensions==$(DUCKDB) duckdb-extension-iceberg==$(DUCKDB) duckdb-extension-avro==$(DUCKDB)
	@touch $@

.venv-spark-$(DELTA)/.installed: .venv-spark-$(firstword $(subst /, ,$(DELTA)))/.installed
	for name in spark_2.12 storage; do \
		mvn -q dependency:copy -Dartifact=io.delta:delta-$$name:$(lastword $(subst -, ,$(DELTA))) -DoutputDirectory='$(CURDIR)/$(@D)' || exit 1; done
	@touch $@

.venv-duckdb-$(DUCKDB_DELTA)/.installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile pytz duckdb==$(DUCKDB_DELTA) 'duckdb-ext-delta==$(DUCKDB_DELTA).*'
	@touch $@

test-clients: test-env ## write with real clients: of Python, and Telegraf, JavaScript's and Go's where Node.js and Go are installed
	@mkdir -p .clients/node && cp tests/clients/node/* .clients/node
	@if command -v npm >/dev/null; then cd .clients/node && npm install --silent --no-audit --no-fund --no-package-lock; else echo "no npm here: JavaScript is skipped"; fi
	@mkdir -p .clients/go
	@if command -v go >/dev/null; then cd tests/clients/go && go build -o ../../../.clients/go ./influxdb2 ./influxdb3; else echo "no go here: Go and Telegraf are skipped"; fi
	@if command -v go >/dev/null; then GOBIN='$(CURDIR)/.clients/go' go install -tags $(TELEGRAF_TAGS) $(TELEGRAF); fi
	$(BIN)/pytest -n 2 tests/clients $(ARGS)

# The Collector and the storage of Prometheus take minutes to compile.
test-senders: test-env ## write telemetry with the SDKs for Go and Java, the Collector and Prometheus; needs Go, Java and Maven
	@mkdir -p .senders
	@if command -v go >/dev/null; then for name in otel-sdk otel-collector prometheus-agent; do \
		(cd tests/clients/telemetry/$$name && go build -o '$(CURDIR)/.senders/' .) || exit 1; done; else echo "no go here: its senders are skipped"; fi
	@if command -v mvn >/dev/null; then mvn -q -f tests/clients/telemetry/java/pom.xml dependency:copy-dependencies \
		-DoutputDirectory='$(CURDIR)/.senders/java'; else echo "no mvn here: the SDK for Java is skipped"; fi
	$(BIN)/pytest -n 2 tests/clients/test_telemetry_senders.py $(ARGS)

# By docker, podman or buildah, whichever is there. BASE is a Debian with Python 3.11 or newer.
VERSION = $$($(BIN)/python packaging/release.py version)
ENGINE ?= $(firstword $(foreach one,docker podman buildah,$(if $(shell command -v $(one)),$(one))))
image: test-env ## build the container image arcpipe:VERSION; BASE, EXTRAS and ENGINE (docker, podman or buildah) may be given
	rm -rf dist/arcpipe-*.whl && $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	$(ENGINE) build --file packaging/Dockerfile $(if $(BASE),--build-arg BASE=$(BASE)) $(if $(EXTRAS),--build-arg EXTRAS=$(EXTRAS)) \
		--build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
		--tag arcpipe:$(VERSION) $(IMAGE_OPTIONS) .

test-image: test-env ## build the image with buildah, run it by bubblewrap, kill it and cut its power: needs root, takes minutes
	ARCPIPE_TEST_IMAGE=1 $(BIN)/pytest -n 0 -rsP tests/packaging/test_image.py $(ARGS)

# Helm, kubeconform and the parser of compose files are Go programs; the schemas of Kubernetes come with kubernetes-validate.
test-chart: test-env ## check the Helm chart and the compose file: what they write, and what they refuse; needs Go
	@mkdir -p .chart-tools
	@if command -v go >/dev/null; then for tool in $(HELM) $(KUBECONFORM) $(COMPOSE); do GOBIN='$(CURDIR)/.chart-tools' go install $$tool || exit 1; done; mv .chart-tools/cmd .chart-tools/compose; else echo "no go here: Helm, kubeconform and compose are not run"; fi
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps kubernetes-validate --constraint constraints.txt
	$(BIN)/pytest -n 2 tests/packaging $(ARGS)

# Azure's emulator is a package of npm, that of Google's a Go program; ARCPIPE_TEST_GCS_ENDPOINT=http://… names another.
test-clouds: test-env ## upload to emulators of Google's and Azure's stores, with tables; needs npm, Go and PostgreSQL
	@mkdir -p .clouds
	@if command -v npm >/dev/null; then cd .clouds && npm install --silent --no-audit --no-fund --no-package-lock $(AZURITE); else echo "no npm here: Azure is skipped"; fi
	@if command -v go >/dev/null; then GOBIN='$(CURDIR)/.clouds' go install $(FAKE_GCS); else echo "no go here: an S3 server stands for Google's"; fi
	$(BIN)/pytest -n 2 tests/integration/test_storage_cloud.py tests/integration/test_lake_store.py \
		tests/tables/test_iceberg_cloud.py $(ARGS)

day: test-env ## try a day of random operations, DAY_SECONDS (600) for each store; SEED (1) is the first of DAYS (1) sequences
	ARCPIPE_TEST_LONG=1 ARCPIPE_TEST_DAY_SECONDS=$(or $(DAY_SECONDS),600) ARCPIPE_TEST_SEED=$(or $(SEED),1) ARCPIPE_TEST_DAYS=$(or $(DAYS),1) \
		$(BIN)/pytest -n 2 tests/crash/test_day.py $(ARGS)

bench: $(VENV)/.installed-bench $(KERNEL) ## run the benchmarks; ARGS goes to them; NATIVE=no measures without the native kernel
	$(BIN)/python -m benchmarks $(ARGS)

fuzz: $(VENV)/.installed-fuzz ## fuzz the edge and the codecs, FUZZ_SECONDS (60) each; ARGS="edge lines --blind --inputs 1000000" picks some
	$(BIN)/python -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),60) $(ARGS)

dist: $(VENV)/.installed-release ## build sdist and wheel of the commit into dist/, the same bytes each time
	$(BIN)/python packaging/release.py build dist

release: $(VENV)/.installed-release ## check this commit, build it into dist/, and tag it with the version of arcpipe/__init__.py
	$(BIN)/python packaging/release.py tag dist

# With this Debian's own Python, for which the package is then: see packaging/README.md.
deb: ## build a Debian package of this checkout into dist/, for the Debian that this is
	packaging/deb/build_deb.py dist

# Spelling in 430 MB of binaries is their authors', and to look for it takes longer than all else.
lint-deb: ## check the Debian packages of dist/, or those of DEBS, with lintian
	lintian --allow-root --dont-check-part binaries/spelling --fail-on error,warning $(or $(DEBS),dist/*.deb)

test-env: $(VENV)/.installed-test $(filter without-native,$(KERNEL)) ## install what tests and checks need

clean: ## remove the environment, builds and caches; ./data stays
	rm -rf $(VENV) .venv-spark-* .venv-duckdb-* .tables .clients .senders .chart-tools .clouds build native/build dist .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis .fuzz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-runtime: EXTRAS =
$(VENV)/.installed-test: EXTRAS = [test]
# Most of what the tests install is never imported: what is gets compiled then.
$(VENV)/.installed-test: PIP_OPTIONS = --no-compile
$(VENV)/.installed-bench: EXTRAS = [bench]
$(VENV)/.installed-release: EXTRAS = [release]
$(VENV)/.installed-fuzz: EXTRAS = [test,fuzz]

# The stamp is newer than the two files that decide what is installed for as long as neither changes.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) --editable '.$(EXTRAS)' --constraint constraints.txt
	@touch $@

# Where it cannot be built there is no stamp. Then native/install.py says why, and remembers what it has tried.
$(VENV)/.installed-native: $(wildcard native/src/* native/arcpipe_native/*.py* native/*.py native/pyproject.toml) \
		| $(PROGRAM)
	-@$(BIN)/python native/install.py --if-possible

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "arcpipe needs Python 3.11 or newer, and there is no $(PYTHON): make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "arcpipe needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1): make PYTHON=/path/to/python3.11 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(PIP)' || echo "not installed: $(PIP); the pip of $(PYTHON) does all else, slower" >&2
