"""A user's own image folders: layouts, decoding, and what can be wrong with them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
from PIL import Image

from formats.errors import UserError
from formats.images import decode as decoding
from formats.images.decode import decode_image
from training.data import image_folder
from training.data.catalogue import load_dataset
from training.data.dataset import hold_out
from training.data.identity import identity_of
from training.data.image_folder import list_image_folder, load_image_folder

COLOURS = {"cat": (200, 30, 30), "dog": (30, 200, 30), "emu": (30, 30, 200)}


def fill(folder: Path, counts: dict[str, int], ending: str = ".png") -> None:
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("RGB", (40, 36), COLOURS[name]).save(folder / name / f"{index:03}{ending}")


def test_train_and_test_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "train", {"emu": 3, "cat": 4, "dog": 5})
    fill(tmp_path / "test", {"dog": 2, "cat": 1})
    fill(tmp_path / "val", {"cat": 9})
    fill(tmp_path / "train/cat", {"dog": 9})
    (tmp_path / "train/cat/notes.txt").write_text("not an image")
    (tmp_path / "train/cat/._000.png").write_text("not an image either")
    (tmp_path / "train/.hidden").mkdir()
    dataset = load_dataset(f"folder:{tmp_path}")
    assert dataset.class_names == ("cat", "dog", "emu")
    assert dataset.name == f"folder:{tmp_path}"
    assert dataset.train.images.shape == (12, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(dataset.train.labels), [4, 5, 3])
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [1, 2])
    for split in (dataset.train, dataset.test):
        for image, label in zip(split.images, split.labels):
            assert tuple(image[5, 7]) == COLOURS[dataset.class_names[label]]
    assert dataset.valid is not None
    assert len(dataset.valid) == 9
    assert capsys.readouterr().err == (
        f"note: {tmp_path}/test has no images of emu\n"
        f"note: {tmp_path}/val has no images of dog, emu\n"
        f"note: {tmp_path}: left out are 1 folders in class folders, 1 .txt; taken are files "
        ".png, .jpg, .jpeg, .webp, .bmp in the class folders themselves\n"
    )
    expected = dataset.train.images / 255
    np.testing.assert_allclose(dataset.mean, expected.mean(axis=(0, 1, 2)), rtol=1e-9)
    np.testing.assert_allclose(dataset.std, expected.std(axis=(0, 1, 2)), rtol=1e-9)


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_val_serves_as_test(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "train", {"cat": 2, "dog": 2})
    fill(tmp_path / name, {"cat": 3})
    assert len(load_image_folder(str(tmp_path)).test) == 3
    fill(tmp_path / "Test", {"cat": 1, "dog": 1})
    dataset = load_image_folder(str(tmp_path))
    assert len(dataset.test) == 2
    assert dataset.valid is not None
    assert len(dataset.valid) == 3


def test_folders_of_splits_are_known_in_any_case(tmp_path: Path) -> None:
    fill(tmp_path / "Train", {"cat": 2, "dog": 2})
    fill(tmp_path / "TEST", {"cat": 3})
    dataset = load_image_folder(str(tmp_path))
    assert dataset.class_names == ("cat", "dog")
    assert (len(dataset.train), len(dataset.test)) == (4, 3)
    fill(tmp_path / "test", {"cat": 3})
    with pytest.raises(UserError, match="has the folders TEST and test, which mean the same"):
        load_image_folder(str(tmp_path))


def test_what_is_left_out_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "train", {"cat": 2, "dog": 2})
    fill(tmp_path / "train", {"cat": 5, "dog": 4}, ending=".gif")
    fill(tmp_path / "test", {"cat": 1, "dog": 1})
    fill(tmp_path / "extra", {"cat": 1})
    (tmp_path / "test/README").write_text("no class")
    (tmp_path / "test/cat/README").write_text("no image")
    assert len(load_image_folder(str(tmp_path)).train) == 4
    said = capsys.readouterr().err
    assert "left out are 9 .gif, 1 beside the class folders, 1 without an ending, folder extra" in (
        said
    )
    (tmp_path / "train/emu").mkdir()
    fill(tmp_path / "train", {"emu": 4}, ending=".tiff")
    with pytest.raises(UserError, match=r"emu has 0 images, .*left out: 9 \.gif, 4 \.tiff"):
        load_image_folder(str(tmp_path))


def test_a_folders_own_held_out_images(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("test", 3), ("val", 2)):
        fill(tmp_path / split, {"cat": count, "dog": count})
    dataset = load_image_folder(str(tmp_path))
    train, valid = hold_out(dataset, 0)
    assert train is dataset.train
    assert valid is dataset.valid
    with pytest.raises(UserError, match=r"--valid-count 2: .* has 4 held-out images"):
        hold_out(dataset, 2)
    without = replace(dataset, valid=None)
    assert hold_out(without, 0) == (dataset.train, None)
    assert len(hold_out(without, 2)[1] or ()) == 2
    # They belong to what a run compares.
    assert identity_of(dataset).counts == {"train": 8, "test": 6, "valid": 4}
    assert identity_of(dataset).digest != identity_of(without).digest


def name_files(folder: Path, counts: dict[str, int]) -> None:
    """Files that are listed and not opened."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (folder / name / f"{index:03}.png").touch()


@pytest.mark.parametrize("below", ["", "train"])
def test_without_a_test_folder_a_fifth_is_held_out(tmp_path: Path, below: str) -> None:
    name_files(tmp_path / below, {"cat": 300, "dog": 100})
    train, test, valid = list_image_folder(str(tmp_path))[1:]
    assert not valid.paths
    assert sorted(train.paths + test.paths) == sorted(map(str, (tmp_path / below).rglob("*.png")))
    shares = np.bincount(test.labels) / (300, 100)
    np.testing.assert_allclose(shares, 0.2, atol=0.07)
    cats, dogs = ({Path(p).name for p in test.paths if name in p} for name in ("/cat/", "/dog/"))
    assert len(cats & dogs) < min(len(cats), len(dogs)) / 2  # not the same names of both


def test_other_images_do_not_change_who_is_tested(tmp_path: Path) -> None:
    """Else an image that a file was trained on would be one of its test."""
    name_files(tmp_path, {"cat": 30, "dog": 12})
    before = list_image_folder(str(tmp_path))
    name_files(tmp_path, {"cat": 90, "dog": 14, "emu": 5})
    for path in (tmp_path / "cat").glob("01?.png"):
        path.unlink()
    after = list_image_folder(str(tmp_path))
    assert not {*before.train.paths} & {*after.test.paths}
    assert not {*before.test.paths} & {*after.train.paths}
    assert len(after.test.paths) > len(before.test.paths)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_class_is_trained_and_tested(tmp_path: Path, count: int) -> None:
    name_files(tmp_path, {f"class {n}": count for n in range(40)})
    for files in list_image_folder(str(tmp_path))[1:3]:
        assert len(np.unique(files.labels)) == 40


def test_images_of_both_splits_are_loaded(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": 4, "dog": 6})
    dataset = load_image_folder(str(tmp_path))
    listing = list_image_folder(str(tmp_path))
    for data, files in ((dataset.train, listing.train), (dataset.test, listing.test)):
        np.testing.assert_array_equal(data.labels, files.labels)
        names = [dataset.class_names[label] for label in data.labels]
        assert [tuple(image[5, 7]) for image in data.images] == [COLOURS[name] for name in names]


@pytest.mark.parametrize("ending", [".jpg", ".JPEG", ".webp", ".bmp"])
def test_other_formats(tmp_path: Path, ending: str) -> None:
    fill(tmp_path, {"cat": 2, "dog": 2}, ending)
    dataset = load_image_folder(str(tmp_path), size=16)
    assert dataset.train.images.shape[1:] == (16, 16, 3)
    for image, label in zip(dataset.train.images, dataset.train.labels):
        difference = image[8, 8].astype(int) - COLOURS[dataset.class_names[label]]
        assert abs(difference).max() <= 6


def decode(path: Path, size: int = 8) -> np.ndarray:
    return decode_image(str(path), size)


@pytest.mark.parametrize("landscape", [True, False])
def test_shorter_side_and_centre(tmp_path: Path, landscape: bool) -> None:
    array = np.zeros((16, 48, 3), np.uint8)
    array[:, 16:32] = 255  # the central square
    Image.fromarray(array if landscape else array.transpose(1, 0, 2).copy()).save(
        tmp_path / "a.png"
    )
    image = decode(tmp_path / "a.png", 16)
    np.testing.assert_array_equal(image, 255)


def test_modes_become_rgb(tmp_path: Path) -> None:
    grey = Image.new("L", (9, 9), 77)
    wide = Image.fromarray(np.full((9, 9), 77 * 256, np.uint16))
    for name, image, expected in (
        ("grey", grey, (77, 77, 77)),
        ("wide", wide, (77, 77, 77)),
        ("bits", Image.new("1", (9, 9), 1), (255, 255, 255)),
        ("alpha", Image.new("RGBA", (9, 9), (1, 2, 3, 255)), (1, 2, 3)),
        ("half", Image.new("RGBA", (9, 9), (0, 0, 0, 127)), (128, 128, 128)),
        ("grey-alpha", Image.new("LA", (9, 9), (0, 0)), (255, 255, 255)),
        ("palette", Image.new("RGB", (9, 9), (9, 99, 200)).convert("P"), None),
    ):
        image.save(tmp_path / f"{name}.png")
        array = decode(tmp_path / f"{name}.png")
        assert array.shape == (8, 8, 3)
        if expected:
            assert (array == expected).all()


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_transparent_colours_become_white(tmp_path: Path, mode: str) -> None:
    """Not an alpha channel, but one colour of the file."""
    image = Image.new("RGB", (9, 9), (0, 0, 0)).convert(mode)
    image.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert (decode(tmp_path / "a.png") == 255).all()


def test_the_formats_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.gif")
    with pytest.raises(UserError, match=r"a\.gif: it is none of PNG, JPEG, WebP and BMP"):
        decode(tmp_path / "a.gif")


def test_camera_orientation_is_applied(tmp_path: Path) -> None:
    array = np.zeros((8, 8, 3), np.uint8)
    array[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    image = decode(tmp_path / "a.png")
    assert image[0].max() == 0
    assert image[7].min() == 255


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot read"), (b"no image", "cannot read"), (None, "cannot read")],
)
def test_damaged_image_is_named(tmp_path: Path, content: Optional[bytes], reason: str) -> None:
    fill(tmp_path, {"cat": 3, "dog": 3})
    path = tmp_path / "dog/001.png"
    if content is None:
        noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (64, 64, 3))
        Image.fromarray(noise.astype(np.uint8)).save(path)
        content = path.read_bytes()[:5000]
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{reason}.*dog/001.png"):
        load_image_folder(str(tmp_path))


def test_large_image_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, {"cat": 2, "dog": 2})
    monkeypatch.setattr(decoding, "MAX_PIXELS", 40 * 36 - 1)
    with pytest.raises(UserError, match=r"cat/00\d.png has 40 x 36 pixels, more than"):
        load_image_folder(str(tmp_path))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"cat/00\d.png has more than"):
        load_image_folder(str(tmp_path))


def test_too_many_images_for_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"cat": 2, "dog": 2})
    monkeypatch.setattr(image_folder, "MAX_TOTAL_BYTES", 4 * 32 * 32 * 3 - 1)
    with pytest.raises(UserError, match="4 images of 32x32 need"):
        load_image_folder(str(tmp_path))


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none' does not exist; expected .*/train/<class>/"):
        load_image_folder(str(tmp_path / "none"))
    with pytest.raises(UserError, match="has 0 class folders, at least 2 needed"):
        load_image_folder(str(tmp_path))
    fill(tmp_path, {"cat": 3})
    with pytest.raises(UserError, match="has 1 class folders"):
        load_image_folder(str(tmp_path))
    fill(tmp_path, {"dog": 1})
    with pytest.raises(UserError, match=r"dog has 1 images, at least 2 needed; accepted endings"):
        load_image_folder(str(tmp_path))
    with pytest.raises(UserError, match="size 0 was asked for"):
        load_image_folder(str(tmp_path), size=0)


def test_test_classes_must_be_known(tmp_path: Path) -> None:
    fill(tmp_path / "train", {"cat": 2, "dog": 2})
    fill(tmp_path / "test", {"emu": 2})
    with pytest.raises(UserError, match=r"test has classes that .*train has not: emu"):
        load_image_folder(str(tmp_path))
    (tmp_path / "test/emu").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="has no images in folders named like"):
        load_image_folder(str(tmp_path))


def test_class_of_trains(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": 4})
    (tmp_path / "cat").rename(tmp_path / "train")
    fill(tmp_path, {"dog": 4})
    assert load_image_folder(str(tmp_path)).class_names == ("dog", "train")


def test_links_are_used_but_not_followed_upwards(tmp_path: Path) -> None:
    root = tmp_path / "root"
    fill(root, {"cat": 4})
    fill(tmp_path / "other", {"dog": 4})
    os.symlink(tmp_path / "other/dog", root / "dog")
    os.symlink(root, root / "loop")
    os.symlink("..", root / "up")
    assert load_image_folder(str(root)).class_names == ("cat", "dog")
    os.symlink("missing", root / "cat/broken.png")
    with pytest.raises(UserError, match=r"cannot read .*broken.png"):
        load_image_folder(str(root))


def test_constant_images_do_not_divide_by_zero(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.new("L", (32, 32)).save(tmp_path / name / f"{index}.png")
    assert load_image_folder(str(tmp_path)).std == (1 / 255,) * 3
