# Two commands matter on a new machine: `make demo` and `make test`. The work is in scripts/.
.PHONY: help setup demo test check bench lock canary wheels

help:
	@echo "make demo    set up, start three nodes here, and answer a prompt"
	@echo "make test    set up, check the code, run every test"
	@echo "make check   ruff, pyright, import-linter and what checks scripts, alone"
	@echo "make bench   how much the swarm costs against one process"
	@echo "make setup   the virtual environment in .venv, and nothing more"
	@echo "make lock    the locks of what is installed, made anew"
	@echo "make canary  does it work with the newest and the oldest versions that are permitted?"
	@echo "make wheels  the wheel of this system as it is released; needs Docker on Linux"

setup:
	@PYTHON="$(PYTHON)" scripts/setup.sh

demo: setup
	@.venv/bin/shoal demo

check: setup
	@scripts/check.sh

# What Python and pytest compile is kept for the next process, of which there are hundreds. What is installed is
# compiled when it is imported: of 23,000 files that are some thousands.
test: export PYTHONDONTWRITEBYTECODE =
test: export UV_COMPILE_BYTECODE = 0
test: setup
	@scripts/check.sh tests
	@scripts/pytest.sh -n 3 -m "not swarm"
	@scripts/pytest.sh -n 2 --dist loadfile --no-loadscope-reorder -m "swarm and not alone"
	@scripts/pytest.sh -m alone

lock:
	@KEEP="$(KEEP)" scripts/lock.sh

canary: setup
	@scripts/canary.sh

wheels: setup
	@scripts/wheels.sh

bench: setup
	@.venv/bin/shoal bench overhead
