"""Small run directories, written as a run writes them."""

import json


def write_run(directory, losses=(0.9, 0.5, 0.6), accuracies=(0.6, 0.8, 0.7), recipe=None, **result):
    directory.mkdir(parents=True)
    lines = []
    for epoch, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1):
        at = {"epoch": epoch, "step": 50 * epoch, "time": 1000.0 + 2 * epoch}
        lines.append({"kind": "step", **at, "loss": loss, "learning_rate": 0.1})
        bad = {"nonfinite": ["val_loss"]} if loss is None else {}
        lines.append(
            {"kind": "epoch", **at, "val_loss": loss, "val_accuracy": accuracy, "samples_per_second": 100.0, **bad}
        )
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {"optimizer": "adam", "learning_rate": 0.1, "epochs": 3} | (recipe or {})
    (directory / "recipe.json").write_text(json.dumps({"recipe": recipe, "resolved": {}}))
    (directory / "environment.json").write_text("{}")
    (directory / "result.json").write_text(json.dumps({"status": "completed", "seconds": 75.2, **result}))
    return directory
