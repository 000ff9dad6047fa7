"""Networks compute what they computed before they were rewritten for speed; see golden_runs.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests import golden_runs as golden

TOLERANCE = 1e-5  # of the largest value
# A gradient that is small because its terms cancel has the rounding of the larger ones.
SMALLEST_SCALE = 1 / 20  # of the network's largest gradient


def errors(found: dict[str, np.ndarray], expected: Any) -> dict[str, float]:
    """Return the largest error of each array, relative to the largest value."""
    gradients = [np.abs(expected[k]).max() for k in expected.files if k.startswith("gradient:")]
    least = {"gradient": max(gradients) * SMALLEST_SCALE}
    return {
        name: float(
            np.abs(found[name] - expected[name]).max()
            / max(np.abs(expected[name]).max(), least.get(name.partition(":")[0], 1e-30))
        )
        for name in expected.files
    }


@pytest.mark.parametrize("case", golden.CASES)
def test_a_golden_run_is_repeated(case: str) -> None:
    expected = np.load(golden.FOLDER / f"run_{case}.npz")
    found = golden.run(case)
    assert found.keys() == set(expected.files)
    assert not {name: e for name, e in errors(found, expected).items() if not e <= TOLERANCE}


def test_a_changed_result_is_seen() -> None:
    expected = np.load(golden.FOLDER / "run_resnet20.npz")
    for name in ("infer", "losses", "gradient:fc.weight", "statistics:bn1.running_mean"):
        changed = {key: expected[key].copy() for key in expected.files}
        changed[name].flat[0] += 3 * TOLERANCE * np.abs(expected[name]).max()
        assert errors(changed, expected)[name] > TOLERANCE
