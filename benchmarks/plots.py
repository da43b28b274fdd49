"""The results as PNG files; nothing without matplotlib (the extra `bench`)."""

from __future__ import annotations

from pathlib import Path

from benchmarks.results import Figure, Results

#: One colour a case, in every plot.
COLOURS = {
    "neli": "C0", "neli led": "C9", "neli parallel": "C4", "neli kafka": "C6", "celery": "C2", "celery led": "C8",
    "redbeat": "C3", "send_task": "C7",
}  # fmt: skip


def draw(bench: Results, directory: Path) -> list[Path]:
    """Draw each metric that has sizes, and the distributions; the files."""
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed")
        return []
    matplotlib.use("Agg")
    groups: dict[tuple[str, str, str], list[Figure]] = {}
    for figure in bench.figures:
        if figure.size is not None and figure.value is not None:
            groups.setdefault((figure.part, figure.metric, figure.unit), []).append(figure)
    files = [_against_size(name, rows, directory) for name, rows in groups.items()]
    if bench.distributions:
        files.append(_distribution(bench.distributions, directory))
    return files


def _against_size(name: tuple[str, str, str], rows: list[Figure], directory: Path) -> Path:
    from matplotlib import pyplot

    part, metric, unit = name
    transports = list(dict.fromkeys(row.transport for row in rows))
    picture, axes = pyplot.subplots(
        1, len(transports), figsize=(5.5 * len(transports) + 1, 4.5), squeeze=False, sharey=True
    )
    for axis, transport in zip(axes[0], transports, strict=True):
        here = [row for row in rows if row.transport == transport]
        for case in dict.fromkeys(row.case for row in here):
            line = sorted((row for row in here if row.case == case), key=lambda row: row.size or 0)
            points = [row.size for row in line], [row.value for row in line]
            axis.plot(*points, marker="o", label=case, color=COLOURS.get(case))
            axis.vlines(
                points[0], [min(row.samples) for row in line], [max(row.samples) for row in line],
                color=COLOURS.get(case), alpha=0.4,
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="due at once" if part == "dispatch" else "entries", title=transport)
        axis.grid(alpha=0.3)
        axis.legend()
    axes[0][0].set_ylabel(f"{metric}, {unit}")
    return _save(picture, directory / f"{part}-{metric.replace(' ', '-').replace(',', '')}.png")


def _distribution(distributions: dict[str, list[float]], directory: Path) -> Path:
    from matplotlib import pyplot

    picture, axis = pyplot.subplots(figsize=(8, 5))
    for case, values in distributions.items():
        ordered = sorted(1e3 * value for value in values)
        share = [1 - place / len(ordered) for place in range(len(ordered))]
        axis.step(ordered, share, where="post", label=case)
    axis.set(xscale="log", yscale="log", xlabel="ms after its due time", ylabel="share of messages that left later")
    axis.set_title("lateness of a due task")
    axis.grid(alpha=0.3, which="both")
    axis.legend()
    return _save(picture, directory / "lateness.png")


def _save(picture, path: Path) -> Path:  # type: ignore[no-untyped-def]
    from matplotlib import pyplot

    picture.tight_layout()
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
    return path
