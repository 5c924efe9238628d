"""What replicas exchange for one update, in bytes, messages and seconds."""

from __future__ import annotations

import math
from typing import Any

from keras_trainkit.core import TransformOptimizer, backend
from keras_trainkit.core.numerics import wide_dtype
from keras_trainkit.distribution.layout_report import tensor_bytes
from keras_trainkit.distribution.measuring import Gradient


class Exchange:
    """What replicas exchange for one update.

    Args:
        optimizer: that updates, or None.
        gradients: of a step on `samples` samples.
        samples: of one device.
        devices: the most there will be.

    Attributes:
        inner: the optimizer, without a wrapper that scales the loss.
        micro_batches: of a window.
        by_rows: the gradients that are gathered and not reduced.

    Raises:
        ValueError: for accumulation that does not work on several replicas.
    """

    def __init__(self, optimizer: Any, gradients: list[Gradient], samples: int, devices: int) -> None:
        self.inner = getattr(optimizer, "inner_optimizer", optimizer)
        self.micro_batches = getattr(self.inner, "gradient_accumulation_steps", None) or 1
        self._samples = samples
        ours = isinstance(self.inner, TransformOptimizer)
        if devices > 1 and self.micro_batches > 1 and backend.ON_TENSORFLOW and not ours:
            raise ValueError(
                "`optimizer` must be one of the kit to accumulate on several replicas: Keras's own stop there with an "
                f"error about `merge_call`. Received: optimizer={type(self.inner).__name__} with "
                f"gradient_accumulation_steps={self.micro_batches}"
            )
        windowed = self.micro_batches > 1 and backend.ON_TENSORFLOW
        self.by_rows = [] if windowed else [g for g in gradients if g.rows is not None]
        dense = [g for g in gradients if windowed or g.rows is None]
        self._windowed = windowed
        self._width = (lambda v: wide_dtype(backend.dtype(v))) if ours and backend.ON_TENSORFLOW else backend.dtype
        self._reduced = [g.variable for g in dense]
        self._bytes = sum(tensor_bytes(v.shape, self._width(v)) for v in self._reduced)
        self._dense, self._messages = self._bytes, len({self._width(v) for v in self._reduced})
        if windowed:
            self._dense += 4  # the window's weight
            if optimizer is not self.inner:  # whether each micro-batch is finite
                self._dense += 4 * self.micro_batches
                self._messages += self.micro_batches
        else:
            self._dense *= self.micro_batches
            self._messages *= self.micro_batches

    def bytes(self, devices: int, samples: int) -> tuple[int, int, int]:
        """What a device gives into all-reduces, what it gives to all others, and what it sends in all."""
        if devices == 1:
            return 0, 0, 0
        gathered = math.ceil(sum(self._row_bytes(g) for g in self.by_rows) * samples / self._samples)
        sent = 2 * (devices - 1) / devices * self._dense + (devices - 1) * gathered
        return self._dense, gathered, math.ceil(sent)

    def copies(self, devices: int, samples: int) -> int:
        """Bytes of what lies beside the gradients at the exchange.

        Their sums over the devices with the rows of all, their mean over a window, or their copies in a wider dtype.
        """
        if not backend.ON_TENSORFLOW:
            return 0
        widened = any(self._width(v) != backend.dtype(v) for v in self._reduced) and not self._windowed
        gathered = devices * self.bytes(devices, samples)[1]
        return self._bytes * ((devices > 1) + self._windowed + widened) + gathered

    def seconds(self, devices: int, samples: int, bandwidth: float, latency: float) -> float:
        """In which a ring of devices exchanges them."""
        messages = 2 * self._messages + 2 * len(self.by_rows)  # reduce and scatter, gather; values and their rows
        return self.bytes(devices, samples)[2] / bandwidth + (devices - 1) * messages * latency

    def _row_bytes(self, gradient: Gradient) -> int:
        shape = (gradient.rows or 0, *gradient.variable.shape[1:])
        return tensor_bytes(shape, self._width(gradient.variable)) + (gradient.rows or 0) * gradient.index_bytes
