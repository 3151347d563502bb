# `make help` lists the targets. Each sets up what it needs, in .tools and .venv; python3, make and bash are enough to begin with.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

PYTHON := .venv/bin/python
UV := .tools/uv/bin/uv

# The instruction set of the artifacts, in AWS's words; this machine's own unless said, so that the tests can import them.
ARCHITECTURE ?= $(if $(filter aarch64 arm64,$(shell uname -m)),arm64,x86_64)

# An activated environment or another project's path would lead these commands elsewhere.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME UV_PROJECT_ENVIRONMENT
export SAM_CLI_TELEMETRY := 0
# cfn-lint wants to know for which region; a deployment takes its own from samconfig.toml.
export AWS_DEFAULT_REGION ?= eu-west-1
# A company's proxy is trusted by the machine, and not by uv's own list of authorities, nor by Node's.
AUTHORITIES := $(firstword $(wildcard /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt))
ifneq ($(AUTHORITIES),)
export UV_SYSTEM_CERTS ?= true
export NODE_EXTRA_CA_CERTS ?= $(AUTHORITIES)
endif
# Without a home to write to, the caches stay in the project.
ifneq ($(shell test -w "$${HOME:-}" && echo yes),yes)
export HOME := $(CURDIR)/.tools/home
$(shell mkdir -p .tools/home)
endif

.PHONY: help demo run token verify repair test test-pooled test-docker soak bench bench-growth bench-peers check build openapi policies licences lock audit sbom clean

help: ## list the targets
	@echo "usage: make TARGET [VARIABLE=value ...]"
	@echo
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/p' Makefile | while IFS=$$'\t' read -r target text; do printf '  %-12s %s\n' "$$target" "$$text"; done

# DATA, JSON, PORT, SUB and SCOPE reach the recipes through the environment, so that the shell keeps their spaces.

demo: .venv/.stamp ## real learners in, certificates out, then exit; DATA=<folder> of another data set, JSON=<file> for the counts
	@exec $(PYTHON) -m local demo $${DATA:+--data "$$DATA"} $${JSON:+--json "$$JSON"}

run: .venv/.stamp ## the whole service on this computer, at http://127.0.0.1:3000; PORT=<number>
	@exec $(PYTHON) -m local run $${PORT:+--port "$$PORT"}

token: .venv/.stamp ## print a token for the running service; SUB=<uuid>, SCOPE="<scopes>"
	@: "$${SUB:?says whose token it is to be: make token SUB=<uuid>}"
	@exec $(PYTHON) -m local token --sub "$$SUB" $${SCOPE:+--scope "$$SCOPE"}

# Make itself ends with 2 whatever it is: `python -m local verify` ends with 1 for what is wrong and 2 for what it could not see.
verify: .venv/.stamp ## whether everything in a database is right; only reads; DATABASE_URL=<url>, or the running service's
	@exec $(PYTHON) -m local verify

repair: .venv/.stamp ## what of that can be mended by itself; DATABASE_URL=<url>; APPLY=1 mends it
	@exec $(PYTHON) -m local repair $(if $(filter 1,$(APPLY)),--apply)

# Verifiers of credentials and the checker of pages are npm packages. Without npm, the tests that need them are skipped.
NODE_MODULES := $(if $(shell command -v npm),$(patsubst %/package.json,%/node_modules/.stamp,$(wildcard tests/*/package.json)))

tests/%/node_modules/.stamp: tests/%/package-lock.json
	npm ci --prefix $(@D)/.. --no-audit --no-fund --ignore-scripts --loglevel=error
	@touch $@

test: .venv/.stamp build $(NODE_MODULES) ## every test that needs no Docker, on a real PostgreSQL
	$(PYTHON) -m pytest

# What refuses hostile input before it gets to the database, or goes to the database itself as Migrate does, is left out.
POOLED := $(filter-out $(addprefix tests/integration/test_,http_edges.py hostile_messages.py naughty_strings.py qti.py trivia.py \
	migrate.py migrate_older.py migrate_under_load.py invariants.py login.py),$(wildcard tests/integration/test_*.py))

test-pooled: .venv/.stamp ## the integration tests through PgBouncer, as through RDS Proxy; fails for a statement that would pin
	POOLED=1 $(PYTHON) -m pytest $(POOLED)

test-docker: .venv/.stamp build ## every function in the SAM CLI's containers; root on Debian gets a Docker engine for it
	@tests/docker/run.sh

SECONDS ?= 600
PROCESSES ?= 4
FAULTS ?= 1

soak: .venv/.stamp ## use the service while faults strike, and check all that is seen; SECONDS=600, SEED=<number>, PROCESSES=4, FAULTS=0
	@exec $(PYTHON) -m tests.soak --seconds $(SECONDS) --processes $(PROCESSES) --faults $(FAULTS) $(if $(SEED),--seed $(SEED))

bench: .venv/.stamp build ## how fast it is, beside the limit of each thing; writes docs/performance.md; SUITE="<suite> ..."
	@exec $(PYTHON) -m tests.bench $(SUITE)

bench-growth: .venv/.stamp ## the same with 1, 5 and 20 million rows of progress, in 11 GB of memory
	@exec $(PYTHON) -m tests.bench growth

bench-peers: .venv/.stamp .tools/peers/.stamp ## the service beside FastAPI with SQLAlchemy, Kolibri and edx-completion; takes 500 MB of disk for them
	@exec $(PYTHON) -m tests.bench peers

check: .venv/.stamp .tools/sam/.stamp .tools/checkov/.stamp ## lint, format, types, SQL, template, and whether what is generated is up to date
	$(UV) lock --check --quiet
	$(UV) lock --check --quiet --project tests/bench/programs
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	.venv/bin/pyright --pythonpath $(PYTHON)
	.venv/bin/lint-imports
	.venv/bin/squawk migrations/*.sql
	.tools/sam/bin/sam validate --lint
	.tools/sam/bin/cfn-lint -- template.yaml
	.tools/checkov/bin/checkov --file template.yaml --framework cloudformation --skip-download --compact --quiet
	$(PYTHON) -m local.openapi --check
	$(PYTHON) -m local.policies --check
	$(PYTHON) scripts/licences.py --check
	for group in $(PACKAGED); do diff <($(call export,$${group%%=*})) "$${group#*=}" || { echo "run: make lock" >&2; exit 1; }; done

# In which folder sam has its own, .aws-sam. The tests build for the other architecture elsewhere, so that neither build disturbs
# the artifacts of the other or its cache.
FOLDER := .
# What is built is told by the architecture and by the names of all files, so that one that is gone is noticed too.
SOURCES := $(shell find functions layers shared migrations -name __pycache__ -prune -o -type f -print | LC_ALL=C sort)
BUILT := $(FOLDER)/.aws-sam/$(ARCHITECTURE)-$(firstword $(shell cksum <<< "$(SOURCES)")).stamp

build: $(BUILT) ## what is deployed, in .aws-sam/build; ARCHITECTURE=arm64|x86_64

openapi: .venv/.stamp ## write the API's description anew
	$(PYTHON) -m local.openapi

policies: .venv/.stamp ## write the table of rights anew
	$(PYTHON) -m local.policies

licences: .venv/.stamp ## write the list of licences of what is deployed anew
	$(PYTHON) scripts/licences.py

lock: $(UV) ## lock the dependencies anew, and write the requirements of layers and functions from the lock
	$(UV) lock
	$(UV) lock --project tests/bench/programs
	for group in $(PACKAGED); do $(call export,$${group%%=*}) > "$${group#*=}"; done

# PyPI tells what is known; one that doesn't know a package at all has not cleared it either.
audit: .tools/audit/.stamp ## fail for a known vulnerability in what is deployed; asks PyPI
	.tools/audit/bin/pip-audit --strict --disable-pip --require-hashes $(foreach group,$(PACKAGED),-r $(lastword $(subst =, ,$(group))))

SBOM ?= .aws-sam/sbom.json
define CHECK_SBOM
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

with open(sys.argv[1]) as file:
    sys.exit(JsonStrictValidator(SchemaVersion.V1_5).validate_str(file.read()))
endef
export CHECK_SBOM
sbom: .tools/audit/.stamp ## write what is deployed as CycloneDX to .aws-sam/sbom.json, or SBOM=<file>
	@mkdir -p $(dir $(SBOM))
	$(UV) export --quiet --frozen --format cyclonedx1.5 --preview-features sbom-export \
		$(foreach group,$(PACKAGED),--only-group $(firstword $(subst =, ,$(group)))) $(LEFT_OUT) --output-file $(SBOM) >/dev/null
	@.tools/audit/bin/python -c "$$CHECK_SBOM" $(SBOM)

clean: ## stop the local service and remove its data and everything built; .venv and .tools stay
	@if [ -d .local ] && [ -x $(PYTHON) ]; then $(PYTHON) -m local stop; fi
	rm -rf .local .aws-sam .pytest_cache .hypothesis .import_linter_cache .coverage

# Which group of pyproject.toml is packaged where. No group stands in two places, and no layer holds what another one has.
PACKAGED := functions=layers/dependencies/requirements.txt documents=layers/documents/requirements.txt \
	fonts=layers/fonts/requirements.txt migrate=functions/migrate/requirements.txt
# The packages of fonts ask for font tools, 30 MB, which nothing here uses.
LEFT_OUT := $(addprefix --no-emit-package ,fontpkg fonttools justmytype)
export = $(UV) export --quiet --frozen --no-header --only-group "$(1)" $(LEFT_OUT)

$(UV): scripts/get_uv.py
	@echo "fetching uv into .tools" >&2
	@python3 scripts/get_uv.py .tools/uv
	@touch $@

.venv/.stamp: pyproject.toml uv.lock .python-version $(UV)
	@echo "setting up .venv" >&2
	@$(UV) sync --frozen --compile-bytecode >&2
	@touch $@

# The SAM CLI asks for versions of boto3 and others that are not the project's.
.tools/sam/.stamp: pyproject.toml uv.lock .python-version $(UV)
	@echo "setting up the SAM CLI in .tools" >&2
	@UV_PROJECT_ENVIRONMENT=.tools/sam $(UV) sync --frozen --only-group sam >&2
	@touch $@

# Checkov asks for older versions still.
.tools/checkov/.stamp: pyproject.toml uv.lock .python-version $(UV)
	@echo "setting up checkov in .tools" >&2
	@UV_PROJECT_ENVIRONMENT=.tools/checkov $(UV) sync --frozen --only-group checkov >&2
	@touch $@

.tools/audit/.stamp: pyproject.toml uv.lock .python-version $(UV)
	@echo "setting up pip-audit in .tools" >&2
	@UV_PROJECT_ENVIRONMENT=.tools/audit $(UV) sync --frozen --only-group audit >&2
	@touch $@

# What is measured beside the service is no part of it, and has a lock of its own.
.tools/peers/.stamp: tests/bench/programs/pyproject.toml tests/bench/programs/uv.lock .python-version $(UV)
	@echo "setting up the peers in .tools" >&2
	@UV_PROJECT_ENVIRONMENT=$(CURDIR)/.tools/peers $(UV) sync --frozen --project tests/bench/programs --compile-bytecode >&2
	@touch $@

# SAM calls the python3.13 that it finds. It packs no compiled files, and Lambda cannot store any, so that each cold start
# would compile all that it imports.
# It makes a new version of a function when code or template change, and not for a parameter's new value, which the alias would
# then never see. So the layer under every function tells when the parameters in samconfig.toml have changed.
$(BUILT): .tools/sam/.stamp template.yaml samconfig.toml $(SOURCES)
	rm -f $(FOLDER)/.aws-sam/*.stamp
	mkdir -p $(FOLDER)
	cd $(FOLDER) && PATH="$(CURDIR)/.tools/sam/bin:$$PATH" sam build --template-file $(CURDIR)/template.yaml \
		--parameter-overrides Architecture=$(ARCHITECTURE)
	.tools/sam/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash $(FOLDER)/.aws-sam/build
	cksum samconfig.toml > $(FOLDER)/.aws-sam/build/SharedLayer/parameters.cksum
	@touch $@
