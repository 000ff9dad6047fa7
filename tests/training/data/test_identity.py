"""What tells a data set from another one, and what does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from training.classifier.imagenet import ImageNetConfig, open_imagenet
from training.data.dataset import Dataset, ImageData
from training.data.identity import DataIdentity, identity_of


def images(count: int, seed: int) -> ImageData:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, 3), np.uint8)
    return ImageData(pixels, np.arange(count, dtype=np.int32) % 2)


DATA = Dataset("folder:a", images(6, 0), images(4, 1), ("cat", "dog"), (0.5,) * 3, (0.2,) * 3)


def other_pixel() -> Dataset:
    changed = DATA.train.images.copy()
    changed[5, 3, 3, 2] ^= 1
    return replace(DATA, train=ImageData(changed, DATA.train.labels))


def other_label() -> Dataset:
    labels = DATA.test.labels.copy()
    labels[0] = 1
    return replace(DATA, test=ImageData(DATA.test.images, labels))


def moved_border() -> Dataset:
    """The same images in the same order, another one of which is the first to be tested."""
    train = DATA.train
    first = ImageData(train.images[:5], train.labels[:5])
    rest = ImageData(np.concatenate([train.images[5:], DATA.test.images]), np.zeros(5, np.int32))
    return replace(DATA, train=first, test=rest)


def test_the_same_data_elsewhere_is_the_same() -> None:
    identity = identity_of(DATA)
    assert identity.counts == {"train": 6, "test": 4}
    assert identity.classes == ("cat", "dog")
    assert identity.deviation == (0.2,) * 3
    assert identity_of(replace(DATA, name="folder:b")).digest == identity.digest
    assert DataIdentity.from_dict(json.loads(json.dumps(identity.to_dict()))) == identity


@pytest.mark.parametrize(
    "changed",
    [
        other_pixel(),
        other_label(),
        moved_border(),
        replace(DATA, class_names=("cat", "dogs")),
        replace(DATA, class_names=("catd", "og")),
        replace(DATA, train=ImageData(DATA.train.images.reshape(6, 2, 8, 3), DATA.train.labels)),
    ],
)
def test_other_data_has_another_digest(changed: Dataset) -> None:
    assert identity_of(changed).digest != identity_of(DATA).digest


def write_records(folder: Path, labels: list[int]) -> None:
    for split in ("train", "val"):
        record = mx.recordio.MXIndexedRecordIO(
            str(folder / f"{split}.idx"), str(folder / f"{split}.rec"), "w"
        )
        for index, label in enumerate(labels):
            header = mx.recordio.IRHeader(0, float(label), index, 0)
            record.write_idx(index, mx.recordio.pack(header, b"image"))
        record.close()


def test_record_files_and_folders_have_an_identity(tmp_path: Path) -> None:
    digests = []
    for place, labels in (("a", [0, 1, 2]), ("b", [0, 1, 2]), ("c", [0, 2, 1])):
        (tmp_path / place).mkdir()
        write_records(tmp_path / place, labels)
        identity = identity_of(open_imagenet(ImageNetConfig(data_dir=str(tmp_path / place))))
        assert identity.counts == {"train": 3, "test": 3}
        assert identity.classes == ()
        digests.append(identity.digest)
    assert digests[0] == digests[1] != digests[2]
    for place, name in (("d", "1.png"), ("e", "1.png"), ("f", "2.png")):
        for folder in ("train/a", "train/b", "val/a", "val/b"):
            (tmp_path / place / folder).mkdir(parents=True)
            (tmp_path / place / folder / (name if folder == "train/b" else "1.png")).touch()
        data = open_imagenet(ImageNetConfig(data_dir=str(tmp_path / place)))
        digests.append(identity_of(data).digest)
    assert digests[3] == digests[4] != digests[5]
