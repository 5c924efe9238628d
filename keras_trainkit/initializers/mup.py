"""The maximal update parametrization: initialization and learning rates that fit every width."""

from __future__ import annotations

import dataclasses
import math
import re
import weakref
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_trainkit.core import checks
from keras_trainkit.core.compose import variable_path
from keras_trainkit.core.matching import require_matches, require_pattern, table
from keras_trainkit.core.numerics import widened
from keras_trainkit.core.optimizer import TransformOptimizer
from keras_trainkit.initializers import mup_shapes
from keras_trainkit.initializers.mup_rules import RULES, rule_of
from keras_trainkit.transforms import ScaleByVariable

ROLES = ("input", "hidden", "output", "fixed")

_done: weakref.WeakSet = weakref.WeakSet()


@dataclasses.dataclass(frozen=True)
class MuPVariable:
    """What `mup` found out about a variable, and did.

    Attributes:
        path: the variable's path.
        shape: its shape.
        role: `"input"`, `"hidden"`, `"output"` or `"fixed"`: whether the axes that it puts out, those that it is summed
            over, or both, or none, have grown.
        grew_in: the product of the axes summed over, divided by that of the base model.
        grew_out: the same of the axes put out.
        initial: by what the initial values were multiplied.
        adam: the factor of the learning rate for optimizers that normalize each element of the gradient.
        sgd: the factor of the learning rate for those that are linear in the gradient.
        query: whether it makes the queries of an attention layer.
    """

    path: str
    shape: tuple[int, ...]
    role: str
    grew_in: float
    grew_out: float
    initial: float
    adam: float
    sgd: float
    query: bool = False


@dataclasses.dataclass(frozen=True)
class MuP:
    """What `mup` did to a model, and the learning rates that go with it. Print it to see the table.

    Attributes:
        rows: a `MuPVariable` for each trainable variable, in their order.
    """

    rows: list[MuPVariable]

    def __str__(self) -> str:
        head = ["variable", "shape", "role", "in", "out", "initial values", "rate, Adam", "rate, SGD"]
        numbers = ("grew_in", "grew_out", "initial", "adam", "sgd")
        return table(
            head,
            [
                [
                    row.path,
                    row.shape,
                    "query" if row.query else row.role,
                    *(f"{getattr(row, name):.4g}" for name in numbers),
                ]
                for row in self.rows
            ],
        )

    def factors(self, rule: str) -> dict[str, float]:
        """The factor of each variable's learning rate by the variable's path; `rule` is `"adam"` or `"sgd"`."""
        checks.one_of("rule", rule, RULES)
        return {row.path: getattr(row, rule) for row in self.rows}

    def transform(self, rule: str) -> ScaleByVariable:
        """The factors as a link for an optimizer's `after`, where it stands first; `rule` is `"adam"` or `"sgd"`."""
        checks.one_of("rule", rule, RULES)
        return ScaleByVariable([[row.path, list(row.shape), getattr(row, rule)] for row in self.rows])

    def optimizer(self, optimizer: Any, rule: str | None = None) -> Any:
        """The optimizer with the factors in front of its `after`; it is saved with them.

        The optimizer's `weight_decay` is not multiplied by the factors: at every width a step takes the same part,
        `learning_rate * weight_decay`, off every variable.

        Args:
            optimizer: one of the kit's or of Keras's, not yet built. What wraps another goes around the result.
            rule: `"adam"` for optimizers that normalize each element of the gradient, `"sgd"` for those that are
                linear in it; None to go by the class, where it is one whose rule is known.

        Raises:
            TypeError: for what is no optimizer.
            ValueError: for a class whose rule is not known when none is given; for an optimizer that such factors do
                not suit, that has been built, or that applies weight decay in its algorithm.
        """
        # Looked up late: optimizers are no part of what initializers need.
        from keras_trainkit.optimizers import wrap

        transform = self.transform(rule_of(optimizer, rule))
        if not isinstance(optimizer, TransformOptimizer):
            return wrap(optimizer, after=[transform])
        if optimizer.decays_inside and getattr(optimizer, "weight_decay", None):
            raise ValueError(
                f"`optimizer` must leave out `weight_decay`: {type(optimizer).__name__} applies it in its algorithm, "
                "where the factors would reach it; `transforms.DecoupledDecay` in `after` does without them. "
                f"Received: weight_decay={optimizer.weight_decay}"
            )
        links = [keras.saving.serialize_keras_object(link) for link in [transform, *optimizer.after]]
        return type(optimizer).from_config(optimizer.get_config() | {"after": links})


def mup(
    model: keras.Model,
    base: keras.Model | Sequence[Sequence[int]],
    roles: dict[str, str] | None = None,
    rescale: bool = True,
) -> MuP:
    """Puts a model into the maximal update parametrization, relative to a narrower model of the same architecture.

    What is tuned at the width of `base` then holds for `model`: activations and their changes in training keep their
    size, and so does the best learning rate. It changes the initial values, in place, and returns the factors of the
    learning rates:

    - input (only its output grew; also biases, embeddings, normalizations): standard deviation base; rate for Adam 1,
      for SGD out;
    - hidden (both grew): base / sqrt(in); Adam 1 / in, SGD out / in;
    - output (only its input grew): base / in; Adam 1 / in, SGD 1 / in;
    - fixed (nothing grew): base; 1 and 1.

    "base" is what the variable's initializer gives at the base model's shape; "in" and "out" say how many times larger
    the axes are that the variable is summed over and puts out. At the base width nothing changes, so the base model is
    trained as it is. The values are multiplied, not drawn anew: seeds count as before, zeros stay zeros.

    The model computes as before: this is the form of the parametrization without multipliers (table 3 of Yang et al.).
    Where it is written with an output divided by the width (table 8), the same learning follows from other values and
    rates. Attention is put right in the same way: Keras divides its logits by the root of the head size, not by the
    size; where that has grown, the rest is in the query's kernel and bias and in their rates (for SGD squared).

    The width is whatever differs between the two models; depth, vocabulary, kernel sizes and the number of classes must
    be the same. If the number of heads grows and their size does not, nothing is to be done for the attention. Adam's
    `epsilon` should be small beside gradients, which fall as one over the width.

    Reference: Yang et al., 2022, "Tensor Programs V", arXiv:2203.03466. The library mup of the paper's authors has the
    readout divide by the width instead, and takes initializers whose variance is one over the fan-in for granted; here
    the initializers may be any, because the base model says how large their values are to be.

    Args:
        model: a built model, fresh from its initializers. Frozen variables are left alone.
        base: a built model of the same architecture at the width where hyperparameters are tuned, or the shapes of its
            trainable variables, in their order.
        roles: dictionary from regular expressions, looked for in the variables' paths, to `"input"`, `"hidden"` (the
            last axis is put out, the others are summed over), `"output"` or `"fixed"`, for variables of layers of your
            own that would be taken for something else.
        rescale: False leaves the values, for a model that was loaded, and returns the factors only.

    Returns:
        A `MuP`: print it; its `optimizer` gives an optimizer the factors.

    Raises:
        TypeError, ValueError: for models that are not built or differ in more than in width; for a model that has been
            rescaled before; for a kernel that begins as a constant other than 0, or around a mean other than 0, which
            no width suits; for a `keras.layers.ReversibleEmbedding` with tied weights without a role.

    >>> import keras
    >>> from keras_trainkit import optimizers
    >>> def build(width):
    ...     layers = [keras.layers.Dense(width, "relu", name=name) for name in ("first", "second")]
    ...     return keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(3, name="last")], name="net")
    >>> parametrized = mup(model := build(256), build(64))
    >>> print(parametrized)
    variable           shape       role    in  out  initial values  rate, Adam  rate, SGD
    net/first/kernel   (8, 256)    input   1   4    1.915           1           4
    net/first/bias     (256,)      input   1   4    1               1           4
    net/second/kernel  (256, 256)  hidden  4   4    1               0.25        1
    net/second/bias    (256,)      input   1   4    1               1           4
    net/last/kernel    (256, 3)    output  4   1    0.4915          0.25        0.25
    net/last/bias      (3,)        fixed   1   1    1               1           1
    >>> model.compile(parametrized.optimizer(optimizers.AdamW(1e-3)), "mse")
    """
    _require_built("model", model)
    checks.boolean("rescale", rescale)
    if rescale and model in _done:
        raise ValueError("`model` must be fresh: `mup` has rescaled it before. `rescale=False` returns the factors.")
    variables = list(model.trainable_variables)
    shapes, base_variables = _base_shapes(base, variables)
    chosen = _checked_roles(roles, variables)
    owners, queries = mup_shapes.owners(model), mup_shapes.queries(model)
    rows = []
    for i, variable in enumerate(variables):
        layer = owners[id(variable)]
        path, shape = variable_path(variable), tuple(variable.shape)
        role = next((role for pattern, role in chosen.items() if re.search(pattern, path)), None)
        if role is None:
            _refuse_tied(layer, variable, shape, shapes[i])
        grew_in, grew_out = _growth(layer, variable.name, shape, shapes[i], role)
        share = (shapes[i][-1] / shape[-1]) ** 0.5 if id(variable) in queries and shape else 1.0
        found = role or _role(grew_in, grew_out)
        target = share / (grew_in if found == "output" else math.sqrt(grew_in))
        initial = target * _spread_ratio(layer, variable, shapes[i], base_variables[i], grew_in)
        adam, sgd = share / grew_in, share**2 * grew_out / grew_in
        rows.append(
            MuPVariable(path, shape, found, grew_in, grew_out, initial, adam, sgd, query=id(variable) in queries)
        )
    if rescale:
        for variable, row in zip(variables, rows, strict=True):
            if row.initial != 1:
                variable.assign(ops.cast(widened(variable.value) * row.initial, variable.dtype))
        _done.add(model)
    else:
        rows = [dataclasses.replace(row, initial=1.0) for row in rows]
    return MuP(rows)


def _role(grew_in: float, grew_out: float) -> str:
    return {(True, True): "hidden", (True, False): "output", (False, True): "input"}.get(
        (grew_in != 1, grew_out != 1), "fixed"
    )


def _growth(layer: Any, name: str, shape: tuple, base: tuple, role: str | None) -> tuple[float, float]:
    """How many times larger the axes summed over and the axes put out are than in the base model."""
    every = list(range(len(shape)))
    summed, out = {
        None: mup_shapes.axes(layer, name, len(shape)),
        "input": ([], every),
        "hidden": (every[:-1], every[-1:]),
        "output": (every, []),
        "fixed": ([], []),
    }[role]
    return tuple(math.prod(shape[a] / base[a] for a in some) for some in (summed, out))


def _spread_ratio(layer: Any, variable: Any, base: tuple, base_variable: Any, grew_in: float) -> float:
    """How far the values of the base model are spread, over how far those of the model are."""
    shape, path = tuple(variable.shape), variable_path(variable)
    initializer = mup_shapes.initializer_of(layer, variable.name)
    if grew_in != 1 and mup_shapes.center(initializer) != 0:
        raise ValueError(
            f"`model` must have initializers around 0 where a sum grows with the width. Received: {initializer} for "
            f"`{path}`"
        )
    if shape == base or mup_shapes.is_constant(initializer):
        return 1.0
    now = _size(variable)
    before = None if base_variable is None else _size(base_variable)
    told = mup_shapes.axes(layer, variable.name, len(shape))
    for axes in (None, told):  # which of the two a layer goes by depends on Keras's version
        exact = mup_shapes.spread(initializer, base, axes), mup_shapes.spread(initializer, shape, axes)
        if _agree(exact[0], before, base) and _agree(exact[1], now, shape):
            return exact[0] / exact[1] if exact[1] else 1.0  # type: ignore[operator]
    if before is None:
        raise ValueError(
            f"`base` must be a model where values are not as Keras's own initializers draw them: those of the base "
            f"say how large the values of `{path}` are to be. Received: shapes, and the initializer {initializer}"
        )
    if bool(before) != bool(now):
        raise ValueError(
            f"`base` and `model` must begin alike. Received: a mean size of {before:.3g} and of {now:.3g} in `{path}`"
        )
    return before / now if now else 1.0


def _agree(expected: float | None, found: float | None, shape: tuple) -> bool:
    """Whether values are as large as their initializer says: within 5 standard errors, and rounding."""
    if expected is None or found is None:
        return expected is not None
    return abs(found - expected) <= expected * (5 / math.sqrt(2 * math.prod(shape)) + 0.01)


def _size(variable: Any) -> float:
    values = widened(ops.convert_to_tensor(variable))
    return float(ops.sqrt(ops.mean(ops.square(values))))


def _base_shapes(base: Any, variables: list[Any]) -> tuple[list[tuple], list[Any]]:
    """The shape of each variable in the base model, and the variables there, or Nones."""
    if isinstance(base, keras.Model):
        _require_built("base", base)
        found = list(base.trainable_variables)
        shapes, names = [tuple(v.shape) for v in found], [v.name for v in found]
    elif isinstance(base, Sequence) and not isinstance(base, str) and all(isinstance(s, Sequence) for s in base):
        shapes = [tuple(checks.integer("base", size, at_least=1) for size in shape) for shape in base]
        found, names = [None] * len(shapes), [v.name for v in variables][: len(shapes)]
    else:
        raise TypeError(f"`base` must be a built model or a list of shapes. Received: base={base!r}")
    here = [(v.name, tuple(v.shape)) for v in variables]
    same = len(shapes) == len(here) and all(
        name == own and len(shape) == len(wide) for (own, wide), name, shape in zip(here, names, shapes, strict=True)
    )
    if not same:
        at = next(
            (
                i
                for i, (a, b) in enumerate(zip(here, zip(names, shapes, strict=True), strict=False))
                if a[0] != b[0] or len(a[1]) != len(b[1])
            ),
            min(len(here), len(shapes)),
        )
        ours = f"`{variable_path(variables[at])}` {here[at][1]}" if at < len(here) else "nothing"
        theirs = f"`{names[at]}` {shapes[at]}" if at < len(shapes) else "nothing"
        raise ValueError(
            f"`base` and `model` must differ in width only: {len(shapes)} trainable variables and {len(here)}. "
            f"Received: variable {at} is {theirs} in the base, {ours} in the model"
        )
    return shapes, found


def _checked_roles(roles: dict[str, str] | None, variables: list[Any]) -> dict[str, str]:
    chosen = dict(roles or {})
    for pattern, role in chosen.items():
        require_pattern("roles", pattern)
        checks.one_of("roles", role, ROLES)
    if chosen:
        require_matches("roles", list(chosen), [variable_path(v) for v in variables])
    return chosen


def _refuse_tied(layer: Any, variable: Any, shape: tuple, base: tuple) -> None:
    if shape != base and variable.name == "embeddings" and getattr(layer, "tie_weights", False):
        raise ValueError(
            f"`{variable_path(variable)}` is both an input and an output, whose sizes cannot both be right. Use "
            "`tie_weights=False`; or divide what goes into the reverse projection by the growth of the width, with "
            "`keras.layers.Rescaling(base_width / width)`, and give `roles={'embeddings': 'input'}` where the second "
            "axis alone has grown."
        )


def _require_built(name: str, model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(f"`{name}` must be a Keras model. Received: {name}={model!r}")
    if not model.trainable_variables:
        raise ValueError(f"`{name}` must be built: call it on a batch first. Received: a model without variables")
