# Every target sets up what it needs by itself, once; `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help train train-glimpse native test test-results test-pythons test-bridge lint types format bench bench-parts board demo test-demo docs test-notebooks gpu gpu-check test-wheel test-gpu-install test-crash test-fuzz horovod test-distributed lock setup clean

# PYTHON=/path/to/python3.11 names the interpreter to build .venv with (3.9 to 3.13); without it, one is looked for.
PYTHON ?=
export PYTHON
VENV = .venv
VENV_GPU = .venv-gpu
VENV_HOROVOD = .venv-horovod
VENV_DEMO = .venv-demo
VENV_NOTEBOOKS = .venv-notebooks
VENV_DOCS = .venv-docs
RUN_DIR = runs/shapes
TRAIN_ARGS = --recipe quick --model attention56_small --dataset shapes --epochs 5
PYTEST_ARGS =
BENCH_ARGS =
CRASH_ARGS =
FUZZ_ARGS =
DEMO_ARGS =
PORT = 6006

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 25

train: setup  ## train a small Attention-56 on the embedded images, within minutes
	@run=$(RUN_DIR); n=1; while [ -e "$$run" ]; do n=$$((n + 1)); run=$(RUN_DIR)-$$n; done; \
	set -x; $(VENV)/bin/python train_cifar.py $(TRAIN_ARGS) --run-dir "$$run"

native: setup  ## build the operators in C++ now, not when they are first needed (a C++ compiler does it)
	$(VENV)/bin/python -m model.native

train-glimpse: setup  ## train the glimpse model on embedded handwritten digits, within minutes
	$(VENV)/bin/python train_mnist_glimpse.py --dataset digits

# As many processes as there are physical cores; a file's tests stay together, since they share what is set up.
test: setup  ## run the tests (real data: ATTENTION_DATA=FOLDER; a part: PYTEST_ARGS=tests/model/test_models.py)
	$(VENV)/bin/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

test-results: setup  ## score all published files on all test images (needs ATTENTION_DATA=FOLDER)
	@[ -n "$$ATTENTION_DATA" ] || { echo "error: make test-results needs ATTENTION_DATA=FOLDER, a folder with" \
	"cifar10/, cifar100/ and mnist/ in it" >&2; exit 2; }
	$(VENV)/bin/python -m pytest -n auto -m results --durations=20 $(PYTEST_ARGS) tests/model/weights/test_results.py tests/training/glimpse/test_glimpse_results.py

test-pythons: setup  ## run a core of the tests on every other Python that is here (3.9 to 3.13, pyenv's too)
	@.ci/test_pythons.sh $(PYTEST_ARGS)

test-bridge: setup  ## run the tests of the PyTorch bridge (sets up .venv-torch, 220 MB)
	@.ci/setup.sh bench-torch .venv-torch
	$(VENV)/bin/python -m pytest tests/bridge $(PYTEST_ARGS)

lint: setup  ## check style and formatting
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .

types: setup  ## check the types
	$(VENV)/bin/python -m mypy

format: setup  ## format the code, and mend what can be mended without thought
	$(VENV)/bin/python -m ruff check --fix .
	$(VENV)/bin/python -m ruff format .

bench: setup  ## measure all networks against PyTorch, one table (BENCH_ARGS="--scaling --epoch --again")
	$(VENV)/bin/python -m benchmarks.networks.bench_networks $(BENCH_ARGS)

bench-parts: setup  ## measure input pipeline, training, glimpse model and export, each by itself
	@failed=0; for name in pipeline.bench_input networks.bench_train glimpse.bench_glimpse export.bench_export; do \
	(set -x; $(VENV)/bin/python -m benchmarks.$$name) || failed=1; done; exit $$failed

board: setup  ## show the curves of all runs in TensorBoard (PORT=6006)
	$(VENV)/bin/python -m tensorboard.main --logdir runs --port $(PORT)

demo: setup  ## show where the networks look, on a page of this machine (DEMO_ARGS="--data-dir DIR --port 8765")
	@.ci/overlay.sh demo $(VENV_DEMO)
	$(VENV_DEMO)/bin/python -m demo $(DEMO_ARGS)

test-demo: setup  ## test that page in a browser (needs Chromium)
	@.ci/overlay.sh demo $(VENV_DEMO)
	$(VENV_DEMO)/bin/python -m pytest tests/demo $(PYTEST_ARGS)

docs: setup  ## make the site of the documents in build/site (a broken link or a wrong docstring fails it)
	@.ci/overlay.sh docs $(VENV_DOCS)
	NO_MKDOCS_2_WARNING=1 $(VENV_DOCS)/bin/python -m mkdocs build
	@echo "open build/site/index.html; with search: python3 -m http.server -d build/site"

test-notebooks: setup  ## run the notebooks; each must end well and give what is committed
	@.ci/overlay.sh notebooks $(VENV_NOTEBOOKS)
	$(VENV_NOTEBOOKS)/bin/python .ci/run_notebooks.py

gpu:  ## set up .venv-gpu: MXNet for CUDA 11.7 with its libraries, 3 GB
	@.ci/setup.sh gpu $(VENV_GPU)

gpu-check: gpu  ## check this machine's GPUs, and print a report to paste into an issue
	$(VENV_GPU)/bin/python -m training.loop.gpu_checklist

test-gpu-install: gpu  ## check that .venv-gpu finds its CUDA libraries, also without a GPU (needs gcc)
	@.ci/test_gpu_install.sh $(VENV_GPU)

horovod:  ## set up .venv-horovod: Horovod built for MXNet on Python 3.10 (JOBS=1: with one compiler at a time)
	@.ci/setup.sh horovod $(VENV_HOROVOD)

# Exit code 3 of the set-up: Horovod cannot be had on this machine. Its message says what is missing.
test-distributed: setup  ## train with 2 processes on the loopback by MXNet's parameter server, then by Horovod
	$(VENV)/bin/python -m pytest tests/training/launch/test_launch.py tests/training/distributed/test_distributed.py $(PYTEST_ARGS)
	@.ci/setup.sh horovod $(VENV_HOROVOD) || { code=$$?; [ $$code = 3 ] || exit $$code; \
	echo "NOT TESTED: Horovod, which this machine cannot have as it is (above); dist_sync has passed" >&2; exit 0; }; \
	set -x; $(VENV_HOROVOD)/bin/python -m pytest tests/training/launch/test_launch.py tests/training/distributed/test_distributed.py -k horovod $(PYTEST_ARGS)

test-wheel: setup  ## build the wheel, install it elsewhere and use it there (a minute)
	$(VENV)/bin/python -m pytest -m wheel tests/test_wheel.py $(PYTEST_ARGS)

test-crash: setup  ## kill a training at every write, flush and rename and at random moments, and resume it
	OMP_NUM_THREADS=1 PYTHONPATH=. $(VENV)/bin/python tests/training/loop/crash_harness.py $(CRASH_ARGS)

test-fuzz: setup  ## load 26,000 randomly changed parameter files, checkpoints and pictures
	OMP_NUM_THREADS=1 PYTHONPATH=. $(VENV)/bin/python tests/formats/fuzz_harness.py $(FUZZ_ARGS)

lock:  ## resolve the dependencies anew into requirements/ (newest versions: LOCK_ARGS=--upgrade)
	.ci/lock.sh $(LOCK_ARGS)

setup:  ## only set up .venv
	@.ci/setup.sh cpu $(VENV)

clean:  ## remove the environments and caches; runs stay
	rm -rf $(VENV) $(VENV).lock $(VENV_GPU) $(VENV_GPU).lock $(VENV_HOROVOD) $(VENV_HOROVOD).lock .venv-torch .venv-torch.lock .venv-demo .venv-docs .venv-notebooks .venv-py3* model/native/build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
