# Python 3.11 or newer and make are enough: every target first sets up what it needs in .venv.
#
# pip's own settings are honoured. On Linux pip takes torch with CUDA, which is some gigabytes; for
# the small CPU build set PIP_EXTRA_INDEX_URL to the address of PyTorch's CPU wheel index.

PYTHON ?= $(shell python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV := .venv
IN := $(VENV)/bin
LOG := $(VENV)/install.log
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help quickstart test slow-test browser-test deployment-test flower-versions lint fuzz clean moved

help:
	@echo "make quickstart   fine-tune on digits with ten simulated clients; the result is in runs/"
	@echo "make test         run the tests; make test ARGS=tests/test_adamr.py runs some of them"
	@echo "make lint         check format, style and types"
	@echo "make slow-test    whole runs on Ray, on Flower's engine and on a SuperLink that make test"
	@echo "                  leaves out; takes minutes"
	@echo "make browser-test looks at a report in Chromium, where that is installed: widths, colours, print"
	@echo "make deployment-test"
	@echo "                  run apps on SuperLinks with SuperNodes that are killed, come late or"
	@echo "                  misbehave; takes minutes, and make test leaves it out"
	@echo "make flower-versions"
	@echo "                  test mod and strategy with the Flowers at both ends of what is supported;"
	@echo "                  make flower-versions FLOWERS=1.41.0 takes another one"
	@echo "make fuzz         feed the decoder a million hostile inputs; make fuzz ARGS=-runs=10000000"
	@echo "make clean        remove caches and build output; .venv and runs/ stay"

quickstart: $(VENV)/.ready-all
	$(IN)/fl-darex run configs/quickstart.toml $(ARGS)

# So many files run at once: those that take long wait for processes most of the time. A debugger
# needs AT_ONCE=0. Deployments starve where there are more of them than cores.
AT_ONCE ?= 2
test: $(VENV)/.ready-dev
	$(IN)/pytest -n $(AT_ONCE) --dist loadfile $(ARGS)

# pyproject.toml keeps these tests out of the others by their marks.
slow-test: $(VENV)/.ready-dev
	$(IN)/pytest -n $(AT_ONCE) --dist loadfile -m slow $(ARGS)

browser-test: $(VENV)/.ready-dev
	$(IN)/pytest -m browser -rs tests/test_browser.py $(ARGS)

deployment-test: $(VENV)/.ready-dev
	$(IN)/pytest -n $(AT_ONCE) --dist loadfile -m deployment tests/deployment $(ARGS)

# Each has an environment of its own, without torch, Ray and transformers, which neither half needs.
FLOWERS ?= 1.40.0 1.42.0
PLUG_IN := $(addprefix tests/test_,$(addsuffix .py,handshake strategy wrapped clipping downlink ledger \
    sizes records packet wire_format terms listed block_sum model_cache secagg secagg_wire \
    secure_strategy saveable superlink_bytes arguments check flowers_own))
# Flower's own tests of its strategies, which test_flowers_own runs, are in its repository alone.
FLOWER_REPOSITORY ?= https://github.com/adap/flower
OWN_TESTS := framework/py/flwr/serverapp/strategy

flower-versions: $(addprefix .venv-flower/,$(addsuffix /.ready,$(FLOWERS)))
	for version in $(FLOWERS); do \
	    echo "== flwr $$version"; \
	    source=$$PWD/.venv-flower/$$version/source; \
	    [ -d $$source/$(OWN_TESTS) ] || { rm -rf $$source; \
	        git clone --quiet --depth 1 --filter=blob:none --sparse \
	            --branch framework-$$version $(FLOWER_REPOSITORY) $$source && \
	        git -C $$source sparse-checkout set $(OWN_TESTS); } || \
	        echo "Flower's own tests are skipped: $(FLOWER_REPOSITORY) or its framework-$$version" \
	            "cannot be had; name a clone with FLOWER_REPOSITORY=/path/to/flower" >&2; \
	    tests=; [ ! -d $$source/$(OWN_TESTS) ] || tests=$$source/$(OWN_TESTS); \
	    PYTHONPATH=$$PWD FLOWER_TESTS=$$tests \
	        .venv-flower/$$version/bin/python -m pytest -m "not deployment" $(PLUG_IN) $(ARGS) || exit; \
	done

.venv-flower/%/.ready:
	$(PYTHON) -m venv --clear .venv-flower/$*
	.venv-flower/$*/bin/python -m pip install --disable-pip-version-check --quiet \
	    flwr==$* numpy hypothesis parameterized pytest pytest-timeout
	@touch $@

lint: $(VENV)/.ready-dev
	$(IN)/ruff format --check .
	$(IN)/ruff check .
	$(IN)/mypy

fuzz: $(VENV)/.ready-fuzz
	$(IN)/python fuzz/strangers.py $(ARGS)

clean:
	rm -rf build dist *.egg-info *.fab .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# Stamps: .ready-EXTRA says that this extra is installed. The extras dev and fuzz contain all.
# .unfinished says that an installation was killed, .made-in says for which folder .venv was made:
# in a copied or moved checkout it would run the code of the old place. Both start .venv afresh.
MOVED := $(shell [ ! -e $(VENV)/.made-in ] || [ "$$(cat $(VENV)/.made-in)" = "$$(pwd -P)" ] || echo moved)

$(VENV)/.ready-all $(VENV)/.ready-dev $(VENV)/.ready-fuzz: $(VENV)/.ready-%: pyproject.toml constraints.txt $(MOVED)
	@if [ -n "$(MOVED)" ] || [ -e $(VENV)/.unfinished ] || ! \
	    $(IN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	        echo "fl-darex needs Python 3.11 or newer; $(PYTHON) says:" \
	            "$$($(PYTHON) --version 2>&1)." \
	            "Name another one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	    echo "making $(VENV)"; \
	    $(PYTHON) -m venv --clear $(VENV) || exit 1; \
	fi
	@pwd -P > $(VENV)/.made-in
	@touch $(VENV)/.unfinished
	@echo "installing fl-darex and the packages that it needs into $(VENV): minutes, the first time;" \
	    "follow it in $(LOG)"
	@$(IN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$*]' \
	    >$(LOG) 2>&1; code=$$?; rm -f $(VENV)/.unfinished; \
	if [ $$code -ne 0 ]; then \
	    tail -n 20 $(LOG) >&2; \
	    echo "pip could not install them; all that it said is in $(LOG)" >&2; \
	    exit $$code; \
	fi; \
	echo "installed"
	@touch $(VENV)/.ready-all $@
