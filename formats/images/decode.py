"""Pictures of all kinds to RGB pixels, with a bound on what a file may unpack to."""

from __future__ import annotations

import io
import os
import stat
import warnings
from typing import Any, Optional

import numpy as np

from formats.errors import UserError

DECODERS = ("PNG", "JPEG", "WEBP", "BMP")
FORMATS = "PNG, JPEG, WebP and BMP"
MAX_PIXELS = 50_000_000  # of one image: decoded as RGB that is 150 MB
MAX_FILE_BYTES = 256 * 2**20  # uncompressed, so many pixels with alpha fit


def decode_image(path: str, size: int, share: float = 1.0) -> np.ndarray:
    """Return the central square of a picture, resized: uint8 (size, size, 3).

    Any mode becomes RGB, what is transparent is laid over white, as browsers show it, and the
    camera's orientation is applied. The filter is bicubic, widened by the scale where the picture
    gets smaller. `share` is the square's edge as a part of the shorter side.

    Raises
    ------
    UserError
        When the file cannot be decoded or has more than `MAX_PIXELS` pixels.
    """
    return np.asarray(centre_square(open_rgb(path, round(size / share)), size, share))


def check_file(path: str) -> None:
    """Raise UserError for what cannot be a picture's file: a pipe, which would be waited for for
    ever, a device, a folder, or more than `MAX_FILE_BYTES`. A missing file is found by opening it.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
        raise UserError(f"cannot read the image {path}: this is {kind}; give the path of a picture")
    if status.st_size > MAX_FILE_BYTES:
        raise UserError(
            f"cannot read the image {path}: it has {status.st_size:,} bytes, more than the "
            f"{MAX_FILE_BYTES:,} allowed; make it smaller"
        )


def open_rgb(path: str, size: int, data: Optional[bytes] = None) -> Any:
    """Return a picture as a Pillow image in RGB, upright.

    Parameters
    ----------
    path
        The file; or, with `data`, what messages call it.
    size
        The shorter side is wanted at least this long: a JPEG may come at a half, quarter or eighth
        of its size when that is still twice as long.
    data
        Content of the file.

    Raises
    ------
    UserError
        See :func:`decode_image`.
    """
    from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

    # gluoncv sets this for the whole process when it is imported; a cut-off file is an error here.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    what = path if data is not None else f"the image {path}"
    if data is None:
        check_file(path)
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is higher; the check below is an error where it only warns.
            warnings.simplefilter("ignore")
            source: Any = path if data is None else io.BytesIO(data)
            with Image.open(source, formats=DECODERS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UserError(
                        f"{path} has {width} x {height} pixels, more than the {MAX_PIXELS:,} "
                        "allowed; make it smaller"
                    )
                image.draft("RGB", (2 * size, 2 * size))
                return _as_rgb(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} has more than the {MAX_PIXELS:,} pixels allowed; make it smaller"
        ) from error
    except FileNotFoundError as error:
        raise UserError(f"cannot read {what}: there is no such file; check the path") from error
    except UnidentifiedImageError as error:
        raise UserError(
            f"cannot read {what}: it is none of {FORMATS}; convert or remove the file"
        ) from error
    except Exception as error:  # a damaged image can raise nearly anything
        raise UserError(f"cannot read {what}: {error}; replace or remove the file") from error


def to_rgb(picture: Any) -> Any:
    """Return a Pillow image, or a uint8 array (H, W, 3) in RGB, as a Pillow image as `open_rgb`.

    Raises
    ------
    UserError
        When it is something else, or the image's file turns out to be damaged.
    """
    from PIL import Image, ImageFile, ImageOps

    if isinstance(picture, Image.Image):
        ImageFile.LOAD_TRUNCATED_IMAGES = False  # as in `open_rgb`
        try:
            return _as_rgb(ImageOps.exif_transpose(picture))
        except Exception as error:  # it is decoded only now
            raise UserError(f"cannot read the image: {error}; give another one") from error
    given = f"of type {type(picture).__name__}"
    if isinstance(picture, np.ndarray):
        colours = picture.ndim == 3 and picture.shape[2] == 3 and picture.size
        if picture.dtype == np.uint8 and colours:
            return Image.fromarray(np.ascontiguousarray(picture))
        given = f"an array of {picture.dtype} {picture.shape}"
    raise UserError(
        f"one picture is {given}; give a path, a Pillow image, or a uint8 array (height, width, 3)"
    )


def _as_rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip, not scale
        return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return image.convert("RGB")


def centre_square(image: Any, size: int, share: float = 1.0) -> Any:
    """Crop the central square and resize it: the same as resizing the shorter side first.

    `share` is the square's edge as a part of the shorter side.
    """
    from PIL import Image

    width, height = image.size
    side = share * min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
