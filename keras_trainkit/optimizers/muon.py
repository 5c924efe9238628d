"""Muon: momentum made orthogonal, with AdamW for what is no hidden matrix."""

from __future__ import annotations

import re
from typing import Any, ClassVar

import keras

from keras_trainkit.core import Transform, TransformOptimizer, chain, checks, partition
from keras_trainkit.optimizers.metadata import Info
from keras_trainkit.transforms import AddDecay, AverageGradient, Orthogonalize, Scale, ScaleByAdam, ScaleByLearningRate
from keras_trainkit.transforms.orthogonal import QUINTIC
from keras_trainkit.transforms.routing import MATRIX, MatrixRule


@keras.saving.register_keras_serializable("keras_trainkit")
class Muon(TransformOptimizer):
    """Momentum whose singular values are all brought near 1, for hidden weight matrices; AdamW for all others.

    m = momentum m + (1 - momentum) g; O = NewtonSchulz(momentum m + (1 - momentum) g) (m itself without `nesterov`);
    w = w - learning_rate (s O + weight_decay w). O is near U V^T, where U S V^T is the singular value decomposition of
    what went in; its singular values lie between 0.68 and 1.16. State: 4 bytes per parameter of a matrix, 8 of what
    AdamW gets.

    **Which variables.** The optimizer sees variables, not layers, and goes by path and shape. AdamW gets, in this
    order: a variable that `exclude_layers` names; vectors and scalars, among them a matrix of one row or column, and
    biases and scales of any rank; depthwise kernels (a matrix for each channel would have one column); embeddings
    (`embed` in the name of the variable or of its layer); and the head. `head="auto"` takes for a head the layers
    called `head`, `logits`, `predictions` or `classifier` (or `lm_head`, `head_2` ...); if there is none, the last
    matrix in the order of the model's variables, unless it is the only one. Keras orders variables by layer, so that
    is the output layer of a model whose output layer was made last. It is wrong for a model without an output matrix
    (tied embeddings): give `head=None` there. `routes` says for each variable where it went, and why; read it once.

    **Rows and columns.** A Keras kernel is (inputs, outputs), torch's (outputs, inputs). Here the last axis is the
    output and all others are inputs, flattened: a convolution of (height, width, in, out) is one matrix. Keras's
    attention projections (inputs, heads, size) are matrices with heads * size outputs. `layouts` says otherwise for
    other variables, by a letter for each axis: `i` input, `o` output, `b` stack. `["experts/kernel$", "bio"]` makes an
    orthogonal matrix for each expert; `[".", "oi"]` is for matrices as torch has them; `["transpose/kernel$", "iioi"]`
    for a transposed convolution.

    **Scales s.** `"original"`: sqrt(max(1, outputs / inputs)); Jordan's code, torch's default, optax's. `"rms"`: 0.2
    sqrt(max(outputs, inputs)); Moonlight, torch's `"match_rms_adamw"` (which is taken here, too), Keras's default: the
    update has the size of AdamW's, so `adam_lr_ratio=1` fits it, with AdamW's rate and decay. `"spectral"`:
    sqrt(outputs / inputs), Bernstein's, under which the best rate does not depend on the width. `"none"`: 1.

    The author and torch iterate in bfloat16, whose rounding moves parameters by about 1e-3 in 20 steps; here it is
    float32, unless `ns_dtype="bfloat16"` asks for the author's rounding (equal to torch's then, at float32's speed).

    References: Jordan et al., 2024, https://kellerjordan.github.io/posts/muon; scale and decay: Liu et al., 2025,
    arXiv:2502.16982; spectral scale: Bernstein and Newhouse, 2024, arXiv:2409.20325.

    Args:
        learning_rate: the step size, or a schedule.
        weight_decay: decoupled, at least 0; the author's 0, torch's and Moonlight's 0.1.
        momentum: the decay of the average, from 0 to below 1.
        nesterov: look one gradient ahead.
        scale: one of the names above.
        coefficients: a, b and c of the iteration.
        ns_steps: iterations, at least 1.
        ns_dtype: `"float32"`, or `"bfloat16"` for its rounding.
        layouts: list of `[pattern, letters]` pairs; each must take a variable.
        exclude_layers: list of regular expressions; variables in whose path one is found go to AdamW. Each must be
            found somewhere.
        exclude_embeddings: whether embeddings go to AdamW.
        head: `"auto"`, None for no head, or a regular expression of the heads' paths.
        adam_lr_ratio: AdamW's learning rate divided by `learning_rate`; the author's rates are 0.0003 and 0.02.
        adam_beta_1: AdamW's decay of the mean, from 0 to below 1.
        adam_beta_2: AdamW's decay of the mean square, from 0 to below 1.
        epsilon: AdamW's, after debiasing as in torch; at least 0.
        adam_weight_decay: AdamW's decay, times its own learning rate; None for `weight_decay`.
        **options: the arguments of `core.TransformOptimizer`.

    Example:

    >>> import keras
    >>> from keras_trainkit import optimizers
    >>> model = keras.Sequential([
    ...     keras.Input((8,)), keras.layers.Dense(16, name="a"), keras.layers.Dense(16, name="b"),
    ...     keras.layers.Dense(3, name="c")])
    >>> optimizer = optimizers.Muon(0.02, weight_decay=0.01)
    >>> optimizer.build(model.trainable_variables)
    >>> list(optimizer.routes.values())[::2]  # those between are the biases
    ['muon', 'muon', 'adamw: the last matrix']
    """

    info = Info(year=2024, paper="Jordan et al., 2024", state_bytes=4)
    decays_inside: ClassVar = True

    def __init__(
        self,
        learning_rate: Any = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = True,
        scale: str = "original",
        coefficients: list[float] | None = None,
        ns_steps: int = 5,
        ns_dtype: str = "float32",
        layouts: list[list[str]] | None = None,
        exclude_layers: list[str] | None = None,
        exclude_embeddings: bool = True,
        head: str | None = "auto",
        adam_lr_ratio: float = 0.015,
        adam_beta_1: float = 0.9,
        adam_beta_2: float = 0.95,
        epsilon: float = 1e-10,
        adam_weight_decay: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.momentum = checks.number("momentum", momentum, at_least=0, below=1)
        self.nesterov = checks.boolean("nesterov", nesterov)
        self.ns_steps = checks.integer("ns_steps", ns_steps, at_least=1)
        # One object each, so that Keras's tracking leaves the lists alone.
        self._rule = MatrixRule(exclude_layers or [], exclude_embeddings, head, layouts or [])
        self._orthogonal = Orthogonalize(
            scale, QUINTIC if coefficients is None else coefficients, self.ns_steps, 1e-7, ns_dtype, layouts or []
        )
        self.adam_lr_ratio = checks.number("adam_lr_ratio", adam_lr_ratio, above=0)
        self.adam_beta_1 = checks.number("adam_beta_1", adam_beta_1, at_least=0, below=1)
        self.adam_beta_2 = checks.number("adam_beta_2", adam_beta_2, at_least=0, below=1)
        self.epsilon = checks.number("epsilon", epsilon, at_least=0)
        self.adam_weight_decay = (
            None if adam_weight_decay is None else checks.number("adam_weight_decay", adam_weight_decay, at_least=0)
        )
        self._routing: tuple[tuple[str, str], ...] = ()

    def argument(self, name: str) -> Any:
        if name in ("scale", "coefficients", "ns_dtype"):
            return getattr(self._orthogonal, name)
        return getattr(self._rule, name) if hasattr(self._rule, name) else super().argument(name)

    @property
    def routes(self) -> dict[str, str]:
        """By path, `muon` or `adamw` with the reason behind a colon; empty before `build`."""
        return dict(self._routing)

    def build(self, variables: list[Any]) -> None:
        if not self.built:
            found = self._rule.routes(variables)
            self._routing = tuple((p, "muon" if why == MATRIX else f"adamw: {why}") for p, why in found.items())
        super().build(variables)

    def transform(self) -> Transform:
        muon = chain(
            AverageGradient(self.momentum, self.nesterov),
            self._orthogonal,
            *self._decay(self.weight_decay),
            ScaleByLearningRate(),
        )
        adamw = chain(
            ScaleByAdam(self.adam_beta_1, self.adam_beta_2, self.epsilon, epsilon_hat=False),
            *self._decay(self.weight_decay if self.adam_weight_decay is None else self.adam_weight_decay),
            Scale(self.adam_lr_ratio),
            ScaleByLearningRate(),
        )
        matrices = [re.escape(path) for path, route in self._routing if route == "muon"]
        if not matrices:
            return adamw
        return partition([[f"^(?:{'|'.join(matrices)})$", muon]], default=adamw)

    def _decay(self, amount: float | None) -> list[Transform]:
        return [AddDecay(amount, self.weight_decay_exclude)] if amount else []
