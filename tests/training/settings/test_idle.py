"""Pairs of flags that interact, over all scripts: each is effective, or refused, or told."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

import train_cifar
import train_imagenet
import train_mnist_glimpse
from training.batches.in_memory import TrainBatches
from training.classifier.config import CifarConfig
from training.classifier.imagenet import ImageNetConfig
from training.data.dataset import ImageData
from training.glimpse.config import GlimpseConfig
from training.settings import idle
from training.settings.config import parse_overrides
from training.settings.schedules import schedule_of

CIFAR, IMAGENET, GLIMPSE = train_cifar, train_imagenet, train_mnist_glimpse
CONFIGS: dict[Any, Any] = {CIFAR: CifarConfig, IMAGENET: ImageNetConfig, GLIMPSE: GlimpseConfig}
ALL = (CIFAR, IMAGENET, GLIMPSE)

# What is refused: flags that would do nothing, and what the message names beside them.
REFUSED = [
    (ALL, "--optimizer adam --momentum 0.5", "--momentum", "--optimizer adam"),
    (ALL, "--wd 0 --decay-bias", "--decay-bias", "--wd 0"),
    (ALL, "--schedule cosine --lr-factor 0.5", "--lr-factor", "--schedule cosine"),
    (ALL, "--schedule cosine --lr-patience 3", "--lr-patience", "--schedule cosine"),
    (ALL, "--schedule constant --final-lr 0.0001", "--final-lr", "--schedule constant"),
    (ALL, "--data-changed", "--data-changed", "--resume RUN"),
    (ALL, "--nonfinite-limit 5", "--nonfinite-limit", "--on-nonfinite stop"),
    ((CIFAR, GLIMPSE), "--no-download --mirror x", "--mirror", "--no-download"),
    (ALL[:2], "--epochs 30 --mixup-off-epochs 30 --mixup-alpha 1", "--mixup-alpha", "30 epochs"),
    ((CIFAR,), "--epochs 6 --mixup-alpha 1", "--mixup-alpha", "20 epochs (--mixup-off-epochs)"),
    (ALL[:2], "--mixup-alpha 0 --mixup-off-epochs 3", "--mixup-off-epochs", "--mixup-alpha 0"),
    (ALL[:2], "--scale-batch", "--scale-batch", "one worker"),
    (ALL[:2], "--mask-output x.png", "--mask-output", "--masks FILE"),
    (ALL[:2], "--mask-images 10", "--mask-images", "--mask-score FILE"),
    ((CIFAR,), "--pad 0 --pad-mode reflect", "--pad-mode", "--pad 0"),
    ((CIFAR,), "--cutout none --cutout-prob 0.2", "--cutout-prob", "--cutout none"),
    ((CIFAR,), "--cutout none --cutout-size 8", "--cutout-size", "--cutout none"),
    ((CIFAR,), "--cutout erasing --cutout-size 8", "--cutout-size", "--cutout erasing"),
    ((GLIMPSE,), "--valid-count 9 --valid-fraction 0.2", "--valid-fraction", "--valid-count 9"),
    ((GLIMPSE,), "--image-size 40", "--image-size", "images of mnist"),
    ((GLIMPSE,), "--num-patches 1 --glimpse-scale 2", "--glimpse-scale", "--num-patches 1"),
    (
        (GLIMPSE,),
        "--first-location learned --first-radius 0.5",
        "--first-radius",
        "--first-location learned",
    ),
    (
        (GLIMPSE,),
        "--num-glimpses 1 --intermediate-weight 0.5",
        "--intermediate-weight",
        "--num-glimpses 1",
    ),
    (
        (GLIMPSE,),
        "--reinforce-weight 0 --baseline-weight 0 --reward every",
        "--reward",
        "--reinforce-weight 0",
    ),
    (
        (GLIMPSE,),
        "--reinforce-weight 0 --rollouts 4 --policy-baseline rollouts",
        "--policy-baseline",
        "--reinforce-weight 0",
    ),
    ((GLIMPSE,), "--no-tensorboard --histogram-every 2", "--histogram-every", "--no-tensorboard"),
    ((GLIMPSE,), "--no-tensorboard --log-dir x", "--log-dir", "--no-tensorboard"),
    ((GLIMPSE,), "--plot-epoch 3", "--plot-epoch", "--plot RUN"),
    ((GLIMPSE,), "--std-sweep 0.1 0.2 --std 0.3", "--std", "--std-sweep"),
    ((GLIMPSE,), "--std-sweep 0.1 --checkpoint-dir x", "--checkpoint-dir", "--std-sweep"),
    ((GLIMPSE,), "--run-dir x --checkpoint-dir y", "--checkpoint-dir", "--run-dir"),
    # Refused by the checks of the settings, for more than doing nothing.
    ((GLIMPSE,), "--std-sweep 0.1 --early-stopping 3", "--std-sweep", "--early-stopping"),
    ((CIFAR,), "--no-flip --flip-mode alternating", "--flip-mode alternating", "--no-flip"),
    ((CIFAR,), "--small-size 16", "--small-size", "--small-epochs"),
    ((CIFAR,), "--average-last 3 --ema 0.9", "--average-last", "--ema"),
    ((CIFAR,), "--proxy resnet20", "--proxy", "--harder-share below 1"),
    ((CIFAR,), "--proxy-depth 8 --proxy-every 2", "--proxy-every", "--harder-share below 1"),
    ((CIFAR,), "--on-nonfinite skip --harder-share 0.5", "--on-nonfinite skip", "--harder-share"),
    ((CIFAR,), "--stem-init whitened --finetune x", "--stem-init", "--finetune"),
    (ALL[:2], "--freeze trunk", "--freeze trunk", "--finetune"),
    ((CIFAR,), "--early-stopping 3", "--early-stopping", "--valid-count"),
    (ALL[:1], "--schedule step", "--schedule step", "--lr-steps"),
    (ALL, "--resume x --epochs 3", "--epochs", "--finetune RUN/last.param"),
    (ALL, "--test x --resume y", "--test", "--resume"),
    ((IMAGENET,), "--mirror x", "--mirror", "--data-dir"),
]
# What is no mistake, but said.
TOLD = [
    ((CIFAR,), "--epochs 6", "--mixup-alpha", "20 epochs (--mixup-off-epochs)"),
    (ALL, "--valid-count 9 --epochs 30 --early-stopping 30", "--early-stopping", "--epochs 30"),
    (
        (CIFAR, GLIMPSE),
        "--valid-count 9 --epochs 6 --schedule plateau --eval-every 2 --lr-patience 3",
        "--lr-patience",
        "--eval-every 2",
    ),
    ((CIFAR,), "--dataset shapes --data-dir x", "--data-dir", "shapes"),
    ((GLIMPSE,), "--dataset digits --data-dir x", "--data-dir", "digits"),
    ((CIFAR,), "--recipe quick --dataset folder:x --data-dir y", "--data-dir", "folder:x"),
    ((CIFAR,), "--arch ram --epochs 5 --gamma 0.5", "--lr-factor", "--schedule constant"),
    ((GLIMPSE,), "--num_patches=1 --glimpse_scale=2", "--glimpse-scale", "--num-patches 1"),
]
# Settings of an action that it does not heed.
UNHEEDED = [
    ((CIFAR, IMAGENET), "--test x --epochs 30 --lr 0.5", "--epochs, --lr", "--test"),
    ((CIFAR, IMAGENET), "--predict x a.png --batch-size 9", "--batch-size", "--predict"),
    ((CIFAR, IMAGENET), "--masks x a.png --mask-images 9", "--mask-images", "--masks"),
    ((CIFAR, IMAGENET), "--mask-score x --mask-output y", "--mask-output", "--mask-score"),
    ((CIFAR, IMAGENET), "--list-models --model x", "--model", "--list-models"),
    ((CIFAR, IMAGENET), "--summary attention56_small --lr 1", "--lr", "--summary"),
    ((CIFAR,), "--export-start x/y --classes 3 --epochs 9", "--epochs", "--export-start"),
    ((GLIMPSE,), "--test x --epochs 3", "--epochs", "--test"),
    ((GLIMPSE,), "--plot x --eval-seeds 3", "--eval-seeds", "--plot"),
    ((GLIMPSE,), "--is_train=False --ckpt_dir=x --epochs=3", "--epochs", "--is-train"),
]
# Effective together: nothing is refused or told.
EFFECTIVE = [
    (ALL, "--optimizer sgd --momentum 0.5 --wd 0.1 --decay-bias --epochs 40 --ema 0.9"),
    (ALL[:1], "--schedule step --lr-steps 20 30 --lr-factor 0.5 --mixup-alpha 0.2"),
    (ALL[:1], "--schedule plateau --valid-count 9 --lr-patience 3 --lr-factor 0.5"),
    (ALL, "--schedule linear --final-lr 0.0001 --epochs 40"),
    (ALL, "--on-nonfinite skip --nonfinite-limit 5 --epochs 40"),
    (ALL[:1], "--cutout square --cutout-size 8 --cutout-prob 0.1"),
    (ALL[:1], "--cutout erasing --cutout-prob 0.1 --mixup-off-epochs 3"),
    (ALL[1:2], "--epochs 30 --mixup-alpha 0.2 --mixup-off-epochs 3"),
    (ALL[1:2], "--schedule cosine --epochs 3"),
    (ALL[:1], "--recipe quick --epochs 2"),  # which has no mixup
    (ALL[:1], "--mirror x"),
    (ALL[:1], "--harder-share 0.5 --proxy resnet20 --proxy-depth 11 --proxy-every 1"),
    (ALL[2:], "--num-patches 2 --glimpse-scale 2 --first-radius 0.5"),
]


def rows(table: list[Any]) -> list[Any]:
    return [
        pytest.param(script, *row[1:], id=f"{script.__name__} {row[1]}")
        for row in table
        for script in row[0]
    ]


@pytest.fixture(autouse=True)
def no_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Flags alone are looked at: nothing is trained and no file opened."""
    monkeypatch.chdir(tmp_path)
    for script in ALL:
        monkeypatch.setattr(script, "train", lambda *_: 0)


@pytest.mark.parametrize(("script", "words", "flag", "beside"), rows(REFUSED))
def test_what_would_do_nothing_is_refused(
    script: Any, words: str, flag: str, beside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert flag in error
    assert beside in error
    assert "{" not in error


@pytest.mark.parametrize(("script", "words", "flag", "beside"), rows(TOLD))
def test_what_is_no_mistake_is_told(
    script: Any, words: str, flag: str, beside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(words.split()) == 0
    said, error = capsys.readouterr()
    notes = [line for line in said.splitlines() if line.startswith("note: ") and flag in line]
    assert any(beside in line for line in notes), said
    assert not error


@pytest.mark.parametrize(("script", "words", "flags", "action"), rows(UNHEEDED))
def test_what_an_action_does_not_heed_is_told(
    script: Any, words: str, flags: str, action: str, capsys: pytest.CaptureFixture[str]
) -> None:
    script.main(words.split())  # most have no such file
    said = capsys.readouterr().out
    assert f"note: {flags}: without effect with {action}\n" in said


@pytest.mark.parametrize(("script", "words"), rows(EFFECTIVE))
def test_what_is_effective_together_is_taken_in_silence(
    script: Any, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(words.split()) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("script", ALL)
def test_the_tables_here_have_every_rule(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = CONFIGS[script].IDLE
    found = set()

    def note(config: Any, given: Any, strict: bool = True) -> None:
        for number, rule in enumerate(rules):
            named = set(rule.names) & set(given) or rule.always
            if named and rule.beside(config):
                found.add(number)

    monkeypatch.setattr("training.settings.run_config.check_idle", note)
    for scripts, words, *_ in (*REFUSED, *TOLD):
        if script in scripts:
            script.main(words.split())
    elsewhere = {
        (IMAGENET, "mirror"),  # refused in any case
        (IMAGENET, "data_dir"),  # the data set is always there
        (IMAGENET, "lr_patience"),  # it has no plateau schedule
    }
    missing = {rule.names for number, rule in enumerate(rules) if number not in found}
    assert {names for names in missing if (script, names[0]) not in elsewhere} == set()


# Effective whatever else is given, as far as a training is told at all.
WORDS = (
    "set model dataset data_dir download valid_count epochs batch_size micro_batch optimizer lr "
    "wd schedule warmup_epochs lr_steps clip_gradient ema on_nonfinite early_stopping "
    "eval_every histogram_every seed gpus threads kvstore precision run_dir resume "
    "checkpoint_minutes keep classes wiring learning attention depth steps w_init b_init "
    "normalization init fused flip label_smoothing distributed sync_batch_norm images predict "
    "masks mask_score test finetune freeze list_models summary train_count label_noise pad "
    "crop_size flip_mode shift jitter cutout small_size small_epochs stem_init average_last "
    "harder_share recipe export_start seed_format size crop_area pca_noise patch_size num_patches "
    "pad_value num_glimpses glimpse_hidden loc_hidden location_octaves combine hidden_size "
    "core locator_hidden squash first_location reinforce_to_core baseline_per_glimpse std_final "
    "std_sweep rollouts reinforce_weight baseline_weight rotate scale shear elastic rollouts_eval "
    "eval_seeds is_train best plot gaze plot_freq plot_images output tensorboard"
)
ALWAYS = frozenset(WORDS.split())


@pytest.mark.parametrize("script", ALL)
def test_every_flag_has_been_thought_of(script: Any) -> None:
    """A setting that is added belongs into a rule, or into the list of those that always act."""
    config = CONFIGS[script]
    ruled = {name for rule in config.IDLE for name in rule.names}
    fields = {field.name for field in dataclasses.fields(config)}
    assert fields - ruled - ALWAYS == set()
    assert ruled - fields == set()


def settings(words: str) -> CifarConfig:
    return CifarConfig(
        **{
            "batch_size": 8,
            "mixup_alpha": 0.0,
            "mixup_off_epochs": 0,
            "cutout": "none",
            **parse_overrides(CifarConfig, words.split()),
        }
    )


# Two command lines of which the second must train otherwise.
CHANGES = [
    ("--mixup-alpha 1", ""),
    ("--mixup-alpha 1 --mixup-off-epochs 219", "--mixup-alpha 1 --mixup-off-epochs 0"),
    ("--label-smoothing 0.1", ""),
    ("--cutout erasing", ""),
    ("--cutout erasing --cutout-prob 0.9", "--cutout erasing"),
    ("--cutout square", "--cutout erasing"),
    ("--cutout square --cutout-size 4", "--cutout square"),
    ("--cutout square --cutout-prob 0.9", "--cutout square"),
    ("--pad 2", ""),
    ("--pad 0", ""),
    ("--crop-size 16", ""),
    ("--crop-size 16 --pad 0", "--pad 0"),
    ("--no-flip", ""),
    ("--flip-mode alternating", ""),
    ("--shift 0.2", ""),
    ("--jitter 0.4", ""),
    ("--small-size 16 --small-epochs 2", ""),
    ("--seed 1", ""),
    ("--lr 0.5", ""),
    ("--warmup-epochs 2", ""),
    ("--schedule linear", ""),
    ("--schedule linear --final-lr 0.1", "--schedule linear"),
    ("--final-lr 0.1", ""),
    ("--schedule step --lr-steps 50", "--schedule step --lr-steps 60"),
    ("--schedule step --lr-steps 50 --lr-factor 0.5", "--schedule step --lr-steps 50"),
]


@pytest.mark.parametrize(("first", "second"), CHANGES)
def test_what_is_taken_changes_images_labels_or_rates(first: str, second: str) -> None:
    assert trained_by(settings(first)) != trained_by(settings(second))
    assert trained_by(settings(first)) == trained_by(settings(first))


def trained_by(config: CifarConfig) -> bytes:
    """Return what the second epoch trains on, and all learning rates."""
    pixels = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3)).astype(np.uint8)
    train = TrainBatches(
        ImageData(pixels, np.arange(16, dtype=np.int32) % 4),
        config.batch_size,
        augmentation=config.augmentation(),
        mean=(0.5,) * 3,
        std=(0.2,) * 3,
        classes=4,
        seed=config.seed,
    )
    parts = []
    for epoch in (1, 10):
        mixup = epoch < config.epochs - config.mixup_off_epochs
        for batch in train.epoch(epoch, mixup=mixup):
            soft = b"" if batch.soft_label is None else batch.soft_label.tobytes()
            parts += [batch.image.tobytes(), batch.label.tobytes(), soft]
    rate = schedule_of(config, len(train))
    parts.append(np.array([rate(n) for n in range(1, 2 * config.epochs)]).tobytes())
    return b"".join(parts)


def test_a_value_that_is_off_is_no_contradiction() -> None:
    given = {"cutout": "none", "cutout_prob": 0.0, "mixup_alpha": 0.0, "mixup_off_epochs": 0}
    idle.check_idle(settings("--cutout none --cutout-prob 0"), given)
