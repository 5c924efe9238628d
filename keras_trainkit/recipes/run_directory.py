"""The folder that a run leaves behind: where it goes, what may be overwritten, and JSON that is never half written."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

from keras_trainkit.recipes.errors import RecipeError

RECIPE, ENVIRONMENT, RESULT = "recipe.json", "environment.json", "result.json"
METRICS, EVENTS, MODEL, REPORT = "metrics.jsonl", "tensorboard", "model.keras", "report.html"
STATES = "resume"
CONTENTS = (RECIPE, ENVIRONMENT, RESULT, METRICS, EVENTS, MODEL, REPORT, STATES)
PARENT = "runs"


def choose(name: str, requested: str | Path | None = None, overwrite: bool = False) -> Path:
    """The directory of a new run, which is checked but not made: the requested one, or `runs/<name>-<number>`.

    Raises:
        RecipeError: it exists (without `overwrite`), or is not a run directory (with it), or cannot be made.
    """
    path = next_free(name) if requested is None else Path(requested)
    if path.is_symlink() or path.exists():
        if not path.is_dir():
            raise RecipeError(f"the run directory {path} is a file")
        if not overwrite:
            raise RecipeError(f"the run directory {path} exists; choose another one, or give --overwrite to replace it")
        if not is_run_directory(path):
            raise RecipeError(f"{path} holds something else than a run, so it is not overwritten")
    parent = next((folder for folder in path.absolute().parents if folder.exists()), path.absolute())
    if not (parent.is_dir() and os.access(parent, os.W_OK | os.X_OK)):
        raise RecipeError(f"the run directory {path} cannot be made: no permission to write in {parent}")
    return path


def create(name: str, requested: str | Path | None = None, overwrite: bool = False) -> Path:
    """Makes the directory that `choose` gives, without what an earlier run left there; other files in it stay.

    Of several runs that begin at the same time each gets one of its own.
    """
    path = choose(name, requested, overwrite)
    try:
        path.mkdir(parents=True, exist_ok=overwrite and requested is not None)
        for part in CONTENTS:
            old = path / part
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
    except FileExistsError:
        # Another run was quicker; what is free now is looked up again.
        return create(name, requested, overwrite)
    except OSError as error:
        raise RecipeError(f"the run directory {path} cannot be made: {error.strerror}") from None
    return path


def read_recipe(path: Path) -> dict[str, Any]:
    """What the recipe.json of a run says.

    Raises:
        RecipeError: there is no such run.
    """
    try:
        facts = json.loads((path / RECIPE).read_text(encoding="utf-8"))
        return {**facts, "recipe": dict(facts["recipe"])}
    except (OSError, ValueError, TypeError, KeyError):
        raise RecipeError(f"{path} is not the directory of a run: it has no {RECIPE} that can be read") from None


def is_run_directory(path: Path) -> bool:
    """Whether a directory is empty or holds the recipe of a run."""
    if not any(path.iterdir()):
        return True
    try:
        return "recipe" in json.loads((path / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def write_json(path: Path, value: Any) -> None:
    """Writes JSON under another name first, so that whoever opens `path` finds all of it; NaN and infinity become null.

    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp(), "result.json")
    >>> write_json(path, {"loss": float("nan")})
    >>> path.read_text()
    '{\\n  "loss": null\\n}\\n'
    """
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(finite(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def finite(value: Any) -> Any:
    """The same value for JSON: floats that are not finite are None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def next_free(name: str, parent: str = PARENT) -> Path:
    """The first folder `<parent>/<name>-<number>` behind all that are there."""
    taken = [re.fullmatch(re.escape(name) + r"-(\d+)", child.name) for child in Path(parent).glob("*")]
    return Path(parent) / f"{name}-{1 + max((int(match[1]) for match in taken if match), default=0)}"
