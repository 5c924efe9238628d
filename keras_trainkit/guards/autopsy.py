"""What a dump says: where the first value came from that was not finite. Needs nothing but Python."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

EVENT, CONFIGURATION, BATCH, WEIGHTS = "event.json", "configuration.json", "batch.npz", "weights.npz"
FORMAT = 1


class NotADump(ValueError):
    """A folder that `NonFiniteGuard` has not written; the message says what is wrong with it."""


@dataclasses.dataclass(frozen=True)
class Autopsy:
    """What a dump says.

    Attributes:
        path: the dump.
        facts: all of `event.json`.
        where: `"data"`, `"weights"`, `"forward"`, `"loss"`, `"backward"`, or `"unknown"` where the replay of the step
            found nothing.
        layer: the first layer that went bad, in the order of the forward pass, and where that is clean, of the backward
            pass; None if there is none.
        samples: for each array of the batch the rows that hold NaN or infinity, the first hundred.
        weights: the paths of variables that hold NaN or infinity.
    """

    path: Path
    facts: dict[str, Any]
    where: str
    layer: str | None
    samples: dict[str, list[int]]
    weights: list[str]

    def sentence(self) -> str:
        """The finding in one sentence."""
        return _SENTENCES[self.where].format(
            layer=self.layer or "no layer",
            arrays=", ".join(f"{name} (samples {_few(rows)})" for name, rows in self.samples.items()),
            weights=_few(self.weights),
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        kept = ("iterations", "epoch", "batch", "kind", "loss", "loss_scale", "weights_are", "action")
        return {
            "path": str(self.path), "where": self.where, "layer": self.layer, "sentence": self.sentence(),
            "samples": self.samples, "weights": self.weights,
        } | {name: self.facts.get(name) for name in kept}  # fmt: skip


_SENTENCES = {
    "data": "the data hold NaN or infinity: {arrays}; the first layer whose output has it is {layer}",
    "weights": "weights were not finite before the step: {weights}; the first layer whose output has it is {layer}",
    "forward": "in the forward pass {layer} made the first value that is not finite, from finite inputs and weights",
    "loss": "all layers gave finite values, and the loss of them is not finite",
    "backward": "the forward pass and the loss are finite; in the backward pass {layer} made the first gradient that "
    "is not",
    "unknown": "the step, done once more layer by layer, was finite; what was not came from the compiled program or "
    "the optimizer",
}


def autopsy(directory: str | os.PathLike[str]) -> Autopsy:
    """Reads what `callbacks.NonFiniteGuard` has written.

    Args:
        directory: a dump, or the folder that holds several; then the last one that was written is read.

    Raises:
        NotADump: if there is none, or one that cannot be read.

    >>> autopsy("no/such/folder")
    Traceback (most recent call last):
    ...
    keras_trainkit.guards.autopsy.NotADump: there is no folder no/such/folder
    """
    path = _dump_in(Path(directory))
    try:
        facts = json.loads((path / EVENT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NotADump(f"{path / EVENT} cannot be read: {error}") from None
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise NotADump(f"{path / EVENT} is not of a dump that this version can read")
    where, layer = verdict(facts)
    samples = {array["name"]: array["bad_samples"] for array in facts.get("arrays", []) if is_bad(array)}
    weights = [about["path"] for about in facts.get("variables", []) if is_bad(about)]
    return Autopsy(path, facts, where, layer, samples, weights)


def verdict(facts: dict[str, Any]) -> tuple[str, str | None]:
    """Where it began, and the first layer that went bad."""
    layers = facts.get("layers", [])
    forward = next((about["name"] for about in layers if any(map(is_bad, about["outputs"]))), None)
    if any(map(is_bad, facts.get("arrays", []))):
        return "data", forward
    if any(map(is_bad, facts.get("variables", []))):
        return "weights", forward or _layer_of_first_variable(facts)
    if forward is not None:
        return "forward", forward
    if is_bad(facts.get("replayed_loss") or {}):
        return "loss", None
    backward = next((about["name"] for about in reversed(layers) if _spoils_gradients(about)), None)
    if backward is not None:
        return "backward", backward
    names = [about["path"].rpartition("/")[0] for about in facts.get("gradients", []) if is_bad(about)]
    return ("backward", names[-1]) if names and not layers else ("unknown", None)


def is_bad(about: dict[str, Any]) -> bool:
    """Whether the array that was described holds something that is not finite."""
    return bool(about.get("nan") or about.get("inf"))


def _spoils_gradients(about: dict[str, Any]) -> bool:
    """Whether a layer got finite gradients, and made others of them."""
    made = [*about["input_gradients"], *about["weight_gradients"].values()]
    return any(map(is_bad, made)) and not any(map(is_bad, about["output_gradients"]))


def _layer_of_first_variable(facts: dict[str, Any]) -> str | None:
    return next((about["path"].rpartition("/")[0] for about in facts["variables"] if is_bad(about)), None)


def _dump_in(directory: Path) -> Path:
    if not directory.is_dir():
        raise NotADump(f"there is no folder {directory}")
    if (directory / EVENT).exists():
        return directory
    dumps = sorted(directory.glob(f"[!.]*/{EVENT}"), key=lambda path: path.stat().st_mtime)
    if not dumps:
        raise NotADump(f"{directory} holds no {EVENT}: it is no dump of NonFiniteGuard, and has none in it")
    return dumps[-1].parent


def _few(items: list[Any], most: int = 5) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
