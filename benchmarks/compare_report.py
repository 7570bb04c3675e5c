"""Table and plots of what `compare.py` has measured so far."""

import json
import statistics
from pathlib import Path
from typing import Any

import matplotlib.figure
from contestants import NAMES

from convlstm.files import replacing

Results = list[dict[str, Any]]


def report(out: Path) -> None:
    """Writes results.json, table.md and the plots into the folder of the runs.

    Raises:
        FileNotFoundError: There is nothing to report on yet.
    """
    results = [json.loads(path.read_text()) for path in sorted(out.glob("*/result.json"))]
    results.sort(key=lambda r: (NAMES.index(r["variant"]), r["gap"], r["seed"]))
    path = out / "speed.json"
    speed = json.loads(path.read_text()) if path.exists() else {}
    if not results and not speed:
        raise FileNotFoundError(f"no finished run and no speed.json in {out}")
    with replacing(out / "results.json") as temporary:
        content = json.dumps({"runs": results, "speed": speed}, indent=1)
        temporary.write_text(content + "\n", encoding="utf-8")
    with replacing(out / "table.md") as temporary:
        temporary.write_text(table(results, speed), encoding="utf-8")
    shortest = min((r["gap"] for r in results), default=0)
    without = [r for r in results if r["gap"] == shortest]
    _plot(out / "lead_time.png", by_lead_time(without), "lead time (frames)", "MSE")
    _plot(out / "gap.png", by_gap(results), "blank frames before the forecast", "MSE")
    _plot(
        out / "gradient.png",
        by_context_frame(without),
        "context frame (10 is the last)",
        "gradient norm, against the last frame's",
        log=True,
    )


def table(results: Results, speed: dict[str, Any]) -> str:
    """Markdown: one row a variant; means over seeds, with the range where there are several."""
    gaps = sorted({r["gap"] for r in results})
    head = [
        "variant",
        "hidden",
        "parameters",
        "MACs a sequence",
        "training sequences/s",
        "peak MiB",
    ]
    for gap in gaps:
        head.append(f"MSE, gap {gap}")
    head += ["at +1", "at +10", "gradient at frame 1 / 10"]
    lines = [head, ["---"] * len(head)]
    for name in NAMES:
        mine = [r for r in results if r["variant"] == name]
        if not mine and name not in speed:
            continue
        fast = speed.get(name)
        row = [name.replace("_", " ")]
        if fast:
            row += [
                ", ".join(map(str, fast["hidden_sizes"])),
                f"{fast['parameters']:,}",
                f"{fast['macs'] / 1e6:,.0f} M",
                f"{fast['sequences_per_second']:.0f}",
                f"{fast['peak_mib']:.0f}",
            ]
        else:
            row += [", ".join(map(str, mine[0]["hidden_sizes"])), *["–"] * 4]
        for gap in gaps:
            row.append(spread([r["mse"] for r in mine if r["gap"] == gap]))
        plain = [r for r in mine if r["gap"] == gaps[0]] if gaps else []
        row.append(spread([r["mse_by_lead_time"][0] for r in plain]))
        row.append(spread([r["mse_by_lead_time"][-1] for r in plain]))
        row.append(spread([r["gradient"][0] / r["gradient"][-1] for r in plain], "{:.2g}"))
        lines.append(row)
    if results:
        still = ["last frame seen, repeated", *["–"] * 5]
        for gap in gaps:
            still.append(f"{next(r for r in results if r['gap'] == gap)['last_frame_mse']:.2f}")
        lines.append(still + ["–"] * (len(head) - len(still)))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def spread(values: list[float], form: str = "{:.2f}") -> str:
    """The mean, and the range where there is more than one value."""
    if not values:
        return "–"
    mean = form.format(statistics.fmean(values))
    if len(values) == 1:
        return mean
    return f"{mean} ({form.format(min(values))} to {form.format(max(values))})"


Curves = dict[str, tuple[list[float], list[list[float]]]]  # name: x, and one list of y a seed


def by_lead_time(results: Results) -> Curves:
    """MSE of each forecast frame."""
    return _curves(results, lambda r: r["mse_by_lead_time"])


def by_context_frame(results: Results) -> Curves:
    """Gradient norm at each frame of the context that is not blank, against the last one's."""
    return _curves(results, lambda r: [g / r["gradient"][-1] for g in r["gradient"]])


def by_gap(results: Results) -> Curves:
    """MSE against the gap, of each seed."""
    curves: Curves = {}
    for name in NAMES:
        mine = [r for r in results if r["variant"] == name]
        gaps = sorted({r["gap"] for r in mine})
        seeds = sorted({r["seed"] for r in mine})
        values = {(r["gap"], r["seed"]): r["mse"] for r in mine}
        complete = [s for s in seeds if all((gap, s) in values for gap in gaps)]
        if complete:
            lines = [[values[gap, seed] for gap in gaps] for seed in complete]
            curves[name] = ([float(gap) for gap in gaps], lines)
    return curves


def _curves(results: Results, values: Any) -> Curves:
    curves: Curves = {}
    for name in NAMES:
        lines = [values(r) for r in results if r["variant"] == name]
        if lines:
            curves[name] = ([float(n) for n in range(1, len(lines[0]) + 1)], lines)
    return curves


def _plot(path: Path, curves: Curves, x_label: str, y_label: str, *, log: bool = False) -> None:
    """One line a variant, the mean over seeds, with a band from the lowest to the highest."""
    figure = matplotlib.figure.Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, (x, lines)) in enumerate(curves.items()):
        columns = list(zip(*lines, strict=True))
        style = {"color": f"C{number}", "marker": "os^vDPX*"[number], "markersize": 4}
        label = name.replace("_", " ")
        axes.plot(x, [statistics.fmean(c) for c in columns], label=label, **style)
        if len(lines) > 1:
            low, high = [min(c) for c in columns], [max(c) for c in columns]
            axes.fill_between(x, low, high, color=f"C{number}", alpha=0.2)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xticks(sorted({value for x, _ in curves.values() for value in x}))
    if log:
        axes.set_yscale("log")
    if curves:
        axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
