"""``train_mnist_glimpse.py`` as a user runs it: results, the seed's flags, wrong input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import train_cifar
import train_mnist_glimpse
from formats.param_file import read_params
from formats.weight_file import read_card
from model import list_models
from model.hybrid_loss import LossWeights
from training.augmentation.deform import Deformation
from training.glimpse.config import GlimpseConfig
from training.glimpse.rollouts import Draw
from training.glimpse.task import prepare_glimpse, with_start
from training.loop import engine
from training.records.metrics import read_metrics
from training.records.state_file import load_state

SETTINGS = """
--dataset digits --gpus cpu --hidden-size 12 --glimpse-hidden 12 --loc-hidden 8 --locator-hidden 6
--num-glimpses 3 --epochs 2 --batch-size 128 --plot-freq 1 --M 2 --eval-seeds 2 --plot-images 2
--elastic 0 --tensorboard false --checkpoint-minutes 0
"""
TINY = SETTINGS.split()
PUBLISHED = Path(__file__).resolve().parents[3] / "cifar_param"
CLASSIFIER = PUBLISHED / "attention56_small_shapes_0.9930_315e1841.param"
EVALUATION = ["--M", "2", "--eval-seeds", "2", "--plot-images", "2", "--gpus", "cpu"]


def main(*words: object) -> int:
    try:
        return train_mnist_glimpse.main([str(word) for word in words])
    except SystemExit as exit:  # argparse
        return int(str(exit.code))


def percent(pattern: str, text: str) -> float:
    match = re.search(pattern, text)
    assert match, text
    return float(match.group(1)) / 100


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(*TINY, "--run-dir", folder) == 0
    return folder


def test_a_run_leaves_its_files(whole: Path) -> None:
    names = "config.json env.json metrics.jsonl last.param best.param resume.state curves.png"
    assert not [name for name in names.split() if not (whole / name).is_file()]
    kept = sorted(path.name for path in (whole / "glimpses").iterdir())
    assert kept == ["epoch-0001.path", "epoch-0002.path"]
    rows = read_metrics(whole)
    terms = ["cross_entropy", "baseline", "reinforce", "reward", "location_spread"]
    assert {f"train_{term}" for term in terms} <= set(rows[-1])
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {"valid_acc", "test_acc", "train_acc"} <= set(rows[0])


def test_the_models_of_both_scripts_are_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--list-models") == 0
    glimpse = capsys.readouterr().out.split()
    assert "glimpse_cluttered100" in glimpse
    assert train_cifar.main(["--list-models"]) == 0
    assert sorted(glimpse + capsys.readouterr().out.split()) == list_models()


def test_a_saved_file_scores_what_the_run_recorded(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--test", whole / "last.param", *EVALUATION) == 0
    shown = capsys.readouterr().out
    assert "500 images, error in %" in shown
    for name in ("mean locations", "sampled locations", "mean of probabilities", "random gaze"):
        assert name in shown
    # Evaluation seed 0 is what the training evaluates; the other one is near.
    error = percent(r"1 rollout, mean locations +([\d.]+) ±", shown)
    assert 1 - error == pytest.approx(read_metrics(whole)[-1]["test_acc"], abs=0.06)
    capsys.readouterr()
    assert main("--test", whole / "last.param", *EVALUATION, "--eval-seeds", "1") == 0
    error = percent(r"1 rollout, mean locations +([\d.]+) ±", capsys.readouterr().out)
    assert 1 - error == pytest.approx(read_metrics(whole)[-1]["test_acc"], abs=1e-4)


def test_a_file_of_the_middle_has_the_policy_of_its_time(tmp_path: Path) -> None:
    one = tmp_path / "one"
    words = [*TINY, "--std", 0.3, "--std-final", 0.1, "--keep", 9, "--run-dir", one]
    assert main(*words) == 0
    deviations = {}
    for name in ("epoch-0001.param", "last.param"):
        card = read_card(next(one.rglob(name)))
        assert card is not None
        deviations[name] = card["glimpse"]["deviation"]
    assert deviations == {"epoch-0001.param": 0.2, "last.param": 0.1}


def test_pictures_of_a_file_and_of_a_run(whole: Path, tmp_path: Path) -> None:
    assert main("--plot", whole / "last.param", *EVALUATION, "--output", tmp_path) == 0
    assert main("--plot", whole, "--plot-epoch", "1", "--output", tmp_path) == 0
    assert main("--plot", whole, "--output", tmp_path) == 0
    names = [
        f"{stem}.{kind}"
        for kind in ("png", "gif")
        for stem in ("last_glimpses", "glimpses_epoch_1", "glimpses_epoch_2")
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert getattr(picture, "n_frames", 1) > 1 or name.endswith("png")
            assert min(picture.size) > 50


class Crash(BaseException):
    """Ends the run without a chance to save, as SIGKILL would."""


def without_times(run: Path) -> list[dict[str, Any]]:
    times = ("images_per_sec", "wall_sec")
    return [{k: v for k, v in row.items() if k not in times} for row in read_metrics(run)]


@pytest.mark.parametrize("minutes", [0, 1e-9])  # saved at the ends of epochs, and after each step
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    whole: Path, tmp_path: Path, minutes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise of the policy, its schedule and the average of the weights included."""
    step = engine.Updater.step

    def crashing(self: engine.Updater, batch: object, number: int) -> object:
        if number == 13:  # in the second epoch
            raise Crash
        return step(self, batch, number)  # type: ignore[arg-type]

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(engine.Updater, "step", crashing)
        with pytest.raises(Crash):
            main(*TINY, "--checkpoint-minutes", minutes, "--run-dir", run)
    state = load_state(run)[0]
    assert (state.epoch, bool(state.batch), bool(state.terms)) == (1, minutes > 0, minutes > 0)
    assert main("--resume", run) == 0
    assert (run / "last.param").read_bytes() == (whole / "last.param").read_bytes()
    assert without_times(run) == without_times(whole)


def test_the_command_line_of_the_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = (
        f"--patch_size=8 --num_patches=1 --glimpse_scale=2 --num_glimpses=2 --hidden_size=8 "
        f"--loc_hidden=8 --glimpse_hidden=8 --use_tensorboard=False --ckpt_dir={tmp_path}/ckpt "
        "--random_seed=1 --valid_size=0.2 --init_lr=1e-3 --lr_patience=20 --train_patience=50 "
        f"--use_gpu=False --momentum=0.5 --plot_freq=1 --logs_dir={tmp_path}/logs "
        "--dataset=digits --M=1 --eval_seeds=1 --plot_images=1"
    ).split()
    (tmp_path / "logs").mkdir()  # with the link of a run that is gone
    (tmp_path / "logs" / "ram_2_8x8_2").symlink_to(tmp_path / "nowhere")
    assert main(*seed, "--batch_size=256", "--epochs=1", "--is_train=True", "--resume=False") == 0
    run = tmp_path / "ckpt" / "ram_2_8x8_2"
    assert len(read_params(run / "last.param")) == 20
    assert (tmp_path / "logs" / "ram_2_8x8_2").resolve() == run.resolve()
    said = capsys.readouterr().out
    assert "--momentum (the seed never used it" in said
    assert "\nglimpse_mnist on digits: " in said
    for words in (["--is_train=False"], ["--is_train=False", "--resume=True"]):
        for best, name in ((True, "best.param"), (False, "last.param")):
            assert main(*seed, *words, f"--best={best}") == 0
            assert (
                f"ram_2_8x8_2/{name} (verified): glimpse_mnist on digits" in capsys.readouterr().out
            )
    assert main(*seed, "--resume=True") == 0  # there is nothing left to do
    assert len(read_metrics(run)) == 1
    # What the run does not do is refused, as by --resume FOLDER.
    assert main(*seed, "--resume=True", "--epochs=3", "--random_seed=2", "--batch_size=256") == 2
    error = capsys.readouterr().err
    assert "--resume keeps the settings of the run; --epochs, --seed cannot be changed" in error
    assert len(read_metrics(run)) == 1
    assert main("--is-train", "false", "--resume", run, *EVALUATION) == 0
    assert "best.param (verified)" in capsys.readouterr().out


def test_first_locations_are_scored_as_they_were_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = ["--epochs", "1", "--first-radius", "0", "--num-glimpses", "1", "--plot-freq", "0"]
    assert main(*TINY, *words, "--run-dir", run) == 0
    capsys.readouterr()
    assert main("--test", run / "last.param", *EVALUATION) == 0
    # From the centre nothing is left to chance.
    assert re.search(r"mean locations +[\d.]+ ± 0\.00", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model glimpse_mnits", "did you mean 'glimpse_mnist'"),
        ("--model attention56_small", "is no glimpse model: use train_cifar.py, or one of"),
        ("--dataset digit", "unknown task 'digit'"),
        ("--patch-size 0", "patch_size must be 1 or more, got 0"),
        ("--patch-size 29", "patch_size must be at most the image's 28 pixels, got 29"),
        ("--test x.param --plot x.param", "--test and --plot: one thing at a time"),
        ("--num_glimpses=0", "num_glimpses must be 1 or more, got 0"),
        ("--glimpse-scale 1.5 --num-patches 2", "cannot be averaged down to 8"),
        ("--glimpse-scale inf", "not a finite number"),
        ("--std 0", "--std 0.0: must be more than 0 and at most 1"),
        ("--std-final 2", "--std 2.0: must be more than 0"),
        ("--policy-baseline rollouts", "compares the rollouts of an image: add --rollouts 4"),
        ("--first-radius 1.5", "--first-radius 1.5: must be 0 to 1"),
        ("--first-radius nan", "not a finite number"),
        ("--rollouts 0", "--rollouts 0: must be 1 or more"),
        ("--M 0", "--rollouts-eval 0: must be 1 or more"),
        ("--valid-fraction 1", "--valid-fraction 1.0: must be 0 or more, below 1"),
        ("--ema 1", "--ema 1.0: must be 0 or more and less than 1"),
        ("--clip-gradient -1", "--clip-gradient -1.0: must be 0 or more"),
        ("--batch-size 5000", "does not fit into 1167 training images"),
        ("--reward first", "first"),
        ("--squash relu", "relu"),
        ("--use_gpu=maybe", "--use_gpu maybe: must be True or False"),
        ("--schedule plateau --valid-fraction 0", "--schedule plateau needs held-out images"),
        ("--log-dir FILE", "cannot make this folder"),
        ("--finetune FILE", "FILE"),
        ("--test FILE", "FILE"),
        ("--plot FILE", "FILE"),
        ("--gaze FILE", "FILE"),
        ("--gaze x.param --plot x.param", "--plot and --gaze: one thing at a time"),
        ("--plot-images 17", "--plot-images 17: must be at most 16"),
        ("--std-sweep 0.1 0.10", "--std-sweep 0.1 0.1: give each deviation once"),
        ("--std-sweep 0.1 0.2 --valid-fraction 1e-4", "--std-sweep needs held-out images"),
        ("--checkpoint-dir x", "--run-dir names the folder of the run"),
        ("--test none.param", "none.param"),
        (f"--test {CLASSIFIER}", "attention56_small is no glimpse model: use train_cifar.py"),
        (f"--plot {CLASSIFIER}", "attention56_small is no glimpse model: use train_cifar.py"),
        ("--plot none.param", "none.param"),
        ("--plot EMPTY", "kept no glimpses of epoch 0; kept: none; train with --plot-freq 1"),
        ("--is_train=False --ckpt_dir=none", "ram_6_8x8_1/best.param"),
        ("--resume=True --ckpt_dir=none", "ram_6_8x8_1"),
        ("--resume EMPTY", "EMPTY"),
        ("--dataset mnist --data-dir EMPTY --no-download", "EMPTY"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").write_text("no parameters")
    (tmp_path / "EMPTY").mkdir()
    if "none" not in words and "--resume" not in words:  # these name the folder
        words += " --run-dir run"
    if "--dataset" not in words and "--resume" not in words:
        words += " --dataset digits"
    assert main(*words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1 or "mnist" in words  # which says where it looked
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["EMPTY", "FILE"]
    assert not list((tmp_path / "EMPTY").iterdir())


def test_a_sweep_takes_the_network_of_its_file_and_names_the_best(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--dataset", "digits", "--gpus", "cpu", "--finetune", whole / "last.param"]
    less = ["--epochs", 1, "--plot-freq", 0, "--tensorboard", "false", "--checkpoint-minutes", 0]
    sweep = ["--std-sweep", 0.1, 0.2, "--run-dir", tmp_path / "run"]
    assert main(*start, *less, *sweep) == 0
    shown = capsys.readouterr().out
    runs = {std: tmp_path / "run" / f"std-{std}" for std in ("0.1", "0.2")}
    scores = {std: read_metrics(run)[-1]["valid_acc"] for std, run in runs.items()}
    for std, run in runs.items():
        assert f"std {std}: held-out accuracy {scores[std]:.4f} after 1 epochs" in shown
        assert read_params(run / "last.param")["classifier.fc.weight"].shape == (10, 12)
    assert shown.endswith(f"best: --std {max(scores, key=lambda std: scores[std])}\n")


def test_a_sweep_that_is_stopped_at_once_says_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM in the first epoch of the first training, whose exit code is 0."""

    def stopped(_: Any, config: Any, *__: Any) -> int:
        folder = Path(config.run_dir)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"epochs": config.epochs}))
        return 0

    monkeypatch.setattr(train_mnist_glimpse, "train", stopped)
    assert main("--dataset", "digits", "--std-sweep", 0.1, 0.2, "--run-dir", tmp_path / "run") == 0
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["std-0.1"]
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.endswith("not begun yet: --std-sweep 0.2, in another --run-dir\n")


def test_every_setting_reaches_its_place() -> None:
    config = GlimpseConfig(
        dataset="digits",
        gpus="cpu",
        num_glimpses=3,
        hidden_size=12,
        epochs=2,
        std=0.3,
        std_final=0.1,
        first_radius=0.5,
        rollouts=2,
        seed=7,
        baseline_weight=2.0,
        reinforce_weight=3.0,
        intermediate_weight=4.0,
        reward="every",
        policy_baseline="rollouts",
        rotate=1.0,
        scale=0.2,
        shear=0.3,
        shift=4.0,
        elastic=5.0,
    )
    task = prepare_glimpse(config)
    weights = LossWeights(
        baseline=2.0, reinforce=3.0, intermediate=4.0, reward="every", policy_baseline="rollouts"
    )
    assert task.loss.weights == weights
    changes = Deformation(rotate=1.0, scale=0.2, shear=0.3, shift=4.0, elastic=5.0)
    assert task.loaders.train.deformation == changes
    assert task.draw == Draw(steps=3, std=0.3, radius=0.5, seed=7)
    assert task.rollouts == 2
    steps = 2 * len(task.loaders.train)
    found = [task.std_of(step) for step in (0, steps // 2, steps)]
    assert found == pytest.approx([0.3, 0.2, 0.1])
    # The card of a file has the deviation of its time.
    cards = [task.sections(step)["glimpse"] for step in (0, steps // 2, steps)]
    assert [card["deviation"] for card in cards] == [0.3, 0.2, 0.1]
    assert {card["first_radius"] for card in cards} == {0.5}
    assert task.config.model == "glimpse_mnist"


def test_finetuning_takes_what_the_file_says_also_beside_its_model(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"finetune": str(whole / "last.param"), "loc_hidden": 9}
    given["model"] = "glimpse_mnist"
    started = with_start(GlimpseConfig(**given), given)
    assert (started.num_glimpses, started.hidden_size, started.loc_hidden) == (3, 12, 9)
    assert "num_glimpses 3" in capsys.readouterr().out
    given["model"] = "glimpse_translated"
    assert with_start(GlimpseConfig(**given), given) == GlimpseConfig(**given)


def test_an_unknown_epoch_and_damaged_glimpses(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("--plot", whole, "--plot-epoch", 7) == 2
    assert "kept no glimpses of epoch 7; kept: 1, 2" in capsys.readouterr().err
    file = tmp_path / "glimpses" / "epoch-0003.path"
    file.parent.mkdir()
    file.write_bytes((whole / "glimpses" / "epoch-0002.path").read_bytes()[:-9])
    assert main("--plot", tmp_path) == 2
    assert "the glimpses of epoch 3" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["glimpses"]


def test_a_file_of_another_network_is_refused(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--hidden-size", "13", "--dataset", "digits", *EVALUATION]
    assert main("--test", whole / "last.param", *words) == 2
    assert re.fullmatch(r"error: [^\n]*\n", capsys.readouterr().err)


def test_an_image_folder_in_colour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 3)):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "photos" / split / name / f"{index}.png")
    data = ["--dataset", f"folder:{tmp_path}/photos", "--image-size", "20"]
    words = [*TINY, *data, "--run-dir", tmp_path / "run", "--batch-size", 4, "--epochs", 1]
    assert main(*words, "--first-location", "context", "--core", "lstm", "--num-patches", 2) == 0
    assert read_params(tmp_path / "run" / "last.param")["classifier.fc.weight"].shape == (2, 12)
    assert main("--test", tmp_path / "run" / "last.param", *EVALUATION) == 0
    assert "6 images, error in %" in capsys.readouterr().out
    # A finetuning sees them at the size that the network was trained on.
    given: dict[str, Any] = {"finetune": str(tmp_path / "run" / "last.param")}
    given["dataset"] = "folder:photos"
    assert with_start(GlimpseConfig(**given), given).image_size == 20
    given["image_size"] = 30
    assert with_start(GlimpseConfig(**given), given).image_size == 30
