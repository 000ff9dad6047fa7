"""Learning rates against their formulas, at every update, in any order of asking."""

from __future__ import annotations

import math
import pickle
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import UserError
from training.settings.schedules import KINDS, Schedule, schedule_of

UNUSED = {"warmup_epochs": 0, "lr_steps": (), "lr_factor": 0.1, "final_lr": 0.0}


def build_schedule(kind: str, *, base_lr: float, steps_per_epoch: int, **more: Any) -> Schedule:
    """The schedule of a training with these settings."""
    config = SimpleNamespace(**{**UNUSED, "schedule": kind, "lr": base_lr, **more})
    return schedule_of(config, steps_per_epoch)


def rates(schedule: Any, count: int) -> list[float]:
    """Rates of the updates 1 to count, as MXNet asks for them."""
    return [schedule(update) for update in range(1, count + 1)]


def test_warm_up_is_the_line_of_the_published_log() -> None:
    # PistonY's 97.14 run: batch 640, 78 updates per epoch, peak 1.0, 5 epochs of warm-up, 220 in
    # all.
    schedule = build_schedule(
        "cosine", base_lr=1.0, epochs=220, steps_per_epoch=78, warmup_epochs=5
    )
    for epoch in range(5):
        at_the_end = min(1.0, (epoch + 1) * 78 / (5 * 78 - 1))
        assert schedule((epoch + 1) * 78) == pytest.approx(at_the_end, rel=1e-12)
    assert schedule(5 * 78 - 1) == schedule(5 * 78) == 1.0
    assert schedule(5 * 78 + 1) < 1.0


@pytest.mark.parametrize("warmup", [0, 2])
def test_cosine_by_its_formula(warmup: int) -> None:
    schedule = build_schedule(
        "cosine", base_lr=0.4, final_lr=0.1, epochs=10, steps_per_epoch=7, warmup_epochs=warmup
    )
    first, length = warmup * 7, (10 - warmup) * 7
    for update in range(first, first + length):
        share = (1 + math.cos(math.pi * (update - first) / (length - 1))) / 2
        assert schedule(update) == pytest.approx(0.1 + 0.3 * share, rel=1e-12)
    assert schedule(69) == schedule(70) == schedule(1000) == pytest.approx(0.1, abs=1e-15)


def test_linear_falls_in_equal_steps() -> None:
    schedule = build_schedule("linear", base_lr=1.0, final_lr=0.5, epochs=2, steps_per_epoch=3)
    assert rates(schedule, 6) == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.5])


def test_exponential_falls_by_one_factor() -> None:
    schedule = build_schedule(
        "exponential", base_lr=0.1, final_lr=0.001, epochs=2, steps_per_epoch=3, warmup_epochs=0
    )
    found = rates(schedule, 5)
    ratios = [after / before for before, after in zip(found, found[1:])]
    assert ratios == pytest.approx([0.01 ** (1 / 5)] * 4)
    assert schedule(0) == 0.1
    assert schedule(5) == schedule(6) == pytest.approx(0.001)


def test_constant_after_a_warm_up() -> None:
    schedule = build_schedule("constant", base_lr=0.3, epochs=3, steps_per_epoch=4, warmup_epochs=1)
    assert rates(schedule, 12) == pytest.approx([0.1, 0.2, *[0.3] * 10])


@pytest.mark.parametrize("warmup", [0, 1, 0.5])
def test_steps_fall_at_the_first_update_of_their_epoch(warmup: float) -> None:
    schedule = build_schedule(
        "step",
        base_lr=1.0,
        epochs=5,
        steps_per_epoch=10,
        warmup_epochs=warmup,
        lr_steps=(2, 4),
        lr_factor=0.5,
    )
    expected = [1.0] * 20 + [0.5] * 20 + [0.25] * 10
    assert rates(schedule, 50)[10:] == expected[10:]


@pytest.mark.parametrize("kind", KINDS)
def test_rates_do_not_depend_on_the_order_of_asking_and_survive_pickling(kind: str) -> None:
    def fresh() -> Any:
        return build_schedule(
            kind,
            base_lr=0.1,
            final_lr=0.01,
            epochs=9,
            steps_per_epoch=5,
            warmup_epochs=2,
            lr_steps=(3, 6),
        )

    schedule, expected = fresh(), [fresh()(update) for update in range(60)]
    updates = list(range(60)) * 2
    random.Random(3).shuffle(updates)
    for update in updates:
        assert schedule(update) == expected[update]
    # Trainer.save_states pickles the optimizer with its schedule.
    assert [pickle.loads(pickle.dumps(schedule))(update) for update in range(60)] == expected


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(KINDS),
    epochs=st.integers(1, 6),
    steps=st.integers(1, 6),
    warmup=st.floats(0, 5.9),
    final=st.floats(0, 0.25),
)
def test_every_length_gives_finite_rates_that_rise_once_and_then_fall(
    kind: str, epochs: int, steps: int, warmup: float, final: float
) -> None:
    if kind == "exponential" and final < 1e-300:
        return
    if warmup >= epochs or ((kind == "step" and warmup > epochs - 1) or epochs < 2):
        return
    schedule = build_schedule(
        kind,
        base_lr=0.25,
        final_lr=final,
        epochs=epochs,
        steps_per_epoch=steps,
        warmup_epochs=warmup,
        lr_steps=(epochs - 1,),
    )
    given_rates = rates(schedule, epochs * steps)
    highest = given_rates.index(max(given_rates))
    assert given_rates[highest] > 0
    assert given_rates[:highest] == sorted(given_rates[:highest])
    assert given_rates[highest:] == sorted(given_rates[highest:], reverse=True)
    assert all(0 <= rate <= 0.25 + 1e-12 for rate in given_rates)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_of_one_or_two_updates_trains_at_the_base_rate(kind: str, steps: int) -> None:
    schedule = build_schedule(kind, base_lr=0.1, epochs=1, steps_per_epoch=steps)
    assert rates(schedule, steps) == [0.1] * steps


def test_a_warm_up_of_one_update_does_not_divide_by_zero() -> None:
    schedule = build_schedule("cosine", base_lr=0.1, epochs=5, steps_per_epoch=1, warmup_epochs=1)
    assert [schedule(0), schedule(1)] == [0.1, 0.1]
    assert schedule(4) == 0.0


def test_mxnet_asks_from_one() -> None:
    mx = pytest.importorskip("mxnet")
    schedule = build_schedule("linear", base_lr=1.0, epochs=1, steps_per_epoch=5)
    optimizer = mx.optimizer.SGD(lr_scheduler=schedule)
    weight = mx.nd.zeros(1)
    seen = []
    for _ in range(5):
        optimizer.update(0, weight, mx.nd.ones(1), None)
        seen.append(-weight.asscalar())
    steps = [seen[0], *(b - a for a, b in zip(seen, seen[1:]))]
    assert steps == pytest.approx(rates(schedule, 5), abs=1e-6) == [0.75, 0.5, 0.25, 0.0, 0.0]


GOOD = {"kind": "cosine", "base_lr": 0.1, "epochs": 4, "steps_per_epoch": 3}
STEP = {"kind": "step", "lr_steps": (2,)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "cosin"}, "unknown learning rate schedule 'cosin'; choose from cosine, step"),
        ({"base_lr": 0.0}, "learning rate 0.0; choose a positive"),
        ({"base_lr": float("nan")}, "learning rate nan; choose a positive"),
        ({"epochs": 0}, "0 epochs of 3 steps"),
        ({"steps_per_epoch": 0}, "4 epochs of 0 steps"),
        ({"warmup_epochs": 4}, "warm-up of 4 epochs does not fit into 4 epochs"),
        ({"warmup_epochs": -1}, "warm-up of -1 epochs"),
        ({"kind": "exponential"}, "needs a --final-lr above 0"),
        ({"final_lr": 0.2}, "final learning rate 0.2; choose 0 to 0.1"),
        ({"final_lr": -0.1}, "final learning rate -0.1"),
        ({**STEP, "lr_steps": ()}, "none were given"),
        ({**STEP, "lr_steps": (3, 2)}, "at epochs 3, 2; they must rise"),
        ({**STEP, "lr_steps": (4,)}, "below 4, the number of epochs"),
        ({**STEP, "lr_steps": (0,)}, "at epochs 0"),
        ({**STEP, "warmup_epochs": 3}, "after the warm-up of 3 epochs"),
        ({**STEP, "lr_factor": 0.0}, "learning rate factor 0.0"),
    ],
)
def test_bad_values_are_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {**GOOD, **change}
    with pytest.raises(UserError, match=message):
        build_schedule(arguments.pop("kind"), **arguments)


@pytest.mark.parametrize("warmup", [0, 1, 3])
@pytest.mark.parametrize("kind", ["cosine", "linear", "step", "constant"])
def test_rates_are_those_of_gluoncv_bit_for_bit(kind: str, warmup: int) -> None:
    from gluoncv.utils import LRScheduler, LRSequential

    length = (9 - warmup) * 5
    settings: dict[str, Any] = {"target_lr": 0.02}
    if kind == "step":
        places = [epoch * 5 + 1 - warmup * 5 for epoch in (4, 7)]
        settings = {"step_iter": places, "step_factor": 0.3}
    theirs = [LRScheduler(kind, base_lr=0.7, niters=length, **settings)]
    if warmup:
        theirs.insert(0, LRScheduler("linear", base_lr=0.0, target_lr=0.7, niters=warmup * 5))
    ours = build_schedule(
        kind,
        base_lr=0.7,
        final_lr=0.02,
        epochs=9,
        steps_per_epoch=5,
        warmup_epochs=warmup,
        lr_steps=(4, 7) if kind == "step" else (),
        lr_factor=0.3,
    )
    assert rates(ours, 50) == rates(LRSequential(theirs), 50)
