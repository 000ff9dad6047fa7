"""The retina, against patches that are cut out one by one."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from model.layers.retina import Retina

CORNERS = [(-1, -1), (1, -1), (-1, 1), (1, 1), (0, 0), (1, 0), (0, -1)]
OUTSIDE = [(-1.5, 0.2), (0.3, 7.0), (-1e6, 1e6)]
EXACT = 2e-6  # means of up to 24**2 numbers below 3 in float32


def naive(retina: Retina, images: np.ndarray, locations: np.ndarray) -> np.ndarray:
    """Glimpses (B, R, V) in float64, pixel by pixel: what the module's first lines say."""
    height, width = images.shape[2:]

    def pixel(image: np.ndarray, row: int, column: int) -> np.ndarray:
        inside = 0 <= row < height and 0 <= column < width
        return image[:, row, column] if inside else np.full(len(image), retina.pad_value)

    def glimpse(image: np.ndarray, location: np.ndarray) -> np.ndarray:
        half = np.float32(0.5) * (np.clip(location, -1, 1).astype(np.float32) + np.float32(1))
        column, row = (int(np.trunc(h * np.float32(n))) for h, n in zip(half, (width, height)))
        patches = []
        for scale in range(retina.num_patches):
            size = int(retina.patch_size * retina.scale**scale)
            top, left = row - size // 2, column - size // 2
            patch = np.array(
                [[pixel(image, top + i, left + j) for j in range(size)] for i in range(size)]
            )  # (size, size, C)
            edge, window = retina.patch_size, size // retina.patch_size
            means = patch.reshape(edge, window, edge, window, -1).mean(axis=(1, 3))
            patches.append(means.transpose(2, 0, 1).ravel())
        return np.concatenate(patches)

    return np.array(
        [[glimpse(*pair) for pair in zip([x] * len(y), y)] for x, y in zip(images, locations)]
    )


class Looker(nn.HybridBlock):
    """Images (B, C, H, W) and locations (B, R, 2) to glimpses (B * R, V)."""

    def __init__(self, retina: Retina, rollouts: int) -> None:
        super().__init__()
        self.retina, self.rollouts = retina, rollouts

    def hybrid_forward(self, F: Any, image: Any, location: Any) -> Any:
        number = F.contrib.arange_like(image, axis=0)
        index = F.cast(F.repeat(number, repeats=self.rollouts), dtype="int32")
        places = F.reshape(location, shape=(-3, 0))
        return self.retina.glimpses(F, self.retina.pyramid(F, image), index, places)


def locations_for(count: int, rollouts: int, rng: np.random.Generator) -> np.ndarray:
    """Locations (count, rollouts, 2) that begin with every corner and places outside."""
    places = rng.uniform(-1, 1, (count * rollouts, 2))
    special = (CORNERS + OUTSIDE)[: count * rollouts]
    places[: len(special)] = special
    return places.reshape(count, rollouts, 2).astype(np.float32)


@pytest.mark.parametrize("hybridize", [False, True])
@pytest.mark.parametrize(
    "retina",
    [
        Retina(28, 28),
        Retina(9, 13, patch_size=5, pad_value=0.25),
        Retina(13, 9, 3, patch_size=4, num_patches=3, scale=2, pad_value=-0.5),
        Retina(10, 7, 3, patch_size=3, num_patches=3, scale=2, pad_value=2.5),
        Retina(12, 12, patch_size=2, num_patches=3, scale=3),
        Retina(11, 8, 2, patch_size=7, num_patches=2, scale=1, pad_value=1),
        Retina(6, 5, patch_size=1, num_patches=2, scale=3, pad_value=1),
        Retina(3, 4, patch_size=4, num_patches=2, scale=2, pad_value=1),  # larger than the image
        Retina(20, 20, patch_size=2, num_patches=2, scale=1.5 * 4 / 3),
    ],
    ids=str,
)
def test_glimpses_are_exact(retina: Retina, hybridize: bool) -> None:
    rng = np.random.default_rng(0)
    net = Looker(retina, rollouts=3)
    if hybridize:
        net.hybridize(static_alloc=True, static_shape=True)
    shape = (retina.channels, retina.height, retina.width)
    for count in (4, 1, 5):  # another batch size, also after the graph was built
        images = rng.uniform(-1, 3, (count, *shape)).astype(np.float32)
        places = locations_for(count, 3, rng)
        seen = net(mx.nd.array(images), mx.nd.array(places)).asnumpy()
        assert seen.shape == (count * 3, retina.values)
        expected = naive(retina, images, places)
        np.testing.assert_allclose(seen, expected.reshape(count * 3, -1), rtol=0, atol=EXACT)


def test_the_smallest_patch_is_exact_bit_for_bit() -> None:
    rng = np.random.default_rng(1)
    retina = Retina(28, 20, pad_value=0.1307)
    images = rng.uniform(0, 1, (10, 1, 28, 20)).astype(np.float32)
    places = locations_for(10, 20, rng)
    seen = Looker(retina, 20)(mx.nd.array(images), mx.nd.array(places)).asnumpy()
    expected = naive(retina, images, places).reshape(200, -1).astype(np.float32)
    assert np.array_equal(seen, expected)


def test_a_whole_sweep_of_centres() -> None:
    """Every pixel and both ends of the range, in float32, as the rule says."""
    retina = Retina(1, 60, patch_size=1, pad_value=-1)
    row = np.arange(60, dtype=np.float32).reshape(1, 1, 1, 60)
    x = np.linspace(-1, 1, 1201, dtype=np.float32)
    places = np.stack([x, np.full_like(x, -1)], axis=1)[None]
    seen = Looker(retina, 1201)(mx.nd.array(row), mx.nd.array(places)).asnumpy()[:, 0]
    pixel = np.trunc(np.float32(0.5) * (x + np.float32(1)) * np.float32(60))
    assert np.array_equal(seen, np.where(pixel < 60, pixel, -1))
    assert seen[-1] == -1  # the centre at + 1 is next to the last pixel


@pytest.mark.parametrize("hybridize", [False, True])
def test_no_gradient_flows_through_a_glimpse(hybridize: bool) -> None:
    image, place = mx.nd.random.uniform(shape=(1, 1, 8, 8)), mx.nd.zeros((1, 1, 2))
    for array in (image, place):
        array.attach_grad()
    net = Looker(Retina(8, 8, patch_size=4), 1)
    if hybridize:
        net.hybridize()
    with mx.autograd.record():
        seen = net(image, place).sum()
        (seen + 2 * image.sum() + 3 * place.sum()).backward()
    assert (image.grad == 2).asnumpy().all()
    assert (place.grad == 3).asnumpy().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 0}, "patch_size must be 1 or more, got 0"),
        ({"num_patches": 0}, "num_patches must be 1 or more, got 0"),
        ({"height": 0}, "height must be 1 or more"),
        ({"scale": 0.5}, "scale must be 1 or more, got 0.5"),
        ({"scale": float("nan"), "num_patches": 2}, "scale must be 1 or more, got nan"),
        ({"scale": float("inf"), "num_patches": 2}, "scale must be 1 or more, got inf"),
        ({"pad_value": float("nan")}, "pad_value must be a finite number"),
        ({"scale": 1.5, "num_patches": 2}, "12 pixels, which cannot be averaged down to 8"),
        ({"patch_size": 3, "scale": 1.5, "num_patches": 2}, "4 pixels, which cannot"),
        ({"scale": 1e200, "num_patches": 3}, "at most 32 of at most 4096 pixels"),
        ({"scale": 2, "num_patches": 1100}, "1100 patches from 8 pixels on, each 2 times as"),
        ({"scale": 2, "num_patches": 11}, "at most 32 of at most 4096 pixels"),
        ({"scale": 1, "num_patches": 33}, "at most 32"),
        ({"patch_size": 4097}, "at most 4096 pixels"),
    ],
)
def test_impossible_retinas_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Retina(**{"height": 28, "width": 28, **settings})


def test_an_edge_that_is_not_used_need_not_divide() -> None:
    assert Retina(28, 28, scale=1.5).sizes == (8,)
    assert Retina(28, 28, patch_size=12, num_patches=3, scale=2).sizes == (12, 24, 48)
    assert Retina(28, 28, num_patches=10, scale=2).sizes[-1] == 4096
