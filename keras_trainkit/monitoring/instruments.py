"""What a monitor reads for a line beside loss and speed: rates, norms, noise, times, memory, layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras

from keras_trainkit.core import backend
from keras_trainkit.core.statistics import by_layer
from keras_trainkit.monitoring import device_peaks, resources
from keras_trainkit.monitoring.activations import Activations
from keras_trainkit.monitoring.batch_wait import BatchWait
from keras_trainkit.monitoring.counting import accumulation_steps, inner_optimizer, to_float
from keras_trainkit.monitoring.noise_scale import NoiseScale
from keras_trainkit.training.train_functions import trace_anew

STATISTICS = ("gradient_norm", "clipped_gradient_norm", "update_norm", "weight_norm", "update_to_weight_ratio")


class Instruments:
    """The instruments of one monitor.

    Args:
        every, layers_every, noise_scale, tokens_per_sample, flops_per_sample, peak_flops: those of `TrainingMonitor`.
    """

    def __init__(
        self,
        every: int,
        layers_every: int | None,
        noise_scale: bool,
        tokens_per_sample: int | None,
        flops_per_sample: float | None,
        peak_flops: float | None,
    ) -> None:
        self.every, self.layers_every, self.noise_scale = every, layers_every, noise_scale
        self.tokens_per_sample, self.flops_per_sample, self.peak_flops = tokens_per_sample, flops_per_sample, peak_flops
        self.noise = NoiseScale()
        self.times = resources.StepTimes()
        self._memory = resources.Memory()
        self._watched: Any = None
        self._warned = False
        self._activations: Activations | None = None
        self._wait: BatchWait | None = None
        self._made: Any = None
        self._factors: dict[str, float] | None = None
        self._tokens: int | None = None
        self._peak: float | None = None
        self._since = 0
        self._safe: Callable[[], None] | None = None

    def set_model(self, model: Any) -> None:
        """Has the optimizer compute the norms; `fit` calls it before the train step is traced."""
        optimizer = inner_optimizer(getattr(model, "optimizer", None))
        if optimizer is None or optimizer is self._watched:
            return
        self._watched = optimizer
        if hasattr(optimizer, "watch"):
            optimizer.watch(self.every, by_variable=self.layers_every is not None, pieces=self.noise_scale)
            # A step that was traced before does not compute the norms.
            model.train_function = None
        elif not self._warned:
            self._warned = True
            warnings.warn(
                f"{type(optimizer).__name__} reports no {', '.join(STATISTICS)}; TrainingMonitor writes the rest. "
                "Compile with keras_trainkit.optimizers.wrap(optimizer) to have them.",
                stacklevel=3,
            )

    def begin(self, model: Any) -> None:
        """`on_train_begin`: goes into the train step, which is made anew if it was made without."""
        self._factors = None
        self.times = resources.StepTimes()
        self._tokens = self.tokens_per_sample or resources.tokens_per_sample(model)
        self._peak = self.peak_flops or device_peaks.peak_flops(backend.gpu_names()[: backend.replicas_of(model)])
        if self.noise_scale and backend.replicas_of(model) * accumulation_steps(model.optimizer) < 2:
            warnings.warn(
                "The gradient noise scale cannot be measured: it needs gradients of two batch sizes, from "
                "`gradient_accumulation_steps` of at least 2 or several replicas. TrainingMonitor writes the rest.",
                stacklevel=3,
            )
        if self._activations is None or self._activations.model is not model:
            self._activations = self._watch_layers(model)
        if self._wait is None or self._wait.model is not model:
            self._wait = BatchWait(model)
        attached = [one for one in (self._activations, self._wait) if one is not None and one.able]
        stale = model.train_function is None or model.train_function is not self._made
        for one in attached:
            one.attach()
        if attached:
            self._safe = backend.when_fit_fails(lambda: self.end(model))
        if attached and stale:
            trace_anew(model)

    def end(self, model: Any) -> None:
        """`on_train_end`, or the end by an error: the model has its own train step again."""
        if self._safe is not None:
            safe, self._safe = self._safe, None
            safe()
        for one in (self._activations, self._wait):
            if one is not None:
                one.detach()
        self._made = model.train_function

    def _watch_layers(self, model: Any) -> Activations | None:
        if self.layers_every is None:
            return None
        if not backend.ON_TENSORFLOW:
            warnings.warn(
                "Statistics of activations need Keras on TensorFlow; TrainingMonitor writes the norms by layer.",
                stacklevel=4,
            )
            return None
        return Activations(model, self.layers_every)

    # --------------------------------------------------------------------------------------------------------- times

    def start_step(self, batches: int) -> None:
        """A step begins that is to be timed, after so many batches."""
        if not self.times.running and self._wait is not None:
            # What was waited before, in a step that is not timed, does not count.
            self._wait.take()
            self._since = batches
        self.times.start()

    def _waiting(self, batches: int) -> dict[str, float | None]:
        """Mean seconds of a step since the last call, waiting for data and computing."""
        done, self._since = batches - self._since, batches
        waited, step = self._wait.take() if self._wait is not None else None, self.times.take_mean()
        if not waited or done < 1 or step is None:
            return {}
        return {"data_wait_seconds": waited / done, "compute_seconds": max(step - waited / done, 0.0)}

    # -------------------------------------------------------------------------------------------------------- values

    def rates(self, optimizer: Any, rate: float | None) -> dict[str, float | None]:
        """The learning rate of each group of variables, where there are several."""
        inner = inner_optimizer(optimizer)
        if self._factors is None:
            self._factors = inner.rate_factors() if hasattr(inner, "rate_factors") and inner.built else {}
        if len(self._factors) < 2 or rate is None:
            return {}
        return {f"learning_rate/{label}": rate * factor for label, factor in self._factors.items()}

    def norms(self, optimizer: Any) -> dict[str, float | None]:
        """The norms of the last watched update, and which share of the gradient the clipping left."""
        inner = inner_optimizer(optimizer)
        values: dict[str, float | None] = dict.fromkeys(STATISTICS)
        values |= inner.statistics() if hasattr(inner, "statistics") else {}
        norm, clipped = values["gradient_norm"], values["clipped_gradient_norm"]
        if getattr(inner, "clips", False) and norm and clipped is not None:
            values["clip_ratio"] = clipped / norm
        return values

    def noise_values(self, optimizer: Any, samples_per_update: float | None) -> dict[str, float | None]:
        """The noise scale with the last watched update counted in, in samples where they are known."""
        inner = inner_optimizer(optimizer)
        pieces = inner.piece_statistics() if self.noise_scale and hasattr(inner, "piece_statistics") else None
        if pieces is None:
            return {}
        self.noise.add(*pieces)
        found = self.noise.in_batches
        in_samples = found * samples_per_update if found is not None and samples_per_update else None
        return {"noise_to_batch_ratio": found, "gradient_noise_scale": in_samples}

    def cost(self, samples_per_second: float | None, batches: int) -> dict[str, float | None]:
        """Times, tokens, memory, and the share of the device's arithmetic in use."""
        values: dict[str, float | None] = {**self.speed(samples_per_second), **self.times.recent()}
        return values | self._waiting(batches) | self._memory()

    def speed(self, samples_per_second: float | None) -> dict[str, float | None]:
        """What follows from the samples per second."""
        values: dict[str, float | None] = {}
        if samples_per_second is not None and self._tokens:
            values["tokens_per_second"] = samples_per_second * self._tokens
        if samples_per_second is not None and self.flops_per_sample and self._peak:
            values["model_flops_utilisation"] = samples_per_second * self.flops_per_sample / self._peak
        return values

    def silent(self, model: Any) -> set[str]:
        """What will not be written, as `tensorboard_page.PAGE` calls it."""
        inner = inner_optimizer(model.optimizer)
        watches = hasattr(inner, "watch")
        able = {
            "step/clip_ratio": getattr(inner, "clips", False),
            "step/gradient_noise_scale": self.noise_scale,
            "step/loss_scale": inner is not model.optimizer,
            "step/skipped_steps": hasattr(model.optimizer, "skipped_steps"),
            "step/tokens_per_second": bool(self._tokens),
            "step/model_flops_utilisation": bool(self.flops_per_sample and self._peak),
            **dict.fromkeys(
                ["step/gradient_norm", "step/clipped_gradient_norm", "step/update_to_weight_ratio"], watches
            ),
        }
        outputs = ("dead_fraction", "activation_mean", "activation_std", "zero_fraction")
        able |= {f"layers/{name}/.*": self._activations is not None for name in outputs}
        norms = ("gradient_norm", "update_to_weight_ratio", "weight_norm")
        able |= {f"layers/{name}/.*": watches and self.layers_every is not None for name in norms}
        return {tag for tag, is_able in able.items() if not is_able}

    def layers(self, optimizer: Any) -> dict[str, dict[str, float]]:
        """The statistics of each layer, at the last update that they were measured at."""
        inner = inner_optimizer(optimizer)
        found = by_layer(inner.statistics_by_variable()) if hasattr(inner, "statistics_by_variable") else {}
        outputs = self._activations.values() if self._activations is not None else {}
        return {layer: found.get(layer, {}) | outputs.get(layer, {}) for layer in {**outputs, **found}}


def weights(model: Any) -> dict[str, Any]:
    """The trained variables by path, as arrays."""
    return {v.path: keras.ops.convert_to_numpy(v) for v in model.trainable_variables}


def description(model: Any) -> dict[str, Any]:
    """What can be said of a run that nobody has described: the model, its size, and its optimizer."""
    optimizer = inner_optimizer(model.optimizer)
    config = {
        name: value for name, value in optimizer.get_config().items() if isinstance(value, (bool, int, float, str))
    }
    rate = config.get("learning_rate", to_float(optimizer.learning_rate))
    return {
        "model": model.name,
        "parameters": model.count_params() if model.built else None,
        "precision": model.dtype_policy.name,
        "optimizer": {**config, "name": type(optimizer).__name__, "learning_rate": rate},
    }
