"""The networks that settings describe, and what is refused of them."""

from __future__ import annotations

from typing import Any

from formats.errors import UserError
from model.recurrent_attention import FAMILY as GLIMPSE
from model.registry import FAMILIES, create_model, overrides_of
from training.classifier.config import OVERRIDES, VARIANT, ClassifierConfig
from training.settings.run_config import flags_of


def create_classifier(name: str, *args: Any, **overrides: Any) -> Any:
    """Return what `model.create_model` does; UserError for a glimpse model or another's flag."""
    refuse_glimpses(name)
    if name in FAMILIES:
        fields, _ = overrides_of(name)
        # The attention of a ResNet is another thing than that of masks, which the flag means.
        masks = set(VARIANT) <= set(fields)
        fits = [key for key in OVERRIDES if key in fields and (masks or key not in VARIANT)]
        wrong = [key for key in OVERRIDES if key in overrides and key not in fits]
        if wrong:
            raise UserError(
                f"{', '.join(flags_of(wrong))}: not for {name}, which takes "
                f"{', '.join(flags_of(fits))}. Leave it out, or choose another network with --model"
            )
    return create_model(name, *args, **overrides)


def refuse_glimpses(name: str) -> None:
    """Raise UserError for a glimpse model, which is no classifier of whole images."""
    if name in GLIMPSE:
        raise UserError(f"{name} is a glimpse model: use train_mnist_glimpse.py for it")


def build_classifier(config: ClassifierConfig, classes: int, **norms: Any) -> Any:
    """Return the network that the settings describe, uninitialized.

    `norms` are those of `training.compute.devices.norm_arguments`.
    """
    chosen = {name: getattr(config, name) for name in OVERRIDES}
    overrides = {name: value for name, value in chosen.items() if value is not None}
    return create_classifier(config.model, classes, **overrides, **norms)
