"""Own operators of residual units compute the same with any number of threads.

Elsewhere the tests have one thread each, where as many run at once as there are cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.model.execution.test_fused_training import assert_same

ROOT = Path(__file__).resolve().parents[3]
# A pass forwards and back, an update, and inference by a prepared network.
CODE = """
import sys
import mxnet as mx
import numpy as np
from model.execution.fused_training import fuse
from model.execution.inference import prepare_inference
from tests.model.execution.test_fused_training import SEED, SMALL, gradients, network
from training.compute.optimizer import build_trainer
from training.settings.run_config import RunConfig

found = {}
for name, settings in (("attention56", SMALL), ("resnet20_ram", {"steps": 3, "w_init": 0.5})):
    mx.random.seed(SEED)
    net = network(name, **settings)
    image = mx.nd.random.normal(shape=(8, 3, 8, 8))
    prepared = prepare_inference(net, image)
    assert "operators in C++" in prepared.steps[0], prepared.steps
    arrays = {"prepared": prepared(image).asnumpy(), **gradients(net, image, fuse)}
    build_trainer(net, RunConfig(batch_size=8, lr=0.1, wd=1e-3)).update(8)
    for key, parameter in net._collect_params_with_prefix().items():
        arrays[f"{key} after"] = parameter.data().asnumpy()
    found.update({f"{name}:{key}": array for key, array in arrays.items()})
np.savez(sys.argv[1], **found)
"""


@pytest.mark.timeout(600)
def test_any_number_of_threads_gives_the_same(tmp_path: Path, unit_operators: None) -> None:
    results = []
    for threads in (1, 2, 3):
        path = tmp_path / f"{threads}.npz"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", CODE, str(path)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        with np.load(path) as saved:
            results.append(dict(saved))
    first, *others = results
    assert len(first) > 200
    for name in ("attention56:", "resnet20_ram:"):
        expected = {key: array for key, array in first.items() if key.startswith(name)}
        for other in others:
            assert_same(other, expected)
