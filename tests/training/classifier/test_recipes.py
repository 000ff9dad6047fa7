"""Named recipes: what they say, how flags change them, and that each can be run."""

from __future__ import annotations

import pytest

import train_cifar
from formats.errors import UserError
from model import create_model, list_models
from training.classifier.recipes import RECIPES, epochs_of, with_recipe
from training.settings.schedules import schedule_of


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_complete_training(name: str) -> None:
    config = train_cifar.CifarConfig(**with_recipe(name, {}))
    config.check()
    assert config.model in list_models()
    overrides = {
        key: RECIPES[name][key] for key in ("learning", "attention") if key in RECIPES[name]
    }
    spec = create_model(config.model, 10, **overrides).spec
    assert {key: getattr(spec, key) for key in overrides} == overrides


def test_updates_become_epochs() -> None:
    # 50,000 images make 781 batches of 64, and 640 of a batch of 78.
    assert [epochs_of(n, 64) for n in (64_000, 96_000, 160_000)] == [82, 123, 205]
    assert epochs_of(640, 78) == 1


def test_the_rate_of_the_papers_recipe_falls_at_its_updates() -> None:
    config = train_cifar.CifarConfig(**with_recipe("paper", {}))
    rate = schedule_of(config, 781)
    for fall, before, after in ((64_000, 0.1, 0.01), (96_000, 0.01, 0.001)):
        # Within half an epoch of the published update.
        assert rate(fall - 391) == pytest.approx(before)
        assert rate(fall + 391) == pytest.approx(after)
    assert config.epochs * 781 == pytest.approx(160_000, abs=391)
    assert (config.optimizer, config.wd, config.decay_bias) == ("nag", 1e-4, True)


def test_flags_go_before_a_recipe() -> None:
    assert with_recipe("tf", {"lr": 0.5, "dataset": "shapes"})["lr"] == 0.5
    with pytest.raises(UserError, match="--epochs 100: the recipe paper lowers"):
        with_recipe("paper", {"epochs": 100})
    changed = with_recipe("paper", {"epochs": 100, "lr_steps": (50,)})
    assert changed["lr_steps"] == (50,)
    cosine = train_cifar.CifarConfig(**with_recipe("paper", {"epochs": 9, "schedule": "cosine"}))
    cosine.check()
    assert cosine.lr_steps == ()


@pytest.mark.parametrize(
    ("given", "small"),
    [
        ({}, (24, 15)),
        ({"epochs": 11}, (24, 5)),
        ({"epochs": 1, "warmup_epochs": 0}, (0, 0)),
        ({"epochs": 20, "small_epochs": 3}, (24, 3)),
        ({"small_size": 16}, (16, 15)),
        ({"small_size": 0}, (0, 0)),
        ({"small_epochs": 0}, (0, 0)),
    ],
)
def test_the_short_recipe_starts_on_small_images(
    given: dict[str, int], small: tuple[int, int]
) -> None:
    config = train_cifar.CifarConfig(**with_recipe("short", given))
    config.check()
    assert (config.small_size, config.small_epochs) == small


def test_the_short_recipe_flips_as_it_is_told() -> None:
    assert with_recipe("short", {})["flip_mode"] == "alternating"
    train_cifar.CifarConfig(**with_recipe("short", {"flip": False})).check()
    both = with_recipe("short", {"flip": False, "flip_mode": "alternating"})
    with pytest.raises(UserError, match="--flip-mode alternating mirrors"):
        train_cifar.CifarConfig(**both).check()
