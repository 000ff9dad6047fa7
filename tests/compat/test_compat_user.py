"""A user's own script on MXNet, GluonCV and MXBoard runs in this environment as it stands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# In a process of its own: up to protobuf 3 TensorBoard's and MXBoard's messages exclude each other.
READER = """
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
board = EventAccumulator(sys.argv[1], size_guidance={"histograms": 0, "scalars": 0})
board.Reload()
print(json.dumps({
    "scalars": [event.value for event in board.Scalars("loss")],
    "histograms": [event.histogram_value.num for event in board.Histograms("weights")],
    "images": [(event.width, event.height) for event in board.Images("first")],
    "pr curves": list(board.PluginTagToContent("pr_curves")),
    "operators": sorted({node.op for node in board.Graph().node}),
}))
"""


def run_python(*arguments: str) -> str:
    answer = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    return answer.stdout


def test_a_script_trains_logs_and_exports(tmp_path: Path) -> None:
    script = str(ROOT / "tests/compat/compat_user_script.py")
    found = json.loads(run_python(script, str(tmp_path)).splitlines()[-1])
    assert found["last loss"] < 0.2 < found["first loss"]
    assert found["onnx error"] < 1e-5
    seen = json.loads(run_python("-c", READER, str(tmp_path / "logs")).splitlines()[-1])
    assert len(seen["scalars"]) == 24
    assert abs(seen["scalars"][-1] - found["last loss"]) < 1e-6
    assert seen["histograms"] == [36] * 24  # weights of 4 filters of 3x3
    assert seen["images"] == [[8, 8]]
    assert seen["pr curves"] == ["curve"]
    assert {"Convolution", "BatchNorm", "FullyConnected"} <= set(seen["operators"])
