"""From settings to a run that is ready to train: network, data, device, state, record."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np
import torch  # type: ignore[import-not-found]

from bridge.graph.symbol_graph import parse_symbol
from bridge.graph.symbol_module import SymbolModule, read_symbol
from bridge.loop.announce import announce, describe_device, note_in_env
from bridge.loop.average import TensorAverage
from bridge.loop.device_batches import DeviceBatches, DeviceImages
from bridge.loop.engine import choose_step
from bridge.loop.fit import Job, TorchFit
from bridge.loop.optimizer import OPTIMIZERS
from bridge.loop.settings import BridgeConfig
from bridge.loop.state import named_tensors, restore, trained_tensors
from bridge.loop.updater import StepSettings, Updater
from formats.atomic import write_atomically
from formats.card import VERSION, CardError, check_card
from formats.digest import verify_digest
from formats.errors import UserError, first_line
from formats.images.preprocessing import (
    PREPROCESSING_FILE,
    Preprocessing,
    normalization_text,
    own_preprocessing,
)
from formats.weight_file import read_weights
from training.augmentation.label_noise import noise_files
from training.batches.in_memory import Loaders
from training.classifier.config import OVERRIDES as NOTED
from training.classifier.loaders import build_loaders, open_dataset
from training.data.identity import compare_with_record, identity_of
from training.records.cards import data_section
from training.records.environment import describe, warn_threads
from training.records.run import Run
from training.records.run_folder import default_folder
from training.records.run_progress import Progress
from training.records.state_file import load_state, normalization_before
from training.settings.config import from_dict, to_dict
from training.settings.words import flags_of

SYMBOL_FILE = "symbol.json"
HALF = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
SECONDS_TO_SAVE = 60.0  # engines are not measured so shortly before the deadline


class Prepared(NamedTuple):
    """An open run and its training."""

    run: Run
    fit: TorchFit


def prepare(config: BridgeConfig, argv: Sequence[str], started: float) -> Prepared:
    """Make everything ready; `started` is the time of `time.monotonic` that limits count from.

    Raises
    ------
    UserError
        For settings, data, a device or a run folder that cannot be used; also SymbolError and
        ParamFileError. No run folder is made then.
    """
    device = choose_device(config.device)
    config = replace(config, precision=resolve_precision(config.precision, device))
    progress, arrays = Progress(), dict[str, np.ndarray]()
    meta: dict[str, Any] = {}
    if config.resume:
        progress, arrays, meta = load_state(config.resume)
    module, symbol = _network(config, arrays)
    config = with_network(config, _described(symbol))
    data = open_dataset(config)
    # First, because it says best what is wrong.
    other = config.resume and compare_with_record(progress, identity_of(data), config.data_changed)
    if config.symbol and not config.resume:
        _warn_of_other_rows(config.start or default_weights(config.symbol), data)
    classes = count_logits(module, data)
    loaders = build_loaders(_as_before(config), data, classes)
    config.check_judged(loaders.valid is not None)
    if other:
        progress.take_other_data(len(loaders.train), config.epochs)
    if loaders.identity:
        progress.data = loaders.identity.to_dict()
    updater = build_updater(config, module, device)
    average = TensorAverage(named_tensors(module), config.ema) if config.ema else None
    if config.resume:
        restore(updater, arrays, meta)
        warn_threads(progress.threads, describe()["threads"]["effective"])
        if average and progress.step:
            average.load(arrays, progress.step)
    else:
        progress.threads = describe()["threads"]["effective"]
    deadline = started + config.stop_after if config.stop_after else float("inf")
    job, rates = _job(config, updater, average, loaders, meta.get("engine"), deadline)
    expected = Preprocessing(
        data.train.images.shape[1], loaders.train.mean, loaders.train.std, tuple(data.class_names)
    )
    card = {
        "network": _section(symbol, config, classes) if config.model else {"classes": classes},
        **expected.card_sections(),
        "data": data_section(loaders.identity or identity_of(data)),
    }
    job = job._replace(card=card, drops_out=_drops_out(symbol))
    run = _open_run(config, argv, progress, loaders, expected, symbol)
    try:
        note = {"engine": job.engine, "images_per_sec": rates, **describe_device(device)}
        note_in_env(Path(run.folder), note)
        announce(config, job, loaders, Path(run.folder), progress, rates)
        return Prepared(run, TorchFit(job, config, run, progress, deadline))
    except BaseException:
        run.close()
        raise


def with_start(config: BridgeConfig, given: Mapping[str, Any]) -> BridgeConfig:
    """Return the settings with the normalization of trained weights that a run starts from.

    `given` are those that the user has named; a normalization among them goes before.
    """
    if config.resume or "normalization" in given:
        return config
    path = config.start or default_weights(str(config.symbol))
    expected, origin = own_preprocessing(path)
    if expected is None:
        return config
    print(f"normalization: that of {path} ({origin}); --normalization names another")
    return replace(config, normalization=normalization_text(expected.mean, expected.std))


def _drops_out(symbol: str) -> bool:
    return any(node.op == "Dropout" for node in parse_symbol(symbol).nodes)


def _as_before(config: BridgeConfig) -> BridgeConfig:
    """Return the settings with the figures that a run has normalized its images by."""
    if not config.resume:
        return config
    named = normalization_before(config.resume, config.normalization)
    return replace(config, normalization=str(named))


def _warn_of_other_rows(path: str, data: Any) -> None:
    from training.classifier.matching import warn_of_other_rows

    expected, _ = own_preprocessing(path)
    warn_of_other_rows(expected.class_names if expected else (), data, path)


def choose_device(name: str) -> torch.device:
    """Return the device that a name means, after computing on it.

    Raises
    ------
    UserError
        When it is not there or cannot compute.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("cuda, cuda:1 or cpu is meant")
        value = float(torch.ones(2, device=device).sum())
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"--device {name} cannot be used: {first_line(error)}. Leave --device out to take what "
            "is there"
        ) from error
    if value != 2:
        raise UserError(f"--device {name} computes wrong numbers; use another one")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # where graphs are captured and events recorded
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Return the precision that a name means on a device."""
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" else "float32"


def _network(config: BridgeConfig, arrays: dict[str, np.ndarray]) -> tuple[SymbolModule, str]:
    """Return the network and the text of its symbol."""
    if config.resume:
        symbol = read_symbol(Path(config.resume) / SYMBOL_FILE)
        weights = {
            name[len("param:") :]: value
            for name, value in arrays.items()
            if name.startswith("param:")
        }
    else:
        symbol = read_symbol(str(config.symbol))
        path = config.start or default_weights(str(config.symbol))
        verify_digest(path)
        weights = read_weights(path)
    return SymbolModule(symbol, weights), symbol


def default_weights(symbol: str) -> str:
    """Return the file of weights that belongs beside a symbol by its name.

    Raises
    ------
    UserError
        When there is none.
    """
    stem = symbol.removesuffix(".json").removesuffix("-symbol")
    names = [stem + ending for ending in (".param", ".params", "-0000.params")]
    found = next((name for name in names if os.path.exists(name)), None)
    if found is None:
        raise UserError(
            f"no weights beside {symbol}: looked for {', '.join(names)}. Name the file that the "
            "exporter wrote with --start FILE"
        )
    return found


def with_network(config: BridgeConfig, noted: Mapping[str, Any]) -> BridgeConfig:
    """Return the settings with those of the network that the exporter noted, `noted`.

    A symbol without notes is what ``--model`` and the network's own settings say.

    Raises
    ------
    UserError
        When a network's own setting, such as ``wiring``, contradicts the notes, or has no network
        that it belongs to.
    """
    other = noted.get("model", config.model)
    if config.model and config.model != other and not config.resume:
        raise UserError(
            f"--model {config.model}: the symbol is {other} as it was exported. Leave it out"
        )
    if config.model and config.model != noted.get("model"):
        return config
    told = [] if config.resume else [key for key in NOTED if getattr(config, key) is not None]
    if told and not noted:
        raise UserError(
            f"{', '.join(flags_of(told))}: the symbol does not say which network it is; name it "
            "with --model too"
        )
    contrary = [key for key in told if getattr(config, key) != noted[key]]
    if contrary:
        raise UserError(
            f"{', '.join(flags_of(contrary))}: the symbol is {noted['model']} as it was exported. "
            "Leave it out, or export the network with it"
        )
    return replace(config, **{key: noted[key] for key in ("model", *NOTED) if key in noted})


def _described(symbol: str) -> dict[str, Any]:
    """Return the settings of the network that the exporter noted at the symbol's first input."""
    try:
        attributes = json.loads(symbol)["nodes"][0].get("attrs", {})
        noted = {
            key: json.loads(attributes[f"__{key}__"]) for key in NOTED if f"__{key}__" in attributes
        }
        noted["model"] = attributes.get("__network__", "")
        section = json.loads(attributes.get("__card__", "{}"))  # settings that are no flags too
        settings = section.get("settings", {}) if section.get("model") == noted["model"] else {}
        noted = {**{key: settings[key] for key in NOTED if _is_flag(key, settings)}, **noted}
        return to_dict(from_dict(BridgeConfig, noted)) if noted["model"] else {}
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, UserError):
        return {}


def _is_flag(key: str, settings: Mapping[str, Any]) -> bool:
    """Return whether a setting of a card is there and has a value that its flag takes too."""
    try:
        from_dict(BridgeConfig, {key: settings[key]})
    except (UserError, KeyError):
        return False
    return True


def _section(symbol: str, config: BridgeConfig, classes: int) -> dict[str, Any]:
    """Return the section ``network`` of the card: what the exporter noted, or what is told here."""
    told = {key: getattr(config, key) for key in NOTED if getattr(config, key) is not None}
    section = {"model": config.model, "classes": classes, "settings": told}
    try:
        noted = json.loads(json.loads(symbol)["nodes"][0]["attrs"]["__card__"])
        check_card({"card": VERSION, "network": noted})
        return dict(noted) if noted["model"] == config.model else section
    except (CardError, ValueError, KeyError, IndexError, TypeError):
        return section


def count_logits(module: Any, data: Any) -> int:
    """Return the number of logits that the network gives for images of the data set.

    Raises
    ------
    UserError
        When it takes no such images, gives something else, or has fewer logits than classes.
    """
    height, width, channels = data.train.images.shape[1:]
    module.eval()
    try:
        with torch.no_grad():
            logits = module(torch.zeros(1, channels, height, width))
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise UserError(
            f"the network cannot compute images {channels}x{height}x{width} of {data.name}: "
            f"{first_line(error)}"
        ) from error
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2 or shape[1] < data.classes:
        raise UserError(
            f"the network gives {shape} for an image; {data.name} needs logits "
            f"(1, {data.classes}). Export the network with as many classes as the data set has"
        )
    return int(shape[1])


def build_updater(config: BridgeConfig, module: Any, device: torch.device) -> Updater:
    """Put the network onto the device and return its updater; sets PyTorch's switches for it."""
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    module.to(device=device, memory_format=layout).train()
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = config.tf32
    optimizer = OPTIMIZERS[config.optimizer](trained_tensors(module), config)
    half, smoothing = HALF[config.precision], config.label_smoothing
    settings = StepSettings(
        config.batch_size, config.micro_batch, half, config.clip_gradient, smoothing
    )
    return Updater(module, optimizer, settings)


def _job(
    config: BridgeConfig,
    updater: Updater,
    average: Optional[TensorAverage],
    loaders: Loaders,
    saved_engine: Optional[str],
    deadline: float,
) -> tuple[Job, dict[str, float]]:
    """Put the data onto the device and choose how a step runs: as before, or by measuring."""
    device = updater.device
    train = DeviceBatches(loaders.train, device, config.channels_last)
    before = saved_engine if config.compile == "auto" else None
    if device.type != "cuda" and before != "eager":
        before = None
    batch = train.make(next(iter(loaders.train.plans(0, True, 0))))
    until = deadline - SECONDS_TO_SAVE
    step, engine, rates = choose_step(updater, config.compile, batch, until, before)
    valid = DeviceImages(loaders.valid, device) if loaders.valid else None
    test = DeviceImages(loaders.test, device)
    return Job(updater, step, engine, train, valid, test, average), rates


def _open_run(
    config: BridgeConfig,
    argv: Sequence[str],
    progress: Progress,
    loaders: Loaders,
    expected: Preprocessing,
    symbol: str,
) -> Run:
    if config.resume:
        return Run.resume(config.resume, progress.epoch, tensorboard=config.tensorboard)
    folder = Path(config.run_dir or default_folder(config.dataset, config.model or "bridge"))
    run = Run.create(folder, to_dict(config), ["-m", "bridge.train", *argv])
    train = loaders.train
    files = {
        SYMBOL_FILE: symbol.encode(),
        PREPROCESSING_FILE: expected.to_json(),
        **noise_files(train.data, config.label_noise, config.seed),
    }
    for name, content in files.items():
        write_atomically(folder / name, content)
    return run
