# Two commands on a fresh machine: `make quickstart` and `make test`. Both install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export JAX_PLATFORMS ?= cpu
export TF_CPP_MIN_LOG_LEVEL ?= 3

# The TPU's compiler, apart from the rest: where JAX finds it, every command looks for a TPU.
LIBTPU := .cache/libtpu

.PHONY: install browser quickstart eval-pusht eval-metaworld test lint clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock setup.cfg
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(LIBTPU): | install
	rm -rf $@.part && $(BIN)/pip install -q --disable-pip-version-check --no-deps --target $@.part libtpu==0.0.42.1
	mv $@.part $@

# Shows a test the server's page. Comes from Debian, not from Python's index.
APT := DEBIAN_FRONTEND=noninteractive apt-get -yq -o Acquire::Retries=3 -o DPkg::Lock::Timeout=300
browser:
	@command -v chromium >/dev/null || { $(APT) update && $(APT) install --no-install-recommends chromium; } || \
	  { echo "make test needs Chromium, which apt-get could not install here. As root on Debian: apt-get install chromium"; exit 1; }

quickstart: install
	$(BIN)/python -m launch.quickstart --config=configs/quickstart.py --workdir=runs/quickstart

eval-pusht: install
	$(BIN)/python -m launch.rollout --workdir=runs/quickstart

eval-metaworld: install  # draws with Debian's libosmesa6 (apt-get install libosmesa6), or MUJOCO_GL=egl
	$(BIN)/python -m launch.record_metaworld --out=.cache/metaworld
	$(BIN)/python -m launch.train --config=configs/metaworld.py --workdir=runs/metaworld
	$(BIN)/python -m launch.rollout --workdir=runs/metaworld

test: install browser lint $(LIBTPU)
	$(BIN)/python -m pytest -n 2 --dist loadscope

lint: install
	$(BIN)/ruff check .

clean:
	rm -rf $(VENV) runs .cache
