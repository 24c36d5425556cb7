# The project's commands. What is longer than a few lines is a script under
# deploy/ that can be read and tried by itself.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory
.DEFAULT_GOAL := help

# Go build tags of both binaries. A variant gets images of its own:
#     make images GO_TAGS=failpoint CONTROLD_TAG=failpoint
GO_TAGS ?=

BINARIES := build$(if $(GO_TAGS),/$(GO_TAGS))
VERSION  := $(shell git describe --always --dirty --tags 2>/dev/null || echo unknown)
GO_BUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -tags='$(GO_TAGS)'
GO_TOOL  := go tool -modfile=tools/go.mod

.PHONY: help check up down destroy env build images test lint generate verify bench bench-failover

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- A cluster. CONTROLD_PREFIX=name- makes it one of several. ---

check: ## check what `make up` needs, and name what is missing
	@deploy/compose/check.sh

up: check ## build, start the cluster, wait until it is healthy
	@$(MAKE) images
	@deploy/compose/up.sh

down: ## stop the cluster in order; the data stays
	@deploy/compose/down.sh

destroy: ## remove the cluster with its data and secrets (asks first; YES=1 does not)
	@deploy/compose/destroy.sh

env: ## print addresses and passwords: eval "$(make -s env)"
	@deploy/compose/env.sh

# --- Building ---

build: ## build the static binaries into build/
	@$(GO_BUILD) -ldflags='-s -w -X main.version=$(VERSION)' -o $(BINARIES)/controld ./cmd/controld
	@$(GO_BUILD) -ldflags='-s -w' -o $(BINARIES)/controld-node ./cmd/node

images: build ## build the container images
	@. deploy/compose/lib.sh && deploy/images/build.sh $(BINARIES) "$$CONTROLD_TAG"

# --- Working on it ---

test: ## run every test, those against real containers too
	@$(MAKE) images CONTROLD_TAG=test
	@$(MAKE) images CONTROLD_TAG=test-failpoint GO_TAGS=failpoint
	@go vet ./...
	@CONTROLD_TAG=test tools/test.sh

lint: ## check formatting and style
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	@$(GO_TOOL) golangci-lint run ./...
	@if command -v shellcheck >/dev/null; then shellcheck $$(git ls-files -co --exclude-standard '*.sh' .ci/run); \
		else echo 'shellcheck is not installed: the scripts were not checked' >&2; fi

generate: ## generate code from openapi.yaml
	@for config in internal/api/gen/*.yaml; do $(GO_TOOL) oapi-codegen -config $$config openapi.yaml; done

verify: generate ## check that generated files are what `make generate` makes
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	@git diff --exit-code -- internal/api/gen

bench: bench-failover ## run every benchmark

bench-failover: ## measure failovers beside the peers, into docs/benchmarks.md
	@go run ./bench/failover
