"""The report of a run beside the finished model: report.md, report.json and the loss curve. Nothing reads it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from chamfer.models.training.loop.recipe import Recipe
from chamfer.models.training.loop.trainer import Fitted

_LIBRARIES = ("torch", "transformers", "sentence-transformers", "peft", "tokenizers")


def write_report(folder: Path, recipe: Recipe, fitted: Fitted, n_groups: int, facts: Mapping[str, Any]) -> None:
    """Writes the three files into the folder of the model; `facts` are Learner.facts."""
    report = {
        "recipe": _plain(asdict(recipe)),
        "groups": n_groups,
        "steps": fitted.steps,
        "seconds": round(fitted.seconds, 1),
        "resumed_at": fitted.resumed_at,
        "before": fitted.before,
        "restructured": fitted.restructured,
        "after": fitted.after,
        "libraries": {name: version(name) for name in _LIBRARIES},
        "facts": dict(facts),
        "curve": list(fitted.curve),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (folder / "report.md").write_text(_page(recipe, fitted, n_groups, facts), encoding="utf-8")
    _draw(folder / "curve.png", fitted)


def _page(recipe: Recipe, fitted: Fitted, n_groups: int, facts: Mapping[str, Any]) -> str:
    stages = {"before": fitted.before, "restructured": fitted.restructured, "after": fitted.after}
    stages = {name: stage for name, stage in stages.items() if stage or name != "restructured"}
    groups_per_step = recipe.fit.batch_size * recipe.fit.gradient_accumulation_steps
    lines = [
        f"# Training report: {recipe.job}",
        "",
        f"{n_groups:,} groups, {fitted.steps:,} steps of {groups_per_step} groups, "
        f"{fitted.seconds / 60:.1f} minutes, seed {recipe.fit.seed}"
        + (f"; resumed at step {fitted.resumed_at:,}" if fitted.resumed_at else "")
        + ".",
        "",
        "![loss](curve.png)",
        "",
        "Groups held out for evaluation, their candidates reranked by the model:",
        "",
        f"| source | measure | {' | '.join(stages)} |",
        "| --- | --- " + "| --- " * len(stages) + "|",
    ]
    for source, measures in fitted.after.items():
        for name in measures:
            values = " | ".join(f"{stage[source][name]:.4f}" for stage in stages.values())
            lines.append(f"| {source} | {name} | {values} |")
    if facts:
        lines += ["", *(f"- {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def _draw(path: Path, fitted: Fitted) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    steps = [row["step"] for row in fitted.curve]
    axes.plot(steps, [row["loss"] for row in fitted.curve], label="loss")
    for part in sorted({name for row in fitted.curve for name in row if name.startswith("part_")}):
        axes.plot(
            steps, [row.get(part, float("nan")) for row in fitted.curve], lw=0.7, label=part.removeprefix("part_")
        )
    axes.set_xlabel("step")
    axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
