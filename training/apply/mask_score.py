"""How well soft masks find the object, on data that says where it is. Knows no network.

A module's mask M is (N, C, h, w). Three maps (N, h, w) are made of it, each a mean over the
channels, and resized bilinearly to the image:

M
    the mask itself; its absolute value, which changes nothing for a sigmoid and makes a mass out
    of masks that can be negative.
1 + M
    the factor that attention residual learning really multiplies the features by; for a sigmoid it
    is the first map, flattened.
change
    how far each channel is, in either direction, from its own average over the image: where the
    mask treats features differently from elsewhere. A channel that switches something off on the
    object has little mass there in the other two maps, and as much here as one that switches it on.

The mass ratio of an image is the share of a map's mass that lies on the object, divided by the
share of the image that the object covers: 1 for a uniform map. The pointing game asks whether the
maximum of the map lies on the object (Zhang et al. 2016, https://arxiv.org/abs/1608.00507, without
its tolerance); pointing at random scores the object's share of the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

SAMPLES = 2000
Interval = tuple[float, float, float]  # mean, lower and upper end


@dataclass(frozen=True)
class MaskScores:
    """What one module scored, per image, (N,) each: mass ratios, and 1 or 0 for pointing."""

    mass: np.ndarray
    weight: np.ndarray
    change: np.ndarray
    mass_hit: np.ndarray
    change_hit: np.ndarray


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
    maps = [
        resize_maps(part, objects.shape[1:]).astype(np.float64)
        for part in (
            channel_map(mask),
            1 + mask.mean(axis=1),
            channel_map(mask - mask.mean(axis=(2, 3), keepdims=True)),
        )
    ]
    mass, weight, change = (_ratio(part, objects) for part in maps)
    return MaskScores(mass, weight, change, _hits(maps[0], objects), _hits(maps[2], objects))


def _ratio(maps: np.ndarray, objects: np.ndarray) -> np.ndarray:
    total = maps.sum(axis=(1, 2))
    on_object = (maps * objects).sum(axis=(1, 2))
    area = objects.mean(axis=(1, 2))
    # No mass at all is spread as evenly as any.
    share = np.divide(on_object, total, out=area.copy(), where=total > 0)
    result: np.ndarray = share / area
    return result


def _hits(maps: np.ndarray, objects: np.ndarray) -> np.ndarray:
    peak = maps.reshape(len(maps), -1).argmax(axis=1)
    hit = objects.reshape(len(objects), -1)[np.arange(len(objects)), peak]
    found: np.ndarray = hit.astype(np.float64)
    return found


def join_scores(parts: Iterable[MaskScores]) -> MaskScores:
    """Return the scores of several batches as those of one."""
    parts = list(parts)
    names = [field.name for field in fields(MaskScores)]
    return MaskScores(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def mean_interval(values: np.ndarray) -> Interval:
    """Return the mean of (N,) values and its 95 % interval by the percentile bootstrap."""
    generator = np.random.Generator(np.random.PCG64(0))
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
    titles = ("module", "mask", "weights", "mass ratio of M", "of 1 + M", "of the change")
    lines = [
        f"{what}; [95 % bootstrap interval]",
        "",
        f"| {' | '.join(titles)} | M points at the object | the change does |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in trained:
        for weights, scores in (("trained", trained[name]), ("untrained", untrained[name])):
            cells = [name, "x".join(map(str, sizes[name])), weights]
            cells += [_ratio_text(v) for v in (scores.mass, scores.weight, scores.change)]
            cells += [_share_text(v) for v in (scores.mass_hit, scores.change_hit)]
            lines.append(f"| {' | '.join(cells)} |")
    centre = _share_text(objects[:, height // 2, width // 2].astype(np.float64))
    lines.append(f"| a uniform map | | | 1.000 | 1.000 | 1.000 | {area:.1%} | {area:.1%} |")
    lines.append(f"| the centre of the image | | | | | | {centre} | {centre} |")
    return "\n".join(lines)


def _ratio_text(values: np.ndarray) -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _share_text(values: np.ndarray) -> str:
    mean, low, high = mean_interval(values)
    return f"{mean:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
