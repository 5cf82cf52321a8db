# R1 cluster. `make` lists what there is.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
PLAN ?= nano-tp1
MINUTES ?= 150
STREAMS ?= 64
FAILOVER_PLAN ?= nano-dp2-ep2
BIN := $(VENV)/bin
STARTED_AT := $(shell date +%s)
INSTALL := VENV=$(VENV) PYTHON=$(PYTHON) requirements/install.sh

export PYTHONUNBUFFERED := 1
# Many containers set it, and each rank then compiles vLLM and PyTorch anew: twice the time to import them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install serve test test-slow check format nano topology bench-router bench-peers failover upgrade-drill observability chart-check chart-schema kernels-aot test-interpret bench-kernels lock protos clean

##@ Run it
help: ## list the targets
	@awk -F ':.*## ' '/^##@ /{print (n++ ? "\n" : "") substr($$0, 5)} /^[a-z-]+:.*## /{printf "  make %-15s %s\n", $$1, $$2}' \
	  $(MAKEFILE_LIST)

install: $(VENV)/.dev ## make .venv with every pinned package; does something again only when a lock changes
	@echo "installed: $(BIN)/r1"

serve: $(VENV)/.serve ## start the fleet PLAN=nano-tp1 here, until Ctrl-C; ONCE="a question" asks it and ends
	@$(BIN)/r1 rehearse $(PLAN) --started-at $(STARTED_AT) $(if $(ONCE),--once "$$ONCE")
serve: export ONCE := $(value ONCE)

##@ Change it
test: $(VENV)/.dev ## all tests but the slow ones (some 20 minutes on two slow cores); ARGS="..." goes to pytest
	@tests/run.sh $(BIN) $(ARGS)

test-slow: $(VENV)/.dev ## the tests that take minutes each
	@$(BIN)/pytest -m slow $(ARGS)

check: $(VENV)/.dev ## lint, formatting, types, and which room imports which
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev ## format the code, and mend what the linter can
	@$(BIN)/ruff check --fix --quiet
	@$(BIN)/ruff format

nano: $(VENV)/.dev ## train r1-nano from nothing for MINUTES=150, then measure it; OUT=folder spares the shipped one
	@$(BIN)/python -m r1_serve.nano.train --minutes $(MINUTES) --state .r1/nano/state.pt $(if $(OUT),--out $(OUT))
	@$(BIN)/python -m r1_serve.nano.mtp $(if $(OUT),--weights $(OUT))
	@$(BIN)/python -m r1_serve.nano.evaluate $(if $(OUT),--weights $(OUT)) \
	  --card $(or $(OUT),benchmarks/results)/nano_card_cpu_$(shell date +%F) $(ARGS)

##@ Measure it (ARGS=--write keeps the result in benchmarks/results)
topology: $(VENV)/.dev ## ask the same held-out problems of every shipped plan: do the answers differ?
	@$(BIN)/python -m r1_bench.topology $(ARGS)

bench-router: $(VENV)/.dev ## what the router alone costs: CPU a token, added latency, memory
	@$(BIN)/python -m r1_bench.router $(ARGS)

bench-peers: $(VENV)/.dev ## the nano stack beside vLLM's server, vllm-router and Ray Serve LLM, in turns
	@$(BIN)/python -m r1_bench.peers $(ARGS)

failover: $(VENV)/.dev ## kill ranks of FAILOVER_PLAN under STREAMS=64 streams: is a token lost, repeated or different?
	@$(BIN)/python -m r1_bench.failover --streams $(STREAMS) --plan $(FAILOVER_PLAN) $(ARGS)

upgrade-drill: $(VENV)/.dev ## new weights under load: two fleets, routers started anew, an alias moved; anybody dropped?
	@$(BIN)/python -m r1_bench.upgrade $(ARGS)

##@ Chart and dashboards
observability: $(VENV)/.dev ## write the Grafana dashboards, and the chart's copies of them and of Prometheus' rules
	@$(BIN)/python -m r1_serve.observability .

chart-check: $(VENV)/.dev ## render the chart with every values file and variation, and validate what comes out
	@$(BIN)/python -m r1_bench.chart.check helm $(ARGS)

chart-schema: $(VENV)/.dev ## write the chart's values.schema.json and what its checks know, from types and catalog
	@$(BIN)/python -m r1_bench.chart.generate helm

##@ Kernels
kernels-aot: $(VENV)/.dev ## compile every kernel for sm_90 and sm_100 without a GPU, against the committed table
	@$(BIN)/python -m r1_kernels.aot $(ARGS)

test-interpret: $(VENV)/.dev ## the kernels' tests under Triton's interpreter (two minutes)
	@TRITON_INTERPRET=1 $(BIN)/pytest tests/kernels/interpret $(ARGS)

bench-kernels: $(VENV)/.dev ## check and time the fused MoE kernels on this machine's GPU (under ten minutes)
	@$(BIN)/python -m r1_kernels.bench $(ARGS)

##@ Upkeep
lock: $(VENV)/.dev ## resolve requirements/*.lock again from pyproject.toml; UPGRADE=1 takes the newest versions
	@UPGRADE=$(UPGRADE) requirements/lock.sh

protos: $(VENV)/.dev ## write the Python code of serve/r1_serve/protos/*.proto
	@PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m grpc_tools.protoc --proto_path=serve --python_out=serve \
	  --pyi_out=serve --grpc_python_out=serve serve/r1_serve/protos/*.proto

clean: ## remove caches, logs and build output; keeps .venv
	@rm -rf .r1 build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

$(VENV)/.python: ; @$(INSTALL) venv && touch $@
$(VENV)/.serve: requirements/cpu.lock pyproject.toml | $(VENV)/.python ; @$(INSTALL) serve && touch $@
$(VENV)/.dev: requirements/dev.lock $(VENV)/.serve ; @$(INSTALL) dev && touch $@
