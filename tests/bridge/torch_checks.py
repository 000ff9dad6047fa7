"""Checks of the training in PyTorch, run by test_bridge_train.py in an environment that has it.

    .venv-torch/bin/python tests/bridge/torch_checks.py FOLDER

FOLDER has what the tests made with MXNet: ``tiny-symbol.json`` and ``tiny.param``, a network for
28x28 pictures, and ``updates-NAME.npz``, what MXNet's optimizers did. Every ``check_*`` function is
run; FOLDER/results.json gets its name and None, or the traceback.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import bridge.train  # noqa: E402
from bridge.bench import _forward_flops  # noqa: E402
from bridge.graph.symbol_module import SymbolModule  # noqa: E402
from bridge.loop import engine as torch_engine  # noqa: E402
from bridge.loop import fit as torch_fit  # noqa: E402
from bridge.loop.average import TensorAverage  # noqa: E402
from bridge.loop.device_batches import DeviceBatches  # noqa: E402
from bridge.loop.engine import unchanged  # noqa: E402
from bridge.loop.optimizer import OPTIMIZERS, clip_norm  # noqa: E402
from bridge.loop.prepare import (  # noqa: E402
    _as_before,
    _described,
    choose_device,
    with_network,
)
from bridge.loop.settings import BridgeConfig  # noqa: E402
from bridge.loop.state import collect_state, restore  # noqa: E402
from bridge.loop.updater import FIRST_SCALE, StepSettings, Updater  # noqa: E402
from formats.errors import UserError  # noqa: E402
from formats.images.preprocessing import figures_of  # noqa: E402
from formats.param_file import read_params  # noqa: E402
from formats.weight_file import read_card  # noqa: E402
from training.augmentation.augment import Augmentation  # noqa: E402
from training.batches.in_memory import TrainBatches  # noqa: E402
from training.classifier.config import OVERRIDES  # noqa: E402
from training.data.dataset import ImageData  # noqa: E402
from training.records.metrics import read_metrics  # noqa: E402
from training.records.run_progress import Progress  # noqa: E402
from training.records.state_file import load_state  # noqa: E402

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
CPU = torch.device("cpu")
AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {"pad": 0, "flip": False},
    "crop": {"pad": 4, "crop_size": 20},
    "reflect": {"pad": 23, "pad_mode": "reflect"},
    "alternating": {"pad": 4, "flip_mode": "alternating"},
    "shift": {"pad": 3, "shift": 0.2},
    "square": {"cutout": "square", "cutout_size": 9},
    "erasing": {"cutout": "erasing", "cutout_prob": 0.9},
    "mixup": {"mixup_alpha": 0.7},
    "smoothing": {"label_smoothing": 0.1},
    "all": {"shift": 0.1, "cutout": "erasing", "mixup_alpha": 0.2, "label_smoothing": 0.1},
}


def batches_of(**settings: Any) -> TrainBatches:
    rng = np.random.default_rng(5)
    images = rng.integers(0, 256, (96, 24, 28, 3), np.uint8)
    data = ImageData(images, rng.integers(0, 7, 96).astype(np.int32))
    return TrainBatches(
        data,
        32,
        augmentation=Augmentation(**settings),
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.3, 0.25),
        classes=7,
        seed=3,
    )


def pairs(source: TrainBatches, mixup: bool = True) -> Iterator[tuple[Any, Any, Any]]:
    """Yield a batch as NumPy makes it, and images and soft labels as PyTorch does."""
    device = DeviceBatches(source, CPU)
    for batch, plan in zip(source.epoch(1, mixup), device.plans(1, mixup, 0)):
        yield batch, *(tensor.numpy() for tensor in device.make(plan))


def check_batches_have_the_pixels_of_train_cifar() -> None:
    for name, settings in AUGMENTATIONS.items():
        for batch, image, label in pairs(batches_of(**settings)):
            assert np.array_equal(batch.image, image), name
            soft = batch.soft_label
            if soft is None:
                soft = np.eye(7, dtype=np.float32)[batch.label]
            assert np.array_equal(soft, label), name


def check_mixup_can_be_off() -> None:
    for batch, image, label in pairs(batches_of(mixup_alpha=0.7), mixup=False):
        assert np.array_equal(batch.image, image)
        assert set(label.ravel()) == {0.0, 1.0}


def check_colour_jitter_differs_by_rounding_only() -> None:
    std = np.array([0.2, 0.3, 0.25])[:, None, None] * 255
    for batch, image, _ in pairs(batches_of(jitter=0.4)):
        levels = np.abs(batch.image - image) * std
        assert levels.max() < 1.01, levels.max()
        assert (levels > 0.5).mean() < 1e-3


def check_an_epoch_can_begin_anywhere() -> None:
    device = DeviceBatches(batches_of(mixup_alpha=0.7), CPU)
    whole = [device.make(plan)[0] for plan in device.plans(2, True, 0)]
    later = [device.make(plan)[0] for plan in device.plans(2, True, 2)]
    assert len(later) == len(whole) - 2
    assert torch.equal(later[0], whole[2])


def check_optimizers_do_what_mxnet_does() -> None:
    for name in OPTIMIZERS:
        with np.load(FOLDER / f"updates-{name}.npz") as saved:
            known = {key: saved[key] for key in saved.files}
        first = {"a.weight": known["first"].copy(), "a.gamma": known["first"].copy()}
        weights = {key: torch.from_numpy(value) for key, value in first.items()}
        config = BridgeConfig(optimizer=name, wd=0.01, momentum=0.9)
        optimizer = OPTIMIZERS[name](weights, config)
        for step, gradient in enumerate(torch.from_numpy(known["gradients"]), 1):
            lr = torch.tensor(optimizer.rate(0.3 / step, step))
            optimizer.update([gradient, gradient], lr)
            for key, weight in weights.items():
                expected = known[key][step - 1]
                error = np.abs(weight.numpy() - expected).max()
                # NAG to the bit: its kernel has no other order. The others round elsewhere.
                assert error <= (0 if name == "nag" else 1e-5), (name, key, step, error)


def check_an_average_of_no_step_is_the_network() -> None:
    value = torch.zeros(3)
    average = TensorAverage({"w": value}, 0.9)
    value.fill_(5)
    average.update(7)
    with average.applied():
        assert torch.equal(value, torch.full((3,), 5.0))
    saved = {f"average:{name}": array for name, array in average.arrays().items()}
    other = TensorAverage({"w": value}, 0.9)
    other.load(saved, 7)
    with other.applied():
        assert torch.equal(value, torch.full((3,), 5.0))
    other.load(saved, 8)
    with other.applied():
        assert torch.equal(value, torch.zeros(3))


def check_gradients_are_clipped_over_all_parameters() -> None:
    gradients = [torch.tensor([3.0, 0.0]), torch.tensor([4.0])]
    clip_norm(gradients, 1.0)
    assert torch.allclose(torch.cat(gradients), torch.tensor([0.6, 0.0, 0.8]))
    clip_norm(gradients, 2.0)
    assert torch.allclose(torch.cat(gradients), torch.tensor([0.6, 0.0, 0.8]))


def linear_updater(**settings: Any) -> Updater:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    config = BridgeConfig(optimizer="nag", wd=0.0)
    optimizer = OPTIMIZERS["nag"](dict(module.named_parameters()), config)
    return Updater(module, optimizer, StepSettings(8, **settings))


def linear_batch() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(8, 3, 2, 2, generator=generator)
    return image, torch.eye(3)[torch.arange(8) % 3]


def check_micro_batches_add_up() -> None:
    whole, parts = linear_updater(), linear_updater(micro_batch=3)
    assert parts.parts == [3, 3, 2]
    for updater in (whole, parts):
        updater.set_rate(0.5, 1)
        updater.step(*linear_batch())
    for one, other in zip(whole.optimizer.weights, parts.optimizer.weights):
        assert torch.allclose(one, other, atol=1e-6)
    assert torch.allclose(whole.totals, parts.totals)


def check_smoothing_makes_no_image_less_right() -> None:
    image, label = linear_batch()
    label[0] = 0.25 * label[0] + 0.75 * label[1]  # a mixed one
    smooth = 0.8 * label + 0.2 / 3
    hard, soft = linear_updater(), linear_updater(smoothing=0.2)
    hard._backward(image, label)
    soft._backward(image, smooth)
    assert hard.totals[1].item() > 0
    assert math.isclose(hard.totals[1].item(), soft.totals[1].item(), abs_tol=1e-5)


def check_a_step_is_the_gradient_of_the_mean_loss() -> None:
    updater = linear_updater()
    weight = updater.optimizer.weights[0]
    before, (image, label) = weight.detach().clone(), linear_batch()
    loss = torch.nn.functional.cross_entropy(updater.module(image), label)
    (gradient,) = torch.autograd.grad(loss, weight)
    updater.set_rate(0.5, 1)
    updater.step(image, label)
    assert torch.allclose(weight, before - 0.5 * 1.9 * gradient, atol=1e-6)
    assert math.isclose(updater.totals[0].item(), 8 * loss.item(), rel_tol=1e-6)


def check_a_step_clips_the_gradient_of_the_mean_loss() -> None:
    limit, image, label = 0.1, *linear_batch()
    for settings in ({}, {"micro_batch": 3}, {"half": torch.float16}):
        updater = linear_updater(clip=limit, **settings)
        weights = updater.optimizer.weights
        before = [weight.detach().clone() for weight in weights]
        loss = torch.nn.functional.cross_entropy(updater.module(image), label)
        gradients = torch.autograd.grad(loss, weights)
        norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients))
        assert norm > 2 * limit
        updater.set_rate(0.5, 1)
        for _ in range(30):  # in float16 the scale falls first
            updater.step(image, label)
            if not torch.equal(before[0], weights[0]):
                break
        for weight, old, gradient in zip(weights, before, gradients):
            wanted = old - 0.5 * 1.9 * gradient * limit / norm
            assert torch.allclose(weight, wanted, atol=1e-4 if "half" in settings else 1e-6)


def check_float16_skips_a_step_that_overflows() -> None:
    updater = linear_updater(half=torch.float16)
    assert updater.scale == FIRST_SCALE
    image, label = linear_batch()
    before = [weight.detach().clone() for weight in updater.optimizer.weights]
    updater.set_rate(0.5, 1)
    updater.step(image * 1e30, label)
    assert all(map(torch.equal, before, updater.optimizer.weights))
    assert updater.scale == FIRST_SCALE / 2
    for _ in range(10):  # the scale falls until it fits
        updater.step(image, label)
    assert not torch.equal(before[0], updater.optimizer.weights[0])
    assert 1 < updater.scale < FIRST_SCALE / 2


def check_trial_steps_leave_no_trace() -> None:
    updater = linear_updater()
    before = [tensor.detach().clone() for tensor in updater.tensors()]
    with unchanged(updater):
        updater.set_rate(0.5, 1)
        updater.step(*linear_batch())
        assert not torch.equal(before[0], updater.tensors()[0])
    assert all(map(torch.equal, before, updater.tensors()))


def check_the_average_follows_its_formula() -> None:
    value = torch.zeros(3)
    average = TensorAverage({"w": value}, 0.9)
    expected = 0.0
    for step in range(1, 33):
        value.fill_(step)
        average.update(step)
        if step % 8 == 0:
            keep = min(0.9**8, (1 + step // 8) / (10 + step // 8))
            expected = expected * keep + step * (1 - keep)
    assert np.allclose(average.arrays()["w"], expected)
    with average.applied():
        assert torch.allclose(value, torch.full((3,), expected))
    assert value[0] == 32


def train(*argv: str, stop_at: int = 0) -> int:
    """Run bridge.train in this process; stop before update `stop_at`, as a deadline does."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        if stop_at:
            reached = lambda fit: fit.progress.step >= stop_at  # noqa: E731
            stack.enter_context(mock.patch.object(torch_fit.TorchFit, "_stop", reached))
        return bridge.train.main([*argv])


def started(folder: Path, *more: str) -> tuple[str, ...]:
    return (
        "--symbol", str(FOLDER / "tiny-symbol.json"), "--recipe", "quick", "--dataset", "digits",
        "--epochs", "2", "--train-count", "320", "--mixup-alpha", "0.3", "--cutout", "erasing",
        "--micro-batch", "40", "--ema", "0.9", "--run-dir", str(folder), *more,
    )  # fmt: skip


def check_a_resumed_run_ends_with_the_same_bits() -> None:
    whole, cut = FOLDER / "whole", FOLDER / "cut"
    assert train(*started(whole)) == 0
    # Stopped within the first epoch, and within the second.
    assert train(*started(cut), stop_at=3) == 75
    assert train("--resume", str(cut), stop_at=8) == 75
    assert train("--resume", str(cut)) == 0
    for name in ("last.param", "best.param"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes(), name
    timed = ("images_per_sec", "wall_sec")
    rows = [
        [{k: v for k, v in row.items() if k not in timed} for row in read_metrics(folder)]
        for folder in (whole, cut)
    ]
    assert rows[0] == rows[1]
    assert [row["epoch"] for row in rows[0]] == [1, 2]
    env = json.loads((cut / "env.json").read_text())
    assert len(env["bridge"]) == 3
    assert len(env["resumes"]) == 2


def check_a_deadline_and_signals_end_a_training_saved() -> None:
    whole = FOLDER / "for signals"
    assert train(*started(whole)) == 0
    set_rate, last = Updater.set_rate, (whole / "last.param").read_bytes()
    for name, number, code in (("term", signal.SIGTERM, 0), ("int", signal.SIGINT, 130)):
        folder = FOLDER / name

        def stopping(self: Updater, lr: float, step: int, number: int = number) -> None:
            set_rate(self, lr, step)
            if step == 3:
                signal.raise_signal(number)

        with mock.patch.object(Updater, "set_rate", stopping):
            assert train(*started(folder)) == code
        assert 3 <= load_state(folder)[0].step < 10
        assert train("--resume", str(folder)) == 0
        assert (folder / "last.param").read_bytes() == last
    folder = FOLDER / "deadline"
    assert train(*started(folder, "--stop-after", "0.001")) == 75
    assert load_state(folder)[0].step < 10
    assert train("--resume", str(folder)) == 0
    assert (folder / "last.param").read_bytes() == last


def check_held_out_images_end_a_training_early() -> None:
    folder = FOLDER / "early"
    judged = ("--valid-count", "100", "--early-stopping", "1", "--lr", "1e-12")
    assert train(*started(folder, *judged, "--epochs", "4")) == 0
    rows = read_metrics(folder)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[0]["valid_acc"] >= rows[1]["valid_acc"]
    assert load_state(folder)[0].epoch == 2
    assert (folder / "last.param").exists()
    assert (folder / "best.param").exists()


def check_a_killed_training_goes_on_from_its_last_checkpoint() -> None:
    class Killed(BaseException):
        pass

    whole, folder, set_rate = FOLDER / "for a kill", FOLDER / "killed", Updater.set_rate
    assert train(*started(whole)) == 0

    def killed(self: Updater, lr: float, step: int) -> None:
        if step == 4:
            raise Killed
        set_rate(self, lr, step)

    often = mock.patch.object(torch_fit, "SECONDS", 0.0)
    with often, mock.patch.object(Updater, "set_rate", killed), contextlib.suppress(Killed):
        train(*started(folder, "--checkpoint-minutes", "1e-9"))
    assert load_state(folder)[0].step == 3
    assert train("--resume", str(folder)) == 0
    assert (folder / "last.param").read_bytes() == (whole / "last.param").read_bytes()


def check_weights_that_are_not_finite_replace_no_file() -> None:
    folder, step = FOLDER / "diverged", Updater.step
    count = iter(range(1, 100))

    def diverging(self: Updater, image: Any, label: Any) -> None:
        step(self, image, label)
        if next(count) == 3:
            self.optimizer.weights[0].data.fill_(math.inf)

    often = mock.patch.object(torch_fit, "SECONDS", 0.0)
    said = io.StringIO()
    with often, mock.patch.object(Updater, "step", diverging), contextlib.redirect_stderr(said):
        assert train(*started(folder, "--checkpoint-minutes", "1e-9", "--compile", "eager")) == 2
    assert "is no longer finite after step 3" in said.getvalue(), said.getvalue()
    assert load_state(folder)[0].step == 2
    weights = read_params(folder / "last.param")
    assert all(np.isfinite(value).all() for value in weights.values())


def check_a_float16_training_goes_on_with_its_scale() -> None:
    def updater() -> Updater:
        module = SymbolModule.from_files(FOLDER / "tiny-symbol.json", FOLDER / "tiny.param")
        config = BridgeConfig(optimizer="nag")
        optimizer = OPTIMIZERS["nag"](dict(module.named_parameters()), config)
        return Updater(module, optimizer, StepSettings(8, half=torch.float16))

    first, other = updater(), updater()
    first.scale, first.sound_steps = 4.0, 7
    state = collect_state(first, Progress(), None, "eager")
    meta = json.loads(state.pop("meta").tobytes())
    restore(other, state, meta)
    assert (other.scale, other.sound_steps) == (4.0, 7)


def check_dropout_draws_the_same_masks_after_a_resume() -> None:
    content = json.loads((FOLDER / "tiny-symbol.json").read_text())
    nodes = content["nodes"]
    # The picture goes through dropout first.
    image = next(i for i, node in enumerate(nodes) if node["name"] == "image")
    reading = [node for node in nodes if [image, 0, 0] in node["inputs"]]
    assert len(reading) == 1
    nodes.insert(image + 1, {"op": "Dropout", "name": "drop", "attrs": {"p": "0.5"}, "inputs": []})
    for node in nodes:
        node["inputs"] = [[i + (i > image), *rest] for i, *rest in node["inputs"]]
    nodes[image + 1]["inputs"] = [[image, 0, 0]]
    (place,) = [i for i, entry in enumerate(reading[0]["inputs"]) if entry[0] == image]
    reading[0]["inputs"][place] = [image + 1, 0, 0]
    content["heads"] = [[i + (i > image), *rest] for i, *rest in content["heads"]]
    content["arg_nodes"] = [i for i, node in enumerate(nodes) if node["op"] == "null"]
    (FOLDER / "drop-symbol.json").write_text(json.dumps(content))
    whole, cut = FOLDER / "drop whole", FOLDER / "drop cut"
    own = ("--symbol", str(FOLDER / "drop-symbol.json"), "--start", str(FOLDER / "tiny.param"))
    assert train(*started(whole), *own) == 0
    assert train(*started(cut), *own, stop_at=3) == 75
    assert train("--resume", str(cut)) == 0
    assert (whole / "last.param").read_bytes() == (cut / "last.param").read_bytes()


def check_a_run_goes_on_with_and_without_event_files() -> None:
    folder = FOLDER / "boards"
    assert train(*started(folder), stop_at=3) == 75
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tensorboard": True}))
    (folder / "events.out.tfevents.1.x.000").write_bytes(b"not read")
    assert train("--resume", str(folder), "--no-tensorboard") == 0
    assert (folder / "events.out.tfevents.1.x.000").read_bytes() == b"not read"


def check_an_engine_that_does_not_work_here_gives_way() -> None:
    updater = linear_updater()
    build = torch_engine.build_step

    def building(of: Updater, name: str, batch: Any) -> Any:
        if name == "compile":
            raise OSError("no compiler")
        return build(of, name, batch)

    said = io.StringIO()
    with mock.patch.object(torch_engine, "build_step", building), contextlib.redirect_stderr(said):
        _, engine, _ = torch_engine.choose_step(updater, "auto", linear_batch(), 0.0, "compile")
    assert engine == "eager"
    assert "--compile compile does not work here: no compiler" in said.getvalue()


def check_a_named_gpu_is_the_current_one() -> None:
    chosen: list[Any] = []
    ones = mock.patch.object(torch, "ones", return_value=torch.full((2,), 1.0))
    with ones, mock.patch.object(torch.cuda, "set_device", chosen.append):
        choose_device("cuda:1")
        choose_device("cpu")
    assert chosen == [torch.device("cuda:1")]


def check_a_finished_run_gets_its_digest_back() -> None:
    folder = FOLDER / "digest"
    assert train(*started(folder)) == 0
    (folder / "resume.state.sha256").unlink()
    assert train("--resume", str(folder)) == 0
    assert (folder / "resume.state.sha256").exists()


def check_a_run_goes_on_from_its_own_grey_file() -> None:
    first = FOLDER / "grey"
    assert train(*started(first)) == 0
    again = ("--start", str(first / "last.param"))
    assert train(*started(FOLDER / "grey again"), *again) == 0
    # Whatever the pictures are by then, they are normalized as they were.
    config = _as_before(BridgeConfig(resume=str(first)))
    image = (read_card(first / "last.param") or {})["image"]
    assert figures_of(config.normalization, 1) == (tuple(image["mean"]), tuple(image["deviation"]))
    assert _as_before(BridgeConfig(symbol="s")).normalization == "dataset"


def check_event_files_are_refused_at_the_start() -> None:
    said, folder = io.StringIO(), FOLDER / "board"
    without = mock.patch.dict(sys.modules, {"mxboard": None})
    with without, contextlib.redirect_stderr(said):
        assert train(*started(folder, "--tensorboard")) == 2
    assert "--tensorboard needs MXBoard and MXNet" in said.getvalue(), said.getvalue()
    assert not folder.exists()


def check_settings_of_a_card_are_notes_too() -> None:
    settings = {"wiring": "paper", "attention": "tanh", "channels": [8, 8, 8]}
    card = json.dumps({"model": "attention56", "classes": 3, "settings": settings})
    attributes = {"__network__": "attention56", "__card__": card, "__learning__": '"nal"'}
    noted = _described(json.dumps({"nodes": [{"attrs": attributes}]}))
    found = [noted[name] for name in ("model", "wiring", "learning", "attention")]
    assert found == ["attention56", "paper", "nal", None]  # no flag has tanh


def check_a_network_is_what_its_exporter_noted() -> None:
    noted = {"model": "resnet20_ram", **dict.fromkeys(OVERRIDES), "w_init": 0.1}
    config = BridgeConfig(symbol="s")
    told = with_network(config, noted)
    assert (told.model, told.w_init, told.wiring) == ("resnet20_ram", 0.1, None)
    assert with_network(replace(config, w_init=0.1), noted) == told
    other = replace(config, model="other", wiring="paper")
    assert with_network(other, {}) == other
    assert with_network(replace(other, resume="r"), noted).model == "other"
    cases: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
        ("--wiring, --w-init: the symbol is resnet20_ram", {"wiring": "paper", "w_init": 0}, noted),
        ("--depth: the symbol does not say which network", {"depth": 20}, {}),
        ("--model other: the symbol is resnet20_ram", {"model": "other"}, noted),
    )
    for wanted, given, notes in cases:
        said = ""
        try:
            with_network(replace(config, **given), notes)
        except UserError as error:
            said = str(error)
        assert said.startswith(wanted), said


def check_operations_of_an_image_are_counted() -> None:
    layers = torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(256, 5)
    flops, classes = _forward_flops(torch.nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))
    assert (flops, classes) == (2 * (64 * 4 * 3 * 9 + 256 * 5), 5)

    class Refusing(torch.nn.Module):
        def forward(self, image: Any) -> Any:
            raise ValueError("a window of 9 does not fit into 8")

    for module, told in (
        (layers[0], "no logits"),
        (layers[2], "cannot compute an image of 3x8x8"),
        (Refusing(), "a window of 9 does not fit"),
    ):
        said = ""
        try:
            _forward_flops(module, torch.zeros(1, 3, 8, 8))
        except UserError as error:
            said = str(error)
        assert told in said, said


def check_wrong_input_is_one_line() -> None:
    symbol = ("--symbol", str(FOLDER / "tiny-symbol.json"))
    cases = {
        "--symbol is missing": (),
        "no weights beside": ("--symbol", str(FOLDER / "other-symbol.json")),
        "3x32x32 of shapes": (*symbol, "--dataset", "shapes"),
        "cuda:7": (*symbol, "--dataset", "digits", "--device", "cuda:7"),
        "--compile graph": (*symbol, "--dataset", "digits", "--compile", "graph", "-b", "64"),
        "holds no run": ("--resume", str(FOLDER / "nowhere")),
    }
    (FOLDER / "other-symbol.json").write_text((FOLDER / "tiny-symbol.json").read_text())
    for wanted, argv in cases.items():
        stream = io.StringIO()
        with contextlib.redirect_stderr(stream):
            assert train(*argv) == 2, wanted
        text = stream.getvalue()
        assert text.startswith("error: "), text
        assert wanted in text, text
        assert "Traceback" not in text


def check_only_weights_decay() -> None:
    module = SymbolModule.from_files(FOLDER / "tiny-symbol.json", FOLDER / "tiny.param")
    weights = dict(module.named_parameters())
    some = OPTIMIZERS["nag"](weights, BridgeConfig(wd=0.1))
    assert {some.names[index] for index in some.decayed} == {"conv.weight", "fc.weight"}
    every = OPTIMIZERS["nag"](weights, BridgeConfig(wd=0.1, decay_bias=True))
    assert len(every.decayed) == len(weights) == 5


def main() -> int:
    """Run every check; return 0 when all of them pass."""
    results: dict[str, Any] = {}
    for name, check in sorted(globals().items()):
        if name.startswith("check_"):
            try:
                check()
                results[name] = None
            except Exception:
                results[name] = traceback.format_exc()
    (FOLDER / "results.json").write_text(json.dumps(results))
    return int(any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
