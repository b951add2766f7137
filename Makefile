# Every target sets up what it needs. Start with: make demo
PY = .venv/bin/python

.PHONY: demo demo-strongswan test lint types bench build image scenarios asan soak fuzz kernel-peer clean

demo: ; @tools/setup build fast net && $(PY) -m ipsec.cli.demo
demo-strongswan: ; @tools/setup build fast net interop && $(PY) -m ipsec.cli.demo_strongswan
test: ; @tools/setup build fast net test && $(PY) -m pytest -n auto --dist loadgroup
lint: ; @tools/setup build fast && $(PY) -m ruff check .
types: ; @tools/setup build fast && $(PY) -m mypy
bench: ; @tools/setup build fast net interop bench && $(PY) -m bench
build: ; @tools/setup build fast && $(PY) -m pip wheel -q --no-deps -w dist .
image: ; @tools/setup build fast containers && $(PY) -m tools.image $(if $(BASE),--base $(BASE))
scenarios: ; @tools/setup build fast net containers && $(PY) -m tools.scenarios $(ONLY)
asan: ; @tools/setup build fast net test && tools/asan
soak: ; @tools/setup build fast net test && $(PY) -m pytest -m slow --hypothesis-profile=soak --timeout=3600
fuzz: ; @tools/setup build fast net test && $(PY) -m pip install -qq 'atheris>=2.3' && $(PY) -m tests.fuzz
kernel-peer: ; @tools/setup build fast net test interop kernel && $(PY) -m pytest -m interop tests/interop/test_kernel.py
clean: ; rm -rf build dist .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .fuzz ipsec/*.so *.egg-info
