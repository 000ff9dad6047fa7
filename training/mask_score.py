"""How well soft masks find the object, on data that says where it is. Knows no network.

A module's mask M is (N, C, h, w). Its map is the mean of |M| over the channels, (N, h, w), resized
bilinearly to the image; the absolute value changes nothing for a sigmoid and makes a mass out of
masks that can be negative. Two numbers per image:

mass ratio
    the share of the map's mass that lies on the object, divided by the share of the image that the
    object covers: 1 for a uniform map, more when the mask prefers the object. The same for
    ``1 + M``, the factor that attention residual learning really multiplies the features by, is
    closer to 1.
pointing game
    1 when the map's maximum lies on the object (Zhang et al. 2016, https://arxiv.org/abs/1608.00507,
    without its tolerance). Pointing at random scores the object's share of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

SAMPLES = 2000
Interval = tuple[float, float, float]  # mean, lower and upper end


@dataclass(frozen=True)
class MaskScores:
    """What one module scored, per image, (N,) each."""

    mass_ratio: np.ndarray
    weight_ratio: np.ndarray
    hit: np.ndarray


def channel_map(mask: np.ndarray) -> np.ndarray:
    """Return the mean of the absolute values over the channels: (N, C, h, w) to (N, h, w)."""
    average: np.ndarray = np.abs(mask).mean(axis=1)
    return average


def resize_maps(maps: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resize maps (N, h, w) to (N, H, W), bilinearly between the centres of pixels."""
    from PIL import Image

    height, width = shape
    pictures = (Image.fromarray(np.ascontiguousarray(part, np.float32)) for part in maps)
    filters = Image.Resampling.BILINEAR
    return np.stack([np.asarray(picture.resize((width, height), filters)) for picture in pictures])


def score_masks(mask: np.ndarray, objects: np.ndarray) -> MaskScores:
    """Compare masks (N, C, h, w) with objects (N, H, W), 1 on the object and 0 elsewhere."""
    maps = resize_maps(channel_map(mask), objects.shape[1:]).astype(np.float64)
    weights = resize_maps(1 + mask.mean(axis=1), objects.shape[1:]).astype(np.float64)
    peak = maps.reshape(len(maps), -1).argmax(axis=1)
    hit = objects.reshape(len(objects), -1)[np.arange(len(objects)), peak]
    return MaskScores(_ratio(maps, objects), _ratio(weights, objects), hit.astype(np.float64))


def _ratio(maps: np.ndarray, objects: np.ndarray) -> np.ndarray:
    mass = np.maximum(maps.sum(axis=(1, 2)), 1e-12)
    share: np.ndarray = (maps * objects).sum(axis=(1, 2)) / mass / objects.mean(axis=(1, 2))
    return share


def join_scores(parts: Iterable[MaskScores]) -> MaskScores:
    """Return the scores of several batches as those of one."""
    parts = list(parts)
    return MaskScores(
        np.concatenate([part.mass_ratio for part in parts]),
        np.concatenate([part.weight_ratio for part in parts]),
        np.concatenate([part.hit for part in parts]),
    )


def mean_interval(values: np.ndarray, seed: int = 0) -> Interval:
    """Return the mean of (N,) values and its 95 % interval by the percentile bootstrap."""
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = generator.integers(0, len(values), (SAMPLES, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    return float(values.mean()), float(low), float(high)


def score_table(
    trained: Mapping[str, MaskScores],
    untrained: Mapping[str, MaskScores],
    sizes: Mapping[str, tuple[int, ...]],
    objects: np.ndarray,
) -> str:
    """Return a Markdown table: one row per module, and what no attention at all would score.

    Parameters
    ----------
    trained, untrained
        Scores by module, of the network and of the same network with fresh weights.
    sizes
        Height and width of each module's mask.
    objects
        (N, H, W), 1 on the object.
    """
    area, height, width = objects.mean(), *objects.shape[1:]
    what = f"{len(objects):,} images; the object covers {area:.1%} of them on average"
    titles = ("module", "mask", "mass ratio of M", "untrained", "mass ratio of 1 + M", "untrained")
    lines = [
        f"{what}; [95 % bootstrap interval]",
        "",
        f"| {' | '.join(titles)} | pointing game | untrained |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, ours in trained.items():
        theirs = untrained[name]
        cells = [name, "x".join(map(str, sizes[name]))]
        for field in ("mass_ratio", "weight_ratio"):
            cells += [_ratio_text(getattr(scores, field)) for scores in (ours, theirs)]
        cells += [_share_text(scores.hit) for scores in (ours, theirs)]
        lines.append(f"| {' | '.join(cells)} |")
    centre = objects[:, height // 2, width // 2].astype(np.float64)
    lines.append(f"| a uniform map | | 1.000 | | 1.000 | | {area:.1%} | |")
    lines.append(f"| the centre of the image | | | | | | {_share_text(centre)} | |")
    return "\n".join(lines)


def _ratio_text(values: np.ndarray) -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _share_text(values: np.ndarray) -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
