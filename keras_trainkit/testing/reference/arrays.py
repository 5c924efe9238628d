"""What the twins compute with."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray
ZERO: Any = 0.0  # the state of an array before its first step, whatever its shape
