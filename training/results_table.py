"""Print the README's table of results from ``cifar_param/index.csv``."""

from __future__ import annotations

from training.results import read_index


def results_table() -> str:
    """Return one Markdown row per published file, best accuracy first within a data set."""
    rows = sorted(read_index(), key=lambda row: (row["dataset"], -float(row["test_acc"])))
    lines = [
        "| file | network | data | test accuracy | epochs | hours | trained on | command |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| `{row['file']}` | {row['model']} | {row['dataset']}, {row['normalization']} "
            f"normalization | {float(row['test_acc']):.2%} (1 run) | {row['epochs']} | "
            f"{row['hours']} | {row['hardware']} | `{row['command']}` |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(results_table())
