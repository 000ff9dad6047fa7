"""The recurrent attention model in PyTorch, to measure ours against: a worker of bench_glimpse.py.

Same formulas as ``model/recurrent_attention.py`` and the same names of parameters. Two forms:

    looped    as the seed does it: patches cut out in a Python loop over the images, every layer
              called after every glimpse, Adam as it comes
    batched   the fastest eager form known to us: averages over windows once per image, one gather
              per glimpse for all scales, baselines of all steps at once, fused Adam

Runs in the environment of requirements/bench-torch-py311.txt, where neither MXNet nor gluoncv is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
from torch import nn
from torch.nn import functional  # type: ignore[import-not-found]

from benchmarks.glimpse import glimpse_inputs
from benchmarks.glimpse.glimpse_inputs import TASKS, Task
from benchmarks.harness.worker import Action, timed
from formats.errors import UserError
from training.settings.config import parse
from training.settings.fields import option

FORMS = ("looped", "batched")
RETINA_TOLERANCE = 2e-6  # sums of up to 16 pixels in another order
TRAIN_BATCHES = 8
Tensor = Any


@dataclass(frozen=True)
class Config:
    """Settings of the worker."""

    task: str = option("mnist", "what is learned", choices=tuple(TASKS))
    form: str = option("batched", "how it is written", choices=FORMS)
    compile: bool = option(False, "compile the step with torch.compile (needs a C++ compiler)")
    threads: int = option(1, "threads of one operator")
    locator_hidden: int = option(
        glimpse_inputs.LOCATOR_HIDDEN, "width of the locator's hidden layer; 0: none, as in 2018"
    )
    worker: bool = option(False, "answer requests; without it, one line of figures is printed")

    def check(self) -> None:
        """Refuse what cannot run."""
        if self.threads < 1:
            raise UserError(f"--threads {self.threads}; choose 1 or more")
        if self.locator_hidden < 0:
            raise UserError(f"--locator-hidden {self.locator_hidden}; choose 0 or more")


def centres(location: Tensor, size: int) -> Tensor:
    """Pixel trunc((l + 1) / 2 * size) of each location: (N, 2), x and y, int64."""
    return (0.5 * ((location + 1.0) * size)).long()


class LoopedRetina:
    """Cut each patch out of each image in turn, then average it down."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def prepare(self, image: Tensor) -> Tensor:
        """Nothing is worth doing once per image here."""
        return image

    def look(self, image: Tensor, location: Tensor) -> Tensor:
        """Return what is seen of images (N, 1, H, W) at (N, 2), as (N, V)."""
        task, patches = self.task, []
        for scale in range(task.num_patches):
            edge = task.patch_size * 2**scale
            padded = functional.pad(image, (edge // 2,) * 4)
            start = centres(location, task.size)
            end = start + edge
            cut = [
                padded[n, :, start[n, 1] : end[n, 1], start[n, 0] : end[n, 0]]
                for n in range(len(image))
            ]
            patch = torch.stack(cut)
            patches.append(functional.avg_pool2d(patch, 2**scale) if scale else patch)
        return torch.cat(patches, 1).flatten(1)


class BatchedRetina:
    """Averages over all windows once per image, then one gather per glimpse.

    The fastest form tried: adding slices takes 0.8 ms for 128 images of 60x60, avg_pool2d with
    stride 1 7.8; averaging a crop of an unfolded view 0.4 ms for every glimpse, a gather 0.04.
    """

    def __init__(self, task: Task) -> None:
        self.size, self.windows = task.size, [2**scale for scale in range(task.num_patches)]
        windows = torch.tensor(self.windows)[:, None]  # (S, 1)
        self.steps = windows * (torch.arange(task.patch_size) - task.patch_size // 2 + 1)  # (S, G)
        self.low, self.high = torch.zeros_like(windows), task.size + windows
        self.widths = self.high + 1  # of each level, one row of windows next to the image included
        self.offsets = ((self.widths**2).cumsum(0) - self.widths**2)[:, :, None]

    def prepare(self, image: Tensor) -> Tensor:
        """Return the means of all windows that touch an image, (N, 1, H, W) to (N, P)."""
        levels = []
        for window in self.windows:
            level = functional.pad(image[:, 0], (window,) * 4)
            for axis in (1, 2):
                part = 1
                while part < window:
                    length = level.shape[axis] - part
                    level = level.narrow(axis, 0, length) + level.narrow(axis, part, length)
                    part *= 2
            levels.append((level * (1 / window**2) if window > 1 else level).flatten(1))
        return levels[0] if len(levels) == 1 else torch.cat(levels, 1)

    def look(self, prepared: Tensor, location: Tensor) -> Tensor:
        """Return what is seen at (N, 2), as (N, V)."""
        start = centres(location, self.size)[:, :, None, None]  # (N, 2, 1, 1)
        x, y = (start + self.steps).clamp(self.low, self.high).unbind(1)  # (N, S, G) each
        index = (y * self.widths)[:, :, :, None] + x[:, :, None, :] + self.offsets
        return prepared.gather(1, index.flatten(1))


class Glimpses(nn.Module):
    """The whole model; ``forward`` takes images (N, 1, H, W), l_0 (N, 2) and noise (N, T, 2)."""

    def __init__(self, task: Task, form: str, locator_hidden: int) -> None:
        super().__init__()
        self.task, self.form = task, form
        self.retina = LoopedRetina(task) if form == "looped" else BatchedRetina(task)
        for name, shape in glimpse_inputs.parameter_shapes(task, locator_hidden).items():
            part, layer, kind = name.split(".")
            if kind == "weight":
                if not hasattr(self, part):
                    setattr(self, part, nn.ModuleDict())
                getattr(self, part)[layer] = nn.Linear(shape[1], shape[0])

    def _locate(self, hidden: Tensor) -> Tensor:
        y = self.locator["fc"](hidden)
        if "fc_lt" in self.locator:
            y = self.locator["fc_lt"](torch.relu(y))
        return torch.tanh(y)

    def _squash(self, sample: Tensor) -> Tensor:
        # The layout of 2018, which has no hidden layer here, takes the sample's tanh.
        return sample.clamp(-1, 1) if "fc_lt" in self.locator else torch.tanh(sample)

    def forward(self, image: Tensor, first: Tensor, noise: Tensor) -> dict[str, Tensor]:
        """Return logits (N, 10), baselines (N, T), means, samples and locations (N, T, 2)."""
        sensor, rnn, baseliner = self.sensor, self.rnn, self.baseliner["fc"]
        hidden = torch.zeros(len(image), glimpse_inputs.HIDDEN)
        prepared = self.retina.prepare(image)
        hiddens, means, samples, locations = [], [first], [first], [first]
        for step in range(self.task.num_glimpses):
            location = locations[-1]
            what = torch.relu(sensor["fc1"](self.retina.look(prepared, location)))
            where = torch.relu(sensor["fc2"](location))
            glimpse = torch.relu(sensor["fc3"](what) + sensor["fc4"](where))
            hidden = torch.relu(rnn["i2h"](glimpse) + rnn["h2h"](hidden))
            hiddens.append(hidden)
            # Nobody looks at the location after the last glimpse.
            if step < self.task.num_glimpses - 1:
                means.append(self._locate(hidden))
                samples.append((means[-1] + noise[:, step + 1]).detach())
                locations.append(self._squash(samples[-1]))
        if self.form == "looped":
            baselines = torch.cat([baseliner(h.detach()) for h in hiddens], 1)
        else:
            baselines = baseliner(torch.stack(hiddens, 1).detach())[:, :, 0]
        return {
            "logits": self.classifier["fc"](hidden),
            "baselines": baselines,
            "means": torch.stack(means, 1),
            "samples": torch.stack(samples, 1),
            "locations": torch.stack(locations, 1),
        }


def hybrid_loss(outputs: Mapping[str, Tensor], label: Tensor) -> Tensor:
    """Cross-entropy, squared error of the baselines, and REINFORCE over T - 1 locations."""
    logits, baselines = outputs["logits"], outputs["baselines"]
    reward = (logits.detach().argmax(1) == label).float()[:, None]
    deviation = (outputs["samples"] - outputs["means"])[:, 1:] / glimpse_inputs.STD
    constant = 2 * math.log(glimpse_inputs.STD) + math.log(2 * math.pi)
    log_pi = -0.5 * deviation.square().sum(2) - constant  # (N, T - 1)
    advantage = (reward - baselines.detach())[:, :-1]
    policy = -(log_pi * advantage).sum(1).mean()
    error = functional.mse_loss(baselines, reward.expand_as(baselines))
    entropy = functional.cross_entropy(logits, label)
    return entropy + error + glimpse_inputs.REINFORCE_WEIGHT * policy


def build_steps(config: Config, model: Glimpses) -> dict[str, Callable[[], object]]:
    """The two things that are timed: a training step and the evaluation of a batch."""
    task = TASKS[config.task]
    count = task.batch_size
    images, labels = map(
        torch.from_numpy, glimpse_inputs.random_images(task, TRAIN_BATCHES * count, 0)
    )
    fused = config.form == "batched"
    rate = glimpse_inputs.LEARNING_RATE
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, fused=fused or None)
    forward = torch.compile(model) if config.compile else model
    turn = {"train": 0, "evaluate": 0}

    def batch(case: str) -> tuple[Tensor, Tensor, Tensor]:
        place = slice(turn[case] * count, (turn[case] + 1) * count)
        turn[case] = (turn[case] + 1) % TRAIN_BATCHES
        return images[place], labels[place], torch.rand(count, 2) * 2 - 1

    def train() -> None:
        image, label, first = batch("train")
        noise = torch.randn(count, task.num_glimpses, 2) * glimpse_inputs.STD
        loss = hybrid_loss(forward(image, first, noise), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def evaluate() -> float:
        image, label, first = batch("evaluate")
        with torch.no_grad():
            logits = forward(image, first, torch.zeros(count, task.num_glimpses, 2))["logits"]
        return float((logits.argmax(1) == label).sum())

    return {"train": train, "evaluate": evaluate}


def compare_retinas(task: Task) -> float:
    """Largest difference between the looped and the batched retina, borders and corners included.

    Raises AssertionError above RETINA_TOLERANCE.
    """
    arrays = glimpse_inputs.parity_inputs(task)
    image, first = (torch.from_numpy(arrays[name]) for name in ("image", "first_location"))
    looped, batched = LoopedRetina(task), BatchedRetina(task)
    difference = looped.look(looped.prepare(image), first) - batched.look(
        batched.prepare(image), first
    )
    largest = float(difference.abs().max())
    if not largest <= RETINA_TOLERANCE:
        raise AssertionError(f"the retinas differ by {largest}, more than {RETINA_TOLERANCE}")
    return largest


def forward_action(config: Config, model: Glimpses) -> Action:
    """Return the action ``forward``: parameters and inputs from one .npz, outputs to another."""

    def action(inputs: str, outputs: str) -> dict[str, Any]:
        with np.load(inputs) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files}
        given = [arrays.pop(name) for name in ("image", "first_location", "noise")]
        twin = Glimpses(TASKS[config.task], config.form, config.locator_hidden)
        twin.load_state_dict(arrays)
        with torch.no_grad():
            results = twin(*given)
        np.savez(outputs, **{name: results[name].numpy() for name in glimpse_inputs.OUTPUTS})
        return {"written": outputs}

    return action


def make(config: Config) -> tuple[dict[str, Any], dict[str, Action]]:
    """Check the retinas, build the model; see `serve`."""
    torch.manual_seed(0)
    torch.set_num_threads(config.threads)
    difference = compare_retinas(TASKS[config.task])
    model = Glimpses(TASKS[config.task], config.form, config.locator_hidden)
    about = {
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        "threads": torch.get_num_threads(),
        "parameters": sum(p.numel() for p in model.parameters()),
        "retina_difference": difference,
    }
    actions = {"time": timed(build_steps(config, model)), "forward": forward_action(config, model)}
    return about, actions


if __name__ == "__main__":
    glimpse_inputs.work(make, parse(Config, sys.argv[1:], "torch_glimpse.py", __doc__))
