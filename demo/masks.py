"""The page's right side: a residual attention network's soft masks over a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Optional

import mxnet as mx
import numpy as np

from demo.encode import card, png_url
from formats.errors import UserError, first_line
from formats.images.decode import centre_square, open_rgb
from model.pretrained.classify import TOP
from training.apply.mask_score import channel_map
from training.apply.predict import Picture, probabilities
from training.classifier.config import TrainConfig
from training.classifier.loaders import open_dataset
from training.classifier.opening import open_classifier
from training.data.dataset import ImageData


class MaskedClassifier:
    """A saved network with soft masks, and the test images of its data set where they are here."""

    def __init__(self, path: Path, data_dir: Optional[str] = None) -> None:
        config = TrainConfig(data_dir=data_dir, download=False, gpus="cpu")
        self.opened = open_classifier(str(path), config, {})
        if not hasattr(self.opened.net, "attention_maps"):
            raise UserError(
                f"{path}: {self.opened.config.model} has no soft masks; give a file of a residual "
                "attention network"
            )
        self.preprocessing = self.opened.preprocessing()
        self.card = card(path, self.opened.status, "MXNet's graph")
        self._tests: Optional[ImageData] = None
        self._told = False  # why there are none

    def tests(self) -> Optional[ImageData]:
        """Return the test images of the network's data set; None where it is not on this disk."""
        if self._tests is None:
            try:
                self._tests = open_dataset(self.opened.config).test
            except UserError as error:
                if not self._told:
                    name, self._told = self.opened.config.dataset, True
                    print(f"no test images of {name}: {first_line(error)}", file=sys.stderr)
                return None
        return self._tests

    def read(self, content: bytes) -> np.ndarray:
        """Return an uploaded picture as ``--predict`` takes it: uint8 (size, size, 3).

        Raises
        ------
        UserError
            When it cannot be decoded, or has more pixels than allowed.
        """
        size, crop = self.preprocessing.size, self.preprocessing.crop
        return np.asarray(
            centre_square(open_rgb("the picture", round(size / crop), content), size, crop)
        )

    def test_image(self, index: int) -> tuple[np.ndarray, str]:
        """Return a test image uint8 (size, size, 3) and the name of its class.

        Raises
        ------
        UserError
            When the data set is not here, or has no such image.
        """
        tests = self.tests()
        name = self.opened.config.dataset
        if tests is None:
            raise UserError(f"the test images of {name} are not here; start with --data-dir FOLDER")
        if not 0 <= index < len(tests):
            raise UserError(f"{name} has test images 0 to {len(tests) - 1}, there is no {index}")
        return tests.images[index], self.preprocessing.name_of(int(tests.labels[index]))

    def see(self, image: np.ndarray) -> dict[str, Any]:
        """Return the five most probable classes of a picture and every module's mask over it.

        Parameters
        ----------
        image
            uint8 (size, size, 3).

        Returns
        -------
        dict
            ``image`` (PNG), ``classes`` with ``name`` and ``probability``, and ``modules``: each
            with its ``name``, and under ``maps`` three lists of rows, defined in
            `training.apply.mask_score`: ``M``, ``1 + M``, ``change``.
        """
        picture, context = Picture("the picture", image), self.opened.contexts[0]
        shares = probabilities(self.opened.net, context, [picture], self.preprocessing)[0]
        best = np.argsort(-shares, kind="stable")[:TOP]
        batch = mx.nd.array(self.preprocessing.normalize([image]), ctx=context)
        masks = self.opened.net.attention_maps(batch)
        return {
            "image": png_url(image),
            "classes": [
                {"name": self.preprocessing.name_of(int(n)), "probability": float(shares[n])}
                for n in best
            ],
            "modules": [
                {"name": name, "maps": _maps(mask.asnumpy())} for name, mask in masks.items()
            ],
        }


def _maps(mask: np.ndarray) -> dict[str, list[list[float]]]:
    """Return the three maps of a mask (1, C, h, w) as lists of rows."""
    maps = {
        "M": channel_map(mask),
        "1 + M": 1 + mask.mean(axis=1),
        "change": channel_map(mask - mask.mean(axis=(2, 3), keepdims=True)),
    }
    return {name: np.round(values[0].astype(float), 4).tolist() for name, values in maps.items()}
