"""What mkdocs.yml leaves to code: pages that lie outside of docs/, their links, and the API.

A link means in the site what it means in the checkout. One that leads to a file without a page is
left as it is, so that the strict build fails over it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
# Where the files outside of docs/ are in the site.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "cifar_param/README.md": "published/cifar.md",
    "mnist_param/README.md": "published/mnist.md",
    "compat/README.md": "compat.md",
    "cifar_param/index.csv": "published/cifar.csv",
    "LICENSE": "LICENSE.txt",
    "CITATION.cff": "CITATION.cff.txt",
}
# A page of the API: its title, its modules.
API = {
    "api/networks.md": (
        "Networks",
        "model.pretrained.create model.pretrained.classify model.pretrained.store",
        "model.registry model.residual_attention_network model.ram_resnet",
        "model.recurrent_attention model.hybrid_loss model.summary",
    ),
    "api/files.md": (
        "Parameter files",
        "model.weights.loading model.weights.published model.weights.convert formats.param_file",
        "formats.weight_file",
    ),
    "api/training.md": (
        "Training and scoring",
        "train_cifar train_mnist_glimpse training.loop.evaluation training.loop.fit",
        "training.settings.schedules training.classifier.recipes",
    ),
    "api/data.md": (
        "Data",
        "training.data.catalogue training.data.dataset training.augmentation.augment",
        "training.batches.in_memory formats.images.preprocessing",
    ),
    "api/export.md": (
        "Inference and export",
        "model.execution.inference model.execution.quantization model.export.export_symbol",
        "model.export.export_files",
    ),
}
ELSEWHERE = re.compile(
    r"<(?:script|img|iframe)[^>]*\bsrc=\"https?:|<link[^>]*stylesheet[^>]*https?:"
)
LINK = re.compile(r"(\]\(|\bsrc=\")([^)\"\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are not in docs/."""
    for source, place in OUTSIDE.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        if place.endswith(".md"):
            content = relinked(content, source, place)
        files.append(File.generated(config, place, content=content))
    for place, (title, *modules) in API.items():
        parts = [f"# {title}\n", *(f"::: {module}\n" for module in " ".join(modules).split())]
        files.append(File.generated(config, place, content="\n".join(parts)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead the links of a page in docs/ that leave it to where their files are in the site."""
    place = page.file.src_uri
    if place in OUTSIDE.values() or place in API:
        return markdown
    return relinked(markdown, f"docs/{place}", place)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would fetch something from elsewhere."""
    if found := ELSEWHERE.search(output):
        raise PluginError(f"{page.file.src_uri} fetches from elsewhere: {found[0]}")
    return output


def relinked(text: str, source: str, place: str) -> str:
    """Return a text of the file `source` with links as they are at `place` of the site."""

    def lead(match: re.Match[str]) -> str:
        path, hash_sign, anchor = match[2].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there = OUTSIDE.get(target) or (target[5:] if target.startswith("docs/") else None)
        if there is None:
            return match[0]
        here = posixpath.relpath(there, posixpath.dirname(place) or ".")
        return f"{match[1]}{here}{hash_sign}{anchor}"

    return LINK.sub(lead, text)
