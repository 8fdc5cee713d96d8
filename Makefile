# Two commands on a fresh machine: `make quickstart` and `make test`. Both install what they need.
# PYTHON=python3.12 on every call takes that Python, with the newer JAX of requirements-py312.lock.
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
$(if $(VERSION),,$(error $(PYTHON) does not run here))
LOCK := $(firstword $(wildcard requirements-py$(subst .,,$(VERSION)).lock) requirements.lock)
VENV := .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu
export TF_CPP_MIN_LOG_LEVEL ?= 3

# The TPU's compiler, apart from the rest: where JAX finds it, every command looks for a TPU.
LIBTPU := $(shell sed -n 's/^# libtpu==//p' $(LOCK))
LIBTPU_HOME := .cache/libtpu
LIBTPU_INFO := $(LIBTPU_HOME)/libtpu-$(LIBTPU).dist-info

.PHONY: install browser quickstart eval-pusht eval-metaworld test lint docs clean

install: $(VENV)/.installed-$(VERSION)

# An environment of another Python is emptied first. The third line gives a CUDA build of torch its libraries, and does
# nothing for a CPU build.
$(VENV)/.installed-$(VERSION): $(LOCK) setup.cfg
	$(PYTHON) -m venv $(if $(wildcard $(VENV)/lib/python$(VERSION)),,--clear) $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r $(LOCK)
	$(BIN)/pip install -q --disable-pip-version-check torch
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(LIBTPU_INFO): | install
	rm -rf $(LIBTPU_HOME).part
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --target $(LIBTPU_HOME).part libtpu==$(LIBTPU)
	rm -rf $(LIBTPU_HOME) && mv $(LIBTPU_HOME).part $(LIBTPU_HOME)

# Shows a test the server's page. Comes from Debian, not from Python's index.
APT := DEBIAN_FRONTEND=noninteractive apt-get -yq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300
browser:
	@command -v chromium >/dev/null || { $(APT) update && $(APT) install --no-install-recommends chromium; } || \
	  { echo "make test needs Chromium, which apt-get could not install here. As root on Debian: apt-get install chromium"; exit 1; }

quickstart: install
	$(BIN)/python -m launch.quickstart --config=configs/quickstart.py --workdir=runs/quickstart

eval-pusht: install
	$(BIN)/python -m launch.rollout --workdir=runs/quickstart --task=pusht-slide --execute=8

eval-metaworld: install  # draws with Debian's libosmesa6 (apt-get install libosmesa6), or MUJOCO_GL=egl
	$(BIN)/python -m launch.record_tabletop --out=.cache/metaworld
	$(BIN)/python -m launch.train --config=configs/metaworld.py --workdir=runs/metaworld
	$(BIN)/python -m launch.rollout --workdir=runs/metaworld

test: install browser lint $(LIBTPU_INFO)
	$(BIN)/python -m pytest -n 2 --dist loadscope

lint: install
	$(BIN)/ruff check .
	$(BIN)/mypy

# The documentation as a site, built strictly, in an environment of its own.
DOCS := .cache/docs
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(DOCS)/.installed
	$(DOCS)/bin/mkdocs build --quiet
	@echo "open site/index.html"

$(DOCS)/.installed: requirements-docs.lock
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/pip install -q --disable-pip-version-check --no-deps -r requirements-docs.lock
	touch $@

clean:
	rm -rf site $(VENV) runs .cache
