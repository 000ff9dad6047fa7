"""What a training in PyTorch says at its start, and what it records of the device."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch  # type: ignore[import-not-found]

from bridge.loop.fit import Job
from bridge.loop.settings import BridgeConfig
from formats.atomic import write_atomically
from training.batches.in_memory import Loaders
from training.records.environment import threads_text
from training.records.run_folder import ENV_FILE
from training.records.run_progress import Progress
from training.settings.config import diff_from_default


def describe_device(device: torch.device) -> dict[str, Any]:
    """Return what the record says of the device."""
    known: dict[str, Any] = {"device": str(device), "torch": torch.__version__}
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        known["gpu"] = torch.cuda.get_device_name(device)
        known["compute_capability"] = f"{major}.{minor}"
        known["cuda"], known["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    return known


def note_in_env(folder: Path, note: dict[str, Any]) -> None:
    """Append to the list ``bridge`` of env.json, which has an entry per process."""
    path = folder / ENV_FILE
    try:
        env = json.loads(path.read_bytes())
        env.setdefault("bridge", []).append(note)
    except (OSError, ValueError, AttributeError):
        return  # nothing is computed from it
    write_atomically(path, json.dumps(env, indent=2).encode() + b"\n")


def announce(
    config: BridgeConfig,
    job: Job,
    loaders: Loaders,
    folder: Path,
    progress: Progress,
    rates: Mapping[str, float],
) -> None:
    """Say what is trained on what, where, and what is not the default."""
    held_out = f", {len(loaders.valid.data)} held out" if loaders.valid else ""
    print(
        f"{config.model or 'network'} on {config.dataset}: {len(loaders.train.data)} images to "
        f"train{held_out}, {len(loaders.test.data)} to test"
    )
    device = describe_device(job.updater.device)
    measured = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    timed = f" (measured images/s: {measured})" if measured else ""
    print(
        f"on {device.get('gpu', device['device'])}, PyTorch {device['torch']}, {config.precision}, "
        f"{threads_text()}, steps run by: {job.engine}{timed}"
    )
    print(f"changed from default: {diff_from_default(config, but=['threads']) or 'nothing'}")
    where = f"goes on after epoch {progress.epoch}, batch {progress.batch}"
    print(f"run folder {folder}, {where if progress.step else 'starts'}", flush=True)
    if not torch.cuda.is_available() and config.device == "auto":
        print("note: no GPU is used; this takes as long as a CPU takes", file=sys.stderr)
