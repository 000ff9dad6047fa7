"""Print the part of docs/weights.md that describes every published file, from the indexes."""

from __future__ import annotations

from formats.weight_file import read_card
from model.pretrained.store import Row, choose_row, find_file, published_rows

# What a data set's networks cannot do; a card without such a sentence would promise too much.
SMALL = (
    "Trained on images of 32x32 pixels: of another picture it sees the central square, shrunk to "
    "that size."
)
LIMITS = {
    "cifar10": f"Every picture gets one of the ten classes of CIFAR-10, whatever it shows. {SMALL}",
    "cifar100": f"Every picture gets one of the hundred classes of CIFAR-100. {SMALL}",
    "shapes": f"Knows ten drawn shapes and nothing of photographs; for trying things out. {SMALL}",
    "mnist": "One upright digit, bright on black, that fills 28x28 pixels as in MNIST.",
    "translated": "One digit of MNIST's size somewhere on an empty black image of 60x60 pixels.",
    "cluttered": "One digit among four pieces of other digits on an image of 60x60 pixels.",
}


def model_cards() -> str:
    """Return a Markdown section for each published file, in the order of the indexes."""
    return "\n\n".join(map(_section, published_rows()))


def _section(row: Row) -> str:
    name, dataset = row["model"], row["dataset"]
    card = read_card(find_file(row)) or {}
    data, image = card["data"], card["image"]
    best = choose_row(name, dataset)["file"] == row["file"]
    usual = choose_row(name)["dataset"] == dataset
    word = "True" if usual else f'"{dataset}"'
    by_name = f"`create_model({name!r}, pretrained={word})`".replace("'", '"')
    place = f"{row['hours']} hours on {row['hardware']}, commit {row['commit']}"
    lines = [
        f"## {name}, {dataset}" + ("" if best else f" ({row['file'].split('_')[-1][:8]})"),
        "",
        "| | |",
        "|---|---|",
        f"| file | `{row['folder']}/{row['file']}` |",
        f"| by name | {by_name if best else 'by its path only, for another file is better'} |",
        f"| measured | {_scores(row)} |",
        f"| data | {dataset}: {data['train']:,} training images, {data['test']:,} test images |",
        f"| training | {row['epochs']} epochs, seed {row['seed']}, {place} |",
        f"| command | `{row['command']}` |",
        f"| input | {image['height']}x{image['width']} pixels, {_normalization(image)} |",
        f"| limits | {LIMITS[dataset]} One training, one seed. |",
        f"| licence | {card['licence']} |",
        f"| SHA-256 | `{row['sha256']}`, of the arrays alone `{row['arrays']}` |",
    ]
    return "\n".join(lines)


def _scores(row: Row) -> str:
    if "test_acc" in row:
        return (
            f"accuracy {float(row['test_acc']):.2%}, loss {row['test_loss']}, over all test images "
            "after the last epoch"
        )
    return (
        f"error {float(row['single_error']):.2f} % with one rollout, {float(row['m10_error']):.2f} "
        f"% with ten, {float(row['random_error']):.2f} % where it looks at random places"
    )


def _normalization(image: dict[str, list[float]]) -> str:
    if set(image["mean"]) == {0.0} and set(image["deviation"]) == {1.0}:
        return "pixels from 0 to 1"
    numbers = (", ".join(f"{value:.4g}" for value in image[key]) for key in ("mean", "deviation"))
    mean, deviation = numbers
    return f"mean {mean}, standard deviation {deviation} of pixels from 0 to 1"


if __name__ == "__main__":
    print(model_cards())
