"""Databases of searches, written as a search does and without one, so that Keras is not needed."""

import math

import pytest

optuna = pytest.importorskip("optuna", reason="the extra `tuning` is not installed")


def parameter(kind, name, conditions=(), **config):
    """An entry of KerasTuner's configuration of a space."""
    held = [{"class_name": "Parent", "config": {"name": n, "values": list(v)}} for n, v in conditions]
    return {"class_name": kind, "config": {"name": name, "conditions": held, **config}}


RATE = parameter("Float", "rate", min_value=1e-4, max_value=1e-1, sampling="log", step=None)
KIND = parameter("Choice", "kind", values=["a", "b"], ordered=False)
LAYERS = parameter("Int", "layers", [("kind", ["b"])], min_value=1, max_value=8, step=1, sampling="linear")


def write_search(folder, trials, space=(RATE, KIND, LAYERS), objectives=(("val_loss", "min"),), name="found", **facts):
    """A search's folder. `trials`: dictionaries with `values` and, as needed, `score` (a number, or a list of them),
    `curve`, `status`, `message`, `early`, `runs`."""
    folder.mkdir(parents=True, exist_ok=True)
    ways = {"min": "minimize", "max": "maximize"}
    study = optuna.create_study(
        storage=f"sqlite:///{folder / 'search.db'}", study_name=name, directions=[ways[way] for _, way in objectives]
    )
    listed = {"space": list(space), "values": {}}
    for fact, value in {"objectives": objectives, "space": listed, "seconds": 75.0, "settings": {}, **facts}.items():
        study.set_user_attr(fact, value)
    state = optuna.trial.TrialState
    for number, given in enumerate(trials):
        trial_id = f"{number:02d}"
        proposal = {"proposal": {"trial_id": trial_id, "values": given["values"]}}
        for _ in range(given.get("runs", 1) - 1):
            study.add_trial(optuna.trial.create_trial(state=state.FAIL, user_attrs={**proposal, "reason": "again"}))
        status = given.get("status", "COMPLETED")
        score, curve = given.get("score"), given.get("curve", ())
        listed_scores = score if isinstance(score, list) else [score]
        ended = status != "RUNNING"
        record = {
            "trial": {
                "status": status, "score": score if not isinstance(score, list) else sum(score),
                "message": given.get("message"), "hyperparameters": {"space": [], "values": given["values"]},
            },
            "state": "FAIL", "values": listed_scores if status == "COMPLETED" else None,
            "ended_early": given.get("early"), "order": number + 1,
        }  # fmt: skip
        finite = all(isinstance(value, float) and math.isfinite(value) for value in listed_scores)
        complete = status == "COMPLETED" and finite
        study.add_trial(
            optuna.trial.create_trial(
                state=state.COMPLETE if complete else state.FAIL if ended else state.RUNNING,
                values=listed_scores if complete else None,
                user_attrs={**proposal, **({"record": record} if ended else {})},
                intermediate_values=dict(enumerate(curve)),
            )
        )
    return folder
