"""Tables of what benchmarks/ measured, made from the files in benchmarks/results/: the directive `benchmark-table`.

`conf.py` makes a directive of `markdown`. A file that is missing is an error: no page speaks of what nobody ran.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PEERS = {"keras": "Keras", "tensorflow fused": "TensorFlow's kernel", "optax": "optax", "torch fused": "torch fused"}


def markdown(name: str) -> list[str]:
    """The lines of the table (or tables) called `name`, with the circumstances of the measurement.

    Raises:
        ValueError: for a name that is no table, or whose file is missing.
    """
    if name not in TABLES:
        raise ValueError(f"{name!r} is no table; there are {', '.join(TABLES)}")
    kind, _, argument = name.partition(" ")
    path = BENCHMARKS / "results" / FILES[kind]
    if not path.exists():
        raise ValueError(f"{path} is missing: run the benchmark first")
    return TABLES[name](path, argument)


def circumstances(figures: dict[str, Any]) -> str:
    """A sentence of date, machine and versions."""
    machine, versions = figures["machine"], figures["versions"]
    packages = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"{figures['date']}, {machine['processor']}, {machine['cores']} cores, {machine['system']}; {packages}."


def grid(rows: list[list[str]]) -> list[str]:
    """Markdown of a table whose first row is its head."""
    rows = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return [f"| {' | '.join(row)} |" for row in rows]


def _spread(figure: dict[str, float] | None) -> str:
    return "" if figure is None else f"{figure['median']:.3g} [{figure['quartile_1']:.3g}, {figure['quartile_3']:.3g}]"


def _update_step(path: Path, kind: str) -> list[str]:
    figures = json.loads(path.read_text(encoding="utf-8"))
    cases = {key.partition(" ")[2]: value for key, value in figures["cases"].items() if key.startswith(f"{kind} ")}
    peers = [peer for peer in PEERS if any(peer in case["ours_to"] for case in cases.values())]
    head = ["optimizer", "ms", *(f"over {PEERS[peer]}" for peer in peers), "over the floor", "first call, s (Keras)"]
    rows = [head]
    for name, case in cases.items():
        first = case["first_call_seconds"]
        row = [f"`{name}`", _spread(case["milliseconds"]["ours"])]
        row += [_spread(case["ours_to"].get(peer)) for peer in peers]
        rows.append([*row, _spread(case["ours_to"]["floor"]), f"{first['ours']:g} ({first['keras']:g})"])
    sizes = next(iter(cases.values()))
    total = f"{sizes['variables']} variables, {sizes['parameters'] / 1e6:.1f} million parameters"
    replicas = f", {figures['replicas']} replicas" if figures["replicas"] > 1 else ""
    return [*grid(rows), "", f"{total}{replicas}; {figures['rounds']} rounds. {circumstances(figures)}"]


def _fit(path: Path, _: str) -> list[str]:
    figures = json.loads(path.read_text(encoding="utf-8"))
    rows = [["model", "variables", "ms a step", "over Keras", "Keras over itself", "verdict"]]
    for name, model in figures["models"].items():
        rows.append(
            [
                name,
                f"{model['variables']}",
                _spread(model["milliseconds_a_step"]["ours"]),
                _spread(model["ours_to_keras"]),
                _spread(model["keras_to_itself"]),
                model["verdict"],
            ]
        )
    return [
        *grid(rows),
        "",
        f"{figures['rounds']} rounds of {figures['steps_in_a_call']} steps. {circumstances(figures)}",
    ]


def _data(path: Path, _: str) -> list[str]:
    figures = json.loads(path.read_text(encoding="utf-8"))
    rows = [["examples", "of shape", "batch", "ms an epoch", "over Keras", "Keras over itself", "verdict"]]
    for case in figures["cases"].values():
        shape = "x".join(map(str, case["shape"]))
        row = [f"{case['examples']:,}", shape, str(case["batch"]), _spread(case["milliseconds_an_epoch"]["ours"])]
        rows.append([*row, _spread(case["ours_to_keras"]), _spread(case["keras_to_itself"]), case["verdict"]])
    return [*grid(rows), "", f"{figures['rounds']} rounds. {circumstances(figures)}"]


def _embedding(path: Path, _: str) -> list[str]:
    figures = json.loads(path.read_text(encoding="utf-8"))
    meaning = {"update": "the update alone", "fit": "`fit`", "fit_gathered": "`fit`, a layer that gathers rows"}
    rows = [["step", "rows of the table", "rows touched", "LazyAdam, ms", "over our Adam", "over Keras's Adam"]]
    for kind, words in meaning.items():
        for table in figures[kind]["tables"]:
            ratios = table["LazyAdam_to"]
            row = [words, f"{table['rows']:,}", f"{table['touched']:,}", _spread(table["milliseconds"]["LazyAdam"])]
            rows.append([*row, _spread(ratios["Adam"]), _spread(ratios["Keras's Adam"])])
    return [*grid(rows), "", f"Rows of {figures['width']}; {figures['rounds']} rounds. {circumstances(figures)}"]


def _accumulation(path: Path, _: str) -> list[str]:
    figures = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        ["model", "samples of a micro-batch", "ms a micro-batch", "over its parts", "Keras, over them", "over Keras"]
    ]
    for name, case in figures["models"].items():
        ratios = [case[key] for key in ("ours_to_its_parts", "keras_to_the_same_parts", "ours_to_keras")]
        rows.append([name, str(case["batch"]), _spread(case["milliseconds_a_step"]["ours"]), *map(_spread, ratios)])
    return [
        *grid(rows), "", f"Windows of {figures['window']}; {figures['rounds']} rounds. {circumstances(figures)}"
    ]  # fmt: skip


def _plan(path: Path, _: str) -> list[str]:
    figures = json.loads(path.read_text(encoding="utf-8"))
    columns = {
        "planned_to_allocator": "memory, over the allocator's",
        "planned_to_resident": "over the process's",
        "expected_to_measured": "time of a step, over the measured",
    }
    cases = [(name, n, case) for name, m in figures["models"].items() for n, case in m["replicas"].items()]
    shown = [key for key in columns if key in cases[0][2]]  # on a busy machine no times are taken
    rows = [["model", "replicas", *(columns[key] for key in shown)]]
    rows += [[name, n, *(_ends(case[key]) for key in shown)] for name, n, case in cases]
    loads = [run["load"] for _, _, case in cases for run in case["rounds"]]
    load = f"Load of the machine meanwhile: {min(loads):g} to {max(loads):g}."
    return [*grid(rows), "", f"{figures['rounds']} rounds. {load} {circumstances(figures)}"]


def _ends(figure: dict[str, float]) -> str:
    return f"{figure['median']:.3g} [{figure['least']:.3g}, {figure['most']:.3g}]"


def _averages(path: Path, _: str) -> list[str]:
    figures = json.loads(path.read_text(encoding="utf-8"))
    rows = [["rate", "weights", "test loss", "lower by", "test accuracy", "higher by"]]
    for row in figures["rows"]:
        gains = [f"{g:.4f} ± {e:.4f}" for g, e in zip(row["gain"], row["standard_error"], strict=True)]
        first, second = gains if any(row["standard_error"]) else ["", ""]
        rows.append(
            [row["rate"], f"`{row['weights']}`" if first else row["weights"], f"{row['loss']:.4f}", first,
             f"{row['accuracy']:.4f}", second]
        )  # fmt: skip
    return [*grid(rows), "", f"{figures['seeds']} seeds, {figures['epochs']} epochs. {circumstances(figures)}"]


def _monitoring(path: Path, _: str) -> list[str]:
    figures = json.loads(path.read_text(encoding="utf-8"))
    kinds = {
        "monitor": "monitor, every=10",
        "layers": "and layers_every=100",
        "tensorboard": "Keras's TensorBoard, update_freq=1",
        "tensorboard 10": "update_freq=10",
        "plain again": "plain",
    }
    rows = [["model", "plain, ms a step", *kinds.values(), "the monitor's aim"]]
    for name, case in figures["cases"].items():
        step = case["milliseconds"]["plain"]["median"] / case["steps"]
        row = [name, f"{step:.3g}", *(_spread(case["over_plain"][kind]) for kind in kinds)]
        rows.append([*row, f"at most {figures['aims'][name]:g}"])
        work = case["processors_over_plain"]
        rows.append([f"{name}, work of all cores", "", *(_spread(work[kind]) for kind in kinds), ""])
    return [*grid(rows), "", f"{figures['rounds']} rounds. {circumstances(figures['circumstances'])}"]


def _resume(path: Path, _: str) -> list[str]:
    figures = json.loads(path.read_text(encoding="utf-8"))
    rows = [["MB of a state", "training stands still, ms", "another thread writes, ms", "`fit`", "BackupAndRestore"]]
    for case in figures["cases"].values():
        state, ratios = case["one_state"], case["over_plain"]
        row = [f"{state['megabytes']:.3g}", _spread(state["held"]), _spread(state["written"])]
        rows.append([*row, _spread(ratios["resumable"]), _spread(ratios["backup"])])
    return [*grid(rows), "", f"{figures['rounds']} rounds. {circumstances(figures['circumstances'])}"]


def _lr_finder(path: Path, _: str) -> list[str]:
    figures = json.loads(path.read_text(encoding="utf-8"))
    names = [*figures["settings"]["optimizers"], "all"]
    rows = [["rule", *(f"mean, {name}" for name in names), "largest"]]
    by_mean = sorted(figures["regret"].items(), key=lambda item: item[1]["all"])
    rows += [[f"`{rule}`", *(f"{of[name]:.3f}" for name in [*names, "largest"])] for rule, of in by_mean]
    problems = len({row["problem"] for row in figures["rows"]})
    settings = figures["settings"]
    runs = f"{problems} problems, {settings['sweeps']} sweeps, {settings['seeds']} runs for each rate"
    return [*grid(rows), "", f"{runs}. {circumstances(figures)}"]


def _training(path: Path, _: str) -> list[str]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import training
    finally:
        sys.path.remove(str(BENCHMARKS))
    # Headings cannot stand inside of a directive.
    return [re.sub(r"^### (.*)$", r"**\1**", line) for line in training.page(path).splitlines()]


METHODS = {
    "ours": "`tuning.Search`",
    "ours, TPE": "`tuning.TPESearch`",
    "ours, random": "`tuning.RandomSearch`",
    "KerasTuner, Bayesian": "KerasTuner's `BayesianOptimization`",
    "KerasTuner, random": "KerasTuner's `RandomSearch`",
    "KerasTuner, Hyperband": "KerasTuner's `Hyperband`",
    "Optuna, TPE": "Optuna's TPE",
    "Optuna, GP": "Optuna's Gaussian process",
}


def _searches(path: Path) -> tuple[Any, list[dict[str, Any]], str]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import search_table
    finally:
        sys.path.remove(str(BENCHMARKS))
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    sittings = [line["sitting"] for line in lines if "sitting" in line]
    return search_table, search_table.read(path), circumstances(sittings[-1])


def _search_quality(path: Path, _: str) -> list[str]:
    module, records, made = _searches(path)
    problems = module.of(records, "quality")
    rows = [["regret after 50 trials", *problems, "fcnet, geometric mean of the medians", "of all searches"]]
    means = [module.over_medians(records), module.over_tables(records)]
    for method, title in METHODS.items():
        cells = [
            f"{_spread(module.spread(module.last(found[method])))} of {len(found[method])}" if method in found else ""
            for found in problems.values()
        ]
        if any(cells):
            rows.append([title, *cells, *(f"{mean[method]:.3g}" if method in mean else "" for mean in means)])
    return [*grid(rows), "", made]


def _search_curves(path: Path, _: str) -> list[str]:
    module, records, made = _searches(path)
    methods = module.of(records, "curves")["digits"]
    budget = max(record["budget"] for found in methods.values() for record in found)
    rows = [
        ["regret", *(f"{round(share * budget)} epochs" for share in (0.25, 0.5, 1.0)), "as good as Hyperband after"]
    ]
    for method in METHODS:
        if method in methods:
            found = methods[method]
            cells = [_spread(module.spread([module.regret_at(each, share) for each in found]))
                     for share in (0.25, 0.5, 1.0)]  # fmt: skip
            middle = module.spread(module.share_of_hyperband(records, method))["median"]
            rows.append([METHODS[method], *cells, f"{middle:.2f} of its epochs" if middle < 10 else "never"])
    return [*grid(rows), "", made]


def _search_times(path: Path, _: str) -> list[str]:
    figures = json.loads(path.read_text(encoding="utf-8"))
    rows = [["", "", "target"]]
    for name in ("TPE", "GP"):
        target = {"TPE": "100 ms", "GP": "1,000 ms"}[name]
        rows.append([f"a trial after 200, {name}", f"{_spread(figures[f'suggestion {name}'])} ms", target])
    rows.append(["a trial that does nothing", f"{_spread(figures['trial']['ours'])} ms", "30 ms"])
    rows.append(["the same with KerasTuner", f"{_spread(figures['trial']['KerasTuner'])} ms", ""])
    rows.append(["one worker's time over two workers'", _spread(figures["workers"]["whole"]), "1.7"])
    rows.append(["the same without the start of processes", _spread(figures["workers"]["steady"]), ""])
    return [*grid(rows), "", circumstances(figures)]


FILES = {
    "accumulation": "accumulation.json",
    "update-step": "update_step.json",
    "update-step-replicas": "update_step_replicas_2.json",
    "fit": "fit.json",
    "data": "data.json",
    "embedding": "embedding.json",
    "plan": "plan.json",
    "training": "training.jsonl",
    "averages": "averages.json",
    "monitoring": "monitoring.json",
    "resume": "resume.json",
    "lr-finder": "lr_finder.json",
    "search-quality": "search.jsonl",
    "search-curves": "search.jsonl",
    "search-times": "search_times.json",
}
TABLES: dict[str, Callable[[Path, str], list[str]]] = {
    "update-step transformer": _update_step,
    "update-step small": _update_step,
    "update-step-replicas transformer": _update_step,
    "update-step-replicas small": _update_step,
    "fit": _fit,
    "accumulation": _accumulation,
    "data": _data,
    "embedding": _embedding,
    "plan": _plan,
    "training": _training,
    "averages": _averages,
    "monitoring": _monitoring,
    "resume": _resume,
    "lr-finder": _lr_finder,
    "search-quality": _search_quality,
    "search-curves": _search_curves,
    "search-times": _search_times,
}
