# The project's commands. What is longer than a few lines is a script under
# deploy/ that can be read and tried by itself.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory
.DEFAULT_GOAL := help

# Go build tags of both binaries. A variant gets images of its own:
#     make images GO_TAGS=failpoint CONTROLD_TAG=failpoint
GO_TAGS ?=

# The tag of the images that the tests make and use; -failpoint is added to it
# for their variant.
TEST_TAG ?= test

BINARIES := build$(if $(GO_TAGS),/$(GO_TAGS))
GO_TOOL  := go tool -modfile=tools/go.mod

IMAGES := postgres pgbouncer pgbackrest redis controld
BASES  := bookworm trixie

# prepare finds out what a target needs, within a second or two, and leaves in
# $$missing the packages that are to be installed. The targets of "In parallel"
# install them, beside the building. exec: a signal to this make reaches that one.
prepare  = missing=$$(deploy/prepare.sh check $(1))
parallel = exec $(MAKE) -j TARGET=$(1) MISSING="$$missing" all-images

.PHONY: help check up down destroy env build images test test-quick test-long mutate lint generate verify bench bench-failover \
	build-controld build-node \
	packages packages-postgres packages-pgbouncer packages-pgbackrest all-images test-images $(IMAGES:%=image-%) $(BASES:%=base-%)

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- A cluster. CONTROLD_PREFIX=name- makes it one of several. ---

check: ## check what `make up` needs, and name what is missing
	@INSTALL=no deploy/prepare.sh check up

up: ## build, start the cluster, wait until it is healthy (INSTALL=no installs no package)
	@$(call prepare,up) && $(call parallel,up)
	@deploy/compose/up.sh

down: ## stop the cluster in order; the data stays
	@deploy/compose/down.sh

destroy: ## remove the cluster with its data and secrets (asks first; YES=1 does not)
	@deploy/compose/destroy.sh

env: ## print addresses and passwords: eval "$(make -s env)"
	@deploy/compose/env.sh

# --- Building ---

build: build-controld ## build the static binaries into build/

# One after the other, for they have much in common. The nodes' is first, because
# two images can be finished while the other one is being compiled.
build-controld: build-node
build-controld build-node:
	@GO_TAGS='$(GO_TAGS)' deploy/images/binaries.sh $(BINARIES) $(@:build-%=%)

images: ## build the container images
	@$(call prepare,images) && $(call parallel,images)

# --- In parallel. What they say to each other: TARGET, which they are made for,
# and MISSING, the packages that it lacks. ---

all-images: $(IMAGES:%=image-%)

packages:
	@deploy/prepare.sh install $(TARGET) $(MISSING)

$(BASES:%=base-%): packages
	@deploy/images/base.sh $(@:base-%=%)

# Only the certificates are needed to download modules.
ifneq (,$(filter ca-certificates,$(MISSING)))
build-node: packages
endif

packages-postgres:  base-bookworm
packages-pgbouncer packages-pgbackrest: base-trixie

# Where there is a binary already they are not built beside anything.
packages-postgres packages-pgbouncer packages-pgbackrest:
	@[ -e $(BINARIES)/controld-node ] || exec deploy/images/build.sh packages $(@:packages-%=%)

image-postgres:  packages-postgres build-node
image-pgbouncer: packages-pgbouncer build-node
image-pgbackrest: packages-pgbackrest build-node
image-redis:     base-bookworm
image-controld:  base-bookworm build-controld

$(IMAGES:%=image-%):
	@. deploy/compose/lib.sh && exec deploy/images/build.sh $(@:image-%=%) $(BINARIES) "$$CONTROLD_TAG"

# The second variant differs in its binaries alone and takes all else from the
# first one's layers.
test-images:
	@$(MAKE) -j all-images CONTROLD_TAG=$(TEST_TAG)
	@$(MAKE) -j all-images CONTROLD_TAG=$(TEST_TAG)-failpoint GO_TAGS=failpoint MISSING=

# --- Working on it ---

test: ## run every test, those against real containers too (PKG=, RUN=: some)
	@$(call prepare,test) && exec $(MAKE) TARGET=test MISSING="$$missing" test-images
	@CONTROLD_TAG=$(TEST_TAG) PKG='$(PKG)' RUN='$(RUN)' tools/test.sh

test-quick: ## run what needs no container, without the race detector: for the inner loop
	@. deploy/lib.sh && CGO_ENABLED=0 go test "$${go_flags[@]}" -short $(or $(PKG),./...)

test-long: ## run the tests that take too long for make test (LONG=name: one)
	@$(call prepare,test) && exec $(MAKE) TARGET=test MISSING="$$missing" test-images
	@CONTROLD_TAG=$(TEST_TAG) tools/test-long.sh

mutate: ## mutation tests of the packages that decide (PKG=: one)
	@PKG='$(PKG)' tools/mutate.sh

lint: ## check formatting and style
	@$(call prepare,lint) && deploy/prepare.sh install lint $$missing
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	@. deploy/lib.sh && export CGO_ENABLED=0 GOFLAGS="$$(go env GOFLAGS) $${go_flags[*]}" && \
		$(GO_TOOL) golangci-lint run --build-tags long ./...
	@shellcheck .ci/run $$(find bench deploy tools -name '*.sh')

generate: ## generate code from openapi.yaml
	@for config in internal/api/gen/*.yaml; do $(GO_TOOL) oapi-codegen -config $$config openapi.yaml; done

verify: generate ## check that generated files are what `make generate` makes
	@$(call prepare,verify) && deploy/prepare.sh install verify $$missing
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	@git diff --exit-code -- internal/api/gen

bench: bench-failover ## run every benchmark

bench-failover: ## measure failovers beside the peers, into docs/benchmarks.md
	@go run ./bench/failover
