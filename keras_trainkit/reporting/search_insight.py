"""What the trials of a search tell: best so far, which hyperparameters matter, and which ranges are too narrow."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import numpy as np

from keras_trainkit.reporting.search_reading import COMPLETED, PRUNED, Parameter, SearchResults, SearchTrial

FEWEST_FOR_IMPORTANCE = 20
FEWEST_FOR_EDGES = 10
_MOST_FOR_IMPORTANCE = 200
_DUMMIES = 2
_EDGE = 0.1
_RARE = 0.02


@dataclasses.dataclass(frozen=True)
class Progress:
    """How the best score came down, or went up.

    Attributes:
        trials, epochs, seconds: spent when each trial ended; seconds in which no trial ran do not count.
        scores: of that trial; NaN where it has none.
        best: the best one until then.
        statuses: how it ended.
    """

    trials: np.ndarray
    epochs: np.ndarray
    seconds: np.ndarray
    scores: np.ndarray
    best: np.ndarray
    statuses: list[str]


def progress(results: SearchResults, objective: int = 0) -> Progress:
    """The course of the search along what it cost."""
    ended = results.ended
    scores = np.array([t.scores[objective] if t.status in (COMPLETED, PRUNED) else math.nan for t in ended])
    scores[~np.isfinite(scores)] = math.nan
    sign = results.sign(objective)
    best = sign * np.fmin.accumulate(sign * scores) if len(scores) else scores
    clock = _clock(results)
    ends = [max((end for _, end in trial.spans), default=math.nan) for trial in ended]
    seconds = np.array([math.nan if math.isnan(end) else clock(end) for end in ends])
    return Progress(
        np.arange(1.0, len(ended) + 1), np.cumsum([float(trial.epochs) for trial in ended]), seconds, scores, best,
        [trial.status for trial in ended],
    )  # fmt: skip


def _clock(results: SearchResults) -> Any:
    """Seconds until a moment in which any trial ran: a search that was resumed the next day did not take a day."""
    joined: list[list[float]] = []
    for begin, end in sorted(span for trial in results.trials for span in trial.spans):
        if joined and begin <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], end)
        else:
            joined.append([begin, end])
    return lambda moment: sum(max(0.0, min(end, moment) - begin) for begin, end in joined)


@dataclasses.dataclass(frozen=True)
class Importance:
    """Shares of the differences between trials that hyperparameters explain by themselves, largest first.

    Attributes:
        shares: by name; they sum to 1 with what chance got.
        chance: the largest share that a made-up hyperparameter got: below it a share says nothing.
        trials: how many were looked at.
    """

    shares: dict[str, float]
    chance: float
    trials: int


def importance(results: SearchResults, objective: int = 0) -> Importance | str:
    """Functional ANOVA (Hutter et al. 2014) over a random forest, Optuna's, of the ranks of the scores.

    Of the ranks, because one diverged trial would explain everything otherwise. A hyperparameter that was not there in
    a trial has a value drawn at random in it, so that it explains nothing there. Of more than 200 trials, 200 are taken
    over all ranks: the cost grows with the square. Two random numbers take part; what is no larger than their shares
    is chance.

    Returns:
        The shares, or a sentence that says why there are none.
    """
    scored = results.scored(objective)
    named = [p for p in results.parameters if _varies(p, scored)]
    if len(scored) < FEWEST_FOR_IMPORTANCE:
        many = "" if len(scored) == 1 else "s"
        return f"{len(scored)} trial{many} with a score: importance takes {FEWEST_FOR_IMPORTANCE}."
    if len(named) < 2:
        return "There are fewer than two hyperparameters that took different values."
    if scored[0].scores[objective] == scored[-1].scores[objective]:
        return "All trials have the same score."
    import optuna

    ranks = np.searchsorted(
        np.unique([t.scores[objective] for t in scored]), [t.scores[objective] for t in scored]
    ).astype(float)
    kept = np.unique(np.linspace(0, len(scored) - 1, min(len(scored), _MOST_FOR_IMPORTANCE)).astype(int))
    rng = np.random.default_rng(0)
    unit = optuna.distributions.FloatDistribution(0.0, 1.0)
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study()
        for index in kept:
            drawn: dict[str, Any] = {}
            ranges: dict[str, Any] = {}
            for key, parameter in enumerate(named):
                ranges[str(key)], drawn[str(key)] = _coordinate(parameter, scored[index], rng, optuna)
            for dummy in range(_DUMMIES):
                ranges[f"chance {dummy}"], drawn[f"chance {dummy}"] = unit, float(rng.random())
            study.add_trial(optuna.trial.create_trial(params=drawn, distributions=ranges, value=float(ranks[index])))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shares = optuna.importance.get_param_importances(
                study, evaluator=optuna.importance.FanovaImportanceEvaluator(n_trees=32, seed=0),
                target=lambda trial: trial.value or 0.0,
            )  # fmt: skip
    finally:
        optuna.logging.set_verbosity(level)
    found = {parameter.name: float(shares.get(str(key), 0.0)) for key, parameter in enumerate(named)}
    chance = max(float(shares.get(f"chance {dummy}", 0.0)) for dummy in range(_DUMMIES))
    return Importance(dict(sorted(found.items(), key=lambda item: -item[1])), chance, len(kept))


def _varies(parameter: Parameter, trials: list[SearchTrial]) -> bool:
    return len({repr(t.values[parameter.name]) for t in trials if parameter.name in t.values}) > 1


def _coordinate(parameter: Parameter, trial: SearchTrial, rng: np.random.Generator, optuna: Any) -> tuple[Any, Any]:
    place = parameter.place(trial.values.get(parameter.name))
    if parameter.numeric:
        known = math.isfinite(place)
        return (
            optuna.distributions.FloatDistribution(0.0, 1.0),
            min(1.0, max(0.0, place)) if known else float(rng.random()),
        )
    choices = tuple(range(len(parameter.choices or ())))
    index = int(rng.integers(len(choices))) if math.isnan(place) else round(place * max(1, len(choices) - 1))
    return optuna.distributions.CategoricalDistribution(choices), index


def edge_warnings(results: SearchResults) -> list[str]:
    """Which ranges end where the best trials are.

    The best few, a tenth of those with a score and at least 4, are looked at, and not the best one alone, which may lie
    anywhere by chance: it and three quarters of them must lie in the outer tenth of the range, on its own scale, and
    values drawn at random must do so in less than one search of 50; of three choices the last one is met too easily. A
    lower end of 0, or of 1 for whole numbers, is no limit that could be moved.
    """
    if len(results.objectives) != 1:
        return []
    found = []
    for parameter in results.parameters:
        if not parameter.numeric or parameter.low == parameter.high or len(parameter.choices or (0, 1, 2)) < 3:
            continue
        there = [t for t in results.scored() if math.isfinite(parameter.place(t.values.get(parameter.name)))]
        if len(there) < FEWEST_FOR_EDGES:
            continue
        top = there[: max(4, round(0.1 * len(there)))]
        places = _ordered_places(parameter, top)
        for upper in (False, True):
            at_edge = [place >= 1 - _EDGE if upper else place <= _EDGE for place in places]
            count = sum(at_edge)
            told = at_edge[0] and count >= 0.75 * len(top) and _chance(count, len(top), parameter) < _RARE
            if told and (upper or _can_fall(parameter)):
                found.append(_advice(parameter, top[0], upper, count, len(top)))
    return found


def _chance(count: int, of: int, parameter: Parameter) -> float:
    """How likely so many of the best few are at the edge if it does not matter where they are."""
    whole = round((parameter.high or 0.0) - (parameter.low or 0.0)) + 1 if parameter.integer else math.inf
    values = len(parameter.choices) if parameter.choices is not None else whole
    at_edge = max(_EDGE, 1 / values)
    return sum(math.comb(of, n) * at_edge**n * (1 - at_edge) ** (of - n) for n in range(count, of + 1))


def _can_fall(parameter: Parameter) -> bool:
    return parameter.low != 0 and not (parameter.low == 1 and (parameter.integer or parameter.choices is not None))


def _ordered_places(parameter: Parameter, trials: list[SearchTrial]) -> list[float]:
    places = [parameter.place(trial.values[parameter.name]) for trial in trials]
    if parameter.choices is None:
        return places
    rising = sorted(parameter.choices)
    return [rising.index(trial.values[parameter.name]) / (len(rising) - 1) for trial in trials]


def _advice(parameter: Parameter, best: SearchTrial, upper: bool, count: int, of: int) -> str:
    low, high = parameter.low or 0.0, parameter.high or 0.0
    if parameter.choices is not None:
        rising = sorted(parameter.choices)
        last, before = (rising[-1], rising[-2]) if upper else (rising[0], rising[1])
        factors = before > 0 and not 2 / 3 < last / before < 3 / 2
        to = last * last / before if factors else 2 * last - before
    elif parameter.scale == "log":
        to = high * min(10.0, high / low) if upper else low / min(10.0, high / low)
    else:
        to = high + (high - low) / 2 if upper else low - (high - low) / 2
    to = max(to, 0.0) if low >= 0 else to
    whole = parameter.integer or (parameter.choices is not None and all(isinstance(c, int) for c in parameter.choices))
    shown = f"{max(1 if low > 0 else round(to), round(to)) if whole else to:.3g}"
    if float(shown) == (high if upper else low):
        shown = ""
    value = best.values[parameter.name]
    return (
        f"The best {parameter.name}, {value:.4g}, is at the {'upper' if upper else 'lower'} edge of its range "
        f"[{low:.4g}, {high:.4g}], and so are {count} of the best {of} trials: widen it"
        + (f", to {shown} for example." if shown else ".")
    )
