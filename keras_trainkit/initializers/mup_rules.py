"""Which optimizers move weights in which way, for learning rates that fit every width."""

from __future__ import annotations

from typing import Any

import keras

from keras_trainkit.core import checks

RULES = ("adam", "sgd")

# Displacements that do not change if all gradients are multiplied by a number, each from its own element alone; and
# displacements that are linear in the gradients.
_ADAM = ["adam", "adamw", "adamw16", "lazyadam", "radam", "nadam", "adamax", "adabelief", "laprop", "adopt", "ademamix"]
_KNOWN = dict.fromkeys([*_ADAM, "adan", "rmsprop", "lion"], "adam") | dict.fromkeys(["sgd", "sgdw"], "sgd")

_REASONS = {
    "muon shampoo soap kron apollo": "it moves matrices by their singular values, not element by element",
    "lamb lars novograd adafactor": "the norm of the weights, or of a layer's gradients, sets the size of its steps",
    "schedulefreesgd schedulefreeadamw schedulefreeradam madgrad conditionalgradient proximaladagrad ftrl": (
        "its weights follow from a state of its own, which factors of the displacements would contradict"
    ),
    "adadelta": "the size of its steps follows from those before",
    "prodigy dadaptadam cocob": "it finds one rate for all variables from their distance so far",
}
_UNSUITED = {name: reason for names, reason in _REASONS.items() for name in names.split()}


def rule_of(optimizer: Any, rule: str | None) -> str:
    """`rule`, or that of the optimizer's class; an error where neither will do."""
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"`optimizer` must be a Keras optimizer. Received: optimizer={optimizer!r}")
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError("`optimizer` must be the one inside the LossScaleOptimizer: scale the loss of the result.")
    if optimizer.built:
        raise ValueError(f"`optimizer` must not have been built yet. Received: a built {type(optimizer).__name__}")
    kind = type(optimizer)
    name = kind.__name__.lower() if kind.__module__.startswith(("keras_trainkit.", "keras.")) else ""
    if name in _UNSUITED:
        raise ValueError(
            f"`optimizer` must be one that takes a factor for each variable's rate. Received: {kind.__name__}; "
            f"{_UNSUITED[name]}"
        )
    if rule is None and name not in _KNOWN:
        raise ValueError(
            f"`rule` must be given for {kind.__name__}: 'adam' if it normalizes each element of the gradient, 'sgd' if "
            "it is linear in the gradient. Received: rule=None"
        )
    return _KNOWN[name] if rule is None else checks.one_of("rule", rule, RULES)
