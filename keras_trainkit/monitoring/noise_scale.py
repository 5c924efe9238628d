"""The gradient noise scale: how large a batch is worth it, from gradients of two batch sizes."""

from __future__ import annotations

from typing import Any

from keras_trainkit.core import checks


class NoiseScale:
    """Estimates the noise in a model's gradients from those of the pieces of its batches.

    A gradient of B samples has the expected squared norm abs(G)^2 + S / B, where G is the gradient of the whole
    distribution and S the trace of the covariance of one sample's gradient. Two batch sizes, a piece's and the whole
    update's, give unbiased estimates of both. Each is noisy, so both are averaged exponentially before their ratio
    S / abs(G)^2 is taken: the noise scale, in samples. Batches much smaller than it waste no samples; much larger ones
    hardly save updates (McCandlish et al., 2018, arXiv:1812.06162, appendix A).

    Args:
        decay: of the averages, for each measurement, at least 0 and below 1.

    >>> noise = NoiseScale()
    >>> noise.add(small=1 + 8 / 2, big=1 + 8 / 16, pieces=8)  # G = 1, S = 8, pieces of 2 samples
    >>> noise.in_batches * 16
    8.0
    """

    def __init__(self, decay: float = 0.95) -> None:
        self.decay = checks.number("decay", decay, at_least=0, below=1)
        self._weight = self._signal = self._noise = 0.0

    def add(self, small: float, big: float, pieces: int) -> None:
        """Counts one measurement; what is not finite is passed over.

        Args:
            small: mean square of the norms of the pieces' gradients.
            big: square of the norm of their mean.
            pieces: how many they are, at least 2.
        """
        signal, noise = estimates(small, big, pieces)
        if not abs(signal) + abs(noise) < float("inf"):
            return
        self._weight = self.decay * self._weight + 1 - self.decay
        self._signal = self.decay * self._signal + (1 - self.decay) * signal
        self._noise = self.decay * self._noise + (1 - self.decay) * noise

    @property
    def in_batches(self) -> float | None:
        """The noise scale, in whole batches of an update; None where the noise hides the gradient, or nothing came."""
        return self._noise / self._signal if self._signal > 0 and self._noise > 0 else None

    def get_state(self) -> list[float]:
        """The averages as plain numbers."""
        return [self._weight, self._signal, self._noise]

    def set_state(self, state: Any) -> None:
        """The inverse of `get_state`."""
        self._weight, self._signal, self._noise = state


def estimates(small: float, big: float, pieces: int) -> tuple[float, float]:
    """abs(G)^2, and the noise S over the samples of the whole batch, both without bias.

    >>> estimates(small=5.0, big=1.5, pieces=8)
    (1.0, 0.5)
    """
    return (pieces * big - small) / (pieces - 1), (small - big) / (pieces - 1)
