"""The networks that settings describe, and what is refused of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from formats.errors import UserError
from model.recurrent_attention import FAMILY as GLIMPSE
from model.registry import FAMILIES, create_model, overrides_of, read_settings
from model.weights.known import NOT_OF_THE_SPEC
from training.classifier.config import OVERRIDES, VARIANT, ClassifierConfig
from training.settings.words import flags_of


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
    further = further_settings(config.model, config.set)
    twice = [name for name in further if name in overrides]
    if twice:
        raise UserError(
            f"{', '.join(flags_of(twice))} and --set {twice[0]}={further[twice[0]]} say the same "
            "thing: give one of them"
        )
    overrides.update(further)
    return create_classifier(config.model, classes, **overrides, **norms)


def further_settings(name: str, words: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a network's spec that ``--set`` names.

    Raises
    ------
    UserError, model.registry.ModelError
        When the network has no such field, or it is not one to set.
    """
    further = read_settings(words)
    if not further:
        return {}
    refuse_glimpses(name)
    if name not in FAMILIES:
        create_model(name)  # says what there is
        raise UserError(f"--set {words[0]}: {name} is as its name says; leave it out")
    fields = [field for field in overrides_of(name)[0] if field not in NOT_OF_THE_SPEC]
    wrong = [field for field in further if field not in fields]
    if wrong:
        hint = "; the number of classes is --classes" if "classes" in wrong else ""
        raise UserError(
            f"--set {wrong[0]}={further[wrong[0]]}: {name} has no such field to set{hint}. It has "
            f"{', '.join(fields)}"
        )
    for field, value in further.items():
        usual = getattr(FAMILIES[name][0], field)
        if not _is_like(value, usual):
            raise UserError(
                f"--set {field}={value}: {name} has {field}={usual}; give the same kind of value"
            )
    return further


def _is_like(value: Any, usual: Any) -> bool:
    if usual is None:
        return True
    if isinstance(usual, tuple):
        return isinstance(value, tuple) and all(_is_like(one, usual[0]) for one in value)
    return type(value) is type(usual) or (isinstance(usual, float) and type(value) is int)
