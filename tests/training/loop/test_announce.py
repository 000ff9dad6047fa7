"""What a training says of its images before it begins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mxnet as mx
import pytest

from training.classifier.config import TrainConfig
from training.loop.announce import announce
from training.records.run_progress import Progress


@pytest.mark.parametrize(
    ("images", "batch", "told"), [(36, 8, "leaves out 4 of"), (36, 6, ""), (9999, 64, "out 15 of")]
)
def test_images_that_no_whole_batch_has_are_counted(
    images: int, batch: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = (SimpleNamespace(data=range(n)) for n in (images, 5))
    loaders: Any = SimpleNamespace(train=train, valid=None, test=test)
    config = TrainConfig(batch_size=batch, precision="float32")
    announce(config, [mx.cpu()], loaders, Path("runs/x"), Progress())
    said = capsys.readouterr().out
    assert f"{images} images to train, 5 to test" in said
    assert told in said
    assert ("leaves out" in said) == bool(told)
