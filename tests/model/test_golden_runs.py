"""Networks compute what they computed before they were rewritten for speed; see golden_runs.py."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from tests.model import golden_runs as golden

# Of the largest value. Processors, and oneDNN's kernels for them, differ in the order of sums: a
# convolution adds up to 576 products, which rounds by sqrt(576) * 2**-24 = 1.4e-6, and 20 of them
# follow each other, which gives 3e-5 if all errors add up.
TOLERANCE = 3e-5
# The way back is as long again. The gradient of a gate's bias is what is left of terms that cancel,
# as the normalisation behind it removes the bias: parameters and images changed by a unit in their
# last place move it by 1.6e-5 on one and the same processor.
GRADIENT_TOLERANCE = 1e-4
# After the first update weights differ by rounding, and no seed keeps every ReLU's input of the
# later steps so far from 0 that all processors agree about its sign. One on the other side takes a
# term from a gradient, which has as few as 32 of them, and the updates change the logits by their
# own size: 2.3e-4 in the logits at the end was seen on two processors, and on one where all
# parameters and images were changed by a unit in their last place. This is for some at once.
LATER_TOLERANCE = 5e-3
LATER = ("infer_after", "later losses")  # and the statistics
# A gradient that is small because its terms cancel has the rounding of the larger ones.
SMALLEST_SCALE = 1 / 20  # of the network's largest gradient


def tolerance(name: str) -> float:
    """Return the largest error that rounding can make of an array, relative as in `errors`."""
    kind = name.partition(":")[0]
    if kind == "gradient":
        return GRADIENT_TOLERANCE
    return LATER_TOLERANCE if kind in (*LATER, "statistics") else TOLERANCE


def by_step(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays with the losses of the first step, and of those after an update, apart."""
    losses = arrays["losses"]
    return {**arrays, "losses": losses[:1], "later losses": losses[1:]}


def errors(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the largest error of each array, relative to the largest value."""
    found, expected = by_step(found), by_step({name: expected[name] for name in expected})
    gradients = [np.abs(expected[k]).max() for k in expected if k.startswith("gradient:")]
    least = {"gradient": max(gradients) * SMALLEST_SCALE}
    return {
        name: float(
            np.abs(found[name] - expected[name]).max()
            / max(np.abs(expected[name]).max(), least.get(name.partition(":")[0], 1e-30))
        )
        for name in expected
    }


@pytest.mark.parametrize("case", golden.CASES)
def test_a_golden_run_is_repeated(case: str) -> None:
    expected = np.load(golden.FOLDER / f"run_{case}.npz")
    found = golden.run(case)
    assert found.keys() == set(expected.files)
    far = {name: e for name, e in errors(found, expected).items() if not e <= tolerance(name)}
    assert not far


def test_a_changed_result_is_seen() -> None:
    expected = np.load(golden.FOLDER / "run_resnet20.npz")
    names = ("infer", "losses", "gradient:fc.weight", "statistics:bn1.running_mean", "infer_after")
    for name in names:
        changed = {key: expected[key].copy() for key in expected.files}
        changed[name].flat[0] += 3 * tolerance(name) * np.abs(expected[name]).max()
        assert errors(changed, expected)[name] > tolerance(name)


def test_updates_of_another_size_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden, "RATE", 1.05 * golden.RATE)
    case = "resnet20_eca"
    found = errors(golden.run(case), np.load(golden.FOLDER / f"run_{case}.npz"))
    assert found["losses"] <= TOLERANCE
    for name in LATER:
        assert found[name] > LATER_TOLERANCE


@pytest.mark.parametrize(
    ("name", "position", "seen_as"), [("losses", 0, "losses"), ("losses", -1, "later losses")]
)
def test_losses_before_and_after_an_update_are_judged_apart(
    name: str, position: int, seen_as: str
) -> None:
    expected = np.load(golden.FOLDER / "run_resnet20.npz")
    changed = {key: expected[key].copy() for key in expected.files}
    changed[name].flat[position] += 1.0
    wrong = [key for key, error in errors(changed, expected).items() if error > 0]
    assert wrong == [seen_as]
