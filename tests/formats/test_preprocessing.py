"""What the setting `normalization` names, for images of one channel and of three."""

from __future__ import annotations

from typing import Optional

import pytest

from formats.errors import UserError
from formats.images.preprocessing import FIGURES, figures_of, normalization_text

GREY = ((0.5,), (0.25,))
COLOURS = ((0.5, 0.25, 0.125), (0.2, 0.3, 0.1))


@pytest.mark.parametrize("figures", [GREY, COLOURS])
def test_numbers_are_read_bit_for_bit(figures: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    text = normalization_text(*figures)
    assert figures_of(text) == figures_of(text, len(figures[0])) == figures


def test_pixels_as_they_are_have_any_number_of_channels() -> None:
    assert figures_of("none", 1) == ((0.0,), (1.0,))
    assert figures_of("none", 3) == FIGURES["none"] == figures_of("none")
    assert figures_of("dataset", 1) is None


@pytest.mark.parametrize(
    ("text", "channels", "said"),
    [
        ("imagenet", 1, r"it has 3 channel\(s\), the images have 1; give .* or dataset"),
        ("0.5/0.2", 3, r"it has 1 channel\(s\), the images have 3"),
        ("0.5,0.5/0.2,0.2", None, r"red, green and blue as .* \(of grey: 0.5/0.2\)"),
        ("0.5/0", None, "give one of dataset"),
        ("0.5/nan", None, "give one of dataset"),
        ("other", 1, "give one of dataset"),
    ],
)
def test_others_are_refused(text: str, channels: Optional[int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        figures_of(text, channels)
