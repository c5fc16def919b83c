# Everything installs into .venv and nothing outside it changes. The first call takes minutes, later ones skip that.
#
#   make demo     train a model on this machine's CPU and watch it get better (about two minutes)
#   make test     what CI runs: check, then every test but the long proofs
#   make prove    the long proofs, each writes a dated page into docs/proofs; also one by one: make prove-kills,
#                 prove-transformers (lowest and highest version allowed), prove-demo (seeds 0 to 4),
#                 prove-replay (other rewards on a run's completions, ten of them by hand)
#   make bench    Reinforge against TRL and transformers on this CPU, and where our time goes (under 30 minutes)
#   make bench-full   what takes longer: all sizes and seeds, and how a step scales (about an hour)
#   make check    lint, format and types only
#   make docs     write the reference pages anew from the code
#   make clean    remove .venv and caches
#
# PYTHON=/path/to/python3.12 make demo      choose the interpreter (3.11 or newer)
# TORCH_INDEX=<url> make demo               where torch comes from; empty: plain pip

BIN := .venv/bin
PYTHON ?=
CPU_TORCH := https://download.pytorch.org/whl/cpu
WORKERS ?= 2

PROOFS := prove-kills prove-transformers prove-demo prove-replay

.PHONY: demo test prove $(PROOFS) bench bench-full check docs clean

demo: .venv/.train
	$(BIN)/reinforge demo

test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope -m "not prove"

prove: $(PROOFS)

prove-kills: PROOF := kills
prove-transformers: PROOF := transformers_bounds
prove-demo: PROOF := demo_seeds
prove-replay: PROOF := replay
$(PROOFS): .venv/.dev
	PYTHONPATH=tests $(BIN)/python -m prove.$(PROOF)

BENCH := $(BIN)/python benchmarks
RESULT = benchmarks/results/$(shell date +%F)

bench: .venv/.dev
	$(BENCH)/vs_trl.py --quick --out $(RESULT)-vs_trl-quick.json
	$(BENCH)/time_to_target.py --quick --out $(RESULT)-time_to_target-quick.json
	$(BENCH)/decode_throughput.py --out $(RESULT)-decode_throughput.json
	$(BENCH)/adapter_throughput.py --out $(RESULT)-adapter_throughput.json
	$(BENCH)/prefix_reuse.py --out $(RESULT)-prefix_reuse.json
	$(BENCH)/reward_throughput.py --seconds 1 --json > $(RESULT)-reward_throughput.json
	$(BENCH)/run_store_throughput.py --out $(RESULT)-run_store_throughput.json
	for shape in short long_prompt long_completion; do $(BENCH)/profile_step.py --shape $$shape || exit 1; done

bench-full: .venv/.dev
	$(BENCH)/vs_trl.py --out $(RESULT)-vs_trl.json
	$(BENCH)/vs_trl.py --size 50M --out $(RESULT)-vs_trl-50M.json
	$(BENCH)/time_to_target.py --out $(RESULT)-time_to_target.json
	$(BENCH)/scaling.py --out $(RESULT)-scaling.json --picture $(RESULT)-scaling.png
	$(BENCH)/policy_lag.py

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src docs/make_reference.py

docs: .venv/.dev
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_seed_findings.py

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist

# One stamp for each set of packages: newer than pyproject.toml means installed.
.venv/.train .venv/.dev: .venv/.%: pyproject.toml | .venv/bin/python
	@index="$${TORCH_INDEX-$$($(find_torch_index))}"; \
	echo "Installing reinforge[$*] into .venv ($${index:-plain pip} for torch)"; \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $${index:+--extra-index-url "$$index"} --editable ".[$*]"
	@touch $@

.venv/bin/python:
	@for candidate in "$(PYTHON)" python3 python3.12 python3.13 python3.11 python3.14 python; do \
	  "$$candidate" -c '$(is_fit)' 2>/dev/null && exec "$$candidate" -m venv .venv; \
	done; \
	echo "Reinforge needs Python 3.11 or newer with its venv module, and found none." >&2; \
	echo "Debian, Ubuntu: sudo apt install python3-venv    macOS: brew install python@3.12" >&2; \
	echo "Or name one:    PYTHON=/path/to/python3.12 make $(MAKECMDGOALS)" >&2; \
	exit 4

is_fit = import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

# PyPI's torch for Linux brings gigabytes of CUDA libraries. Without an NVIDIA GPU, PyTorch's own index of CPU builds
# is used beside PyPI if it answers within 3 seconds (pip prefers 2.x.y+cpu to 2.x.y).
define find_torch_index
[ "$$(uname -s)" = Linux ] && ! [ -e /proc/driver/nvidia/version ] && ! [ -e /dev/dxg ] \
&& $(BIN)/python -c 'import urllib.request as u; u.urlopen("$(CPU_TORCH)/torch/", timeout=3)' 2>/dev/null \
&& echo $(CPU_TORCH)
endef
