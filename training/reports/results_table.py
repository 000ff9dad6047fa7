"""Print the tables of docs/results.md and docs/glimpse.md from the indices of published files."""

from __future__ import annotations

from model.weights.published import GLIMPSE_INDEX, read_index


def results_table() -> str:
    """Return one Markdown row per published file, best accuracy first within a data set."""
    rows = sorted(read_index(), key=lambda row: (row["dataset"], -float(row["test_acc"])))
    lines = _header("file | data | test accuracy | epochs | precision | hours")
    for row in rows:
        lines.append(
            f"| `{row['file']}` | {row['dataset']}, {row['normalization']} normalization | "
            f"{float(row['test_acc']):.2%} (1 run) | {row['epochs']} | {row['precision']} | "
            f"{row['hours']} |"
        )
    return "\n".join(lines)


def glimpse_table() -> str:
    """Return one Markdown row per published glimpse model, in the order of the index."""
    lines = _header("file | task | error, 1 rollout | error, 10 rollouts | epochs | hours")
    for row in read_index(GLIMPSE_INDEX):
        single, several = (
            f"{float(row[f'{kind}_error']):.2f} ± {float(row[f'{kind}_std']):.2f} %"
            for kind in ("single", "m10")
        )
        lines.append(
            f"| `{row['file']}` | {row['dataset']} | {single} | {several} | {row['epochs']} | "
            f"{row['hours']} |"
        )
    return "\n".join(lines)


def _header(names: str) -> list[str]:
    return [f"| {names} |", "|---" * (names.count("|") + 1) + "|"]


if __name__ == "__main__":
    print(results_table(), glimpse_table(), sep="\n\n")
