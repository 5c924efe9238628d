"""A seed for an initializer that another one wraps."""

from __future__ import annotations

from typing import Any

import keras


def with_seed(initializer: Any, seed: Any) -> Any:
    """The initializer that is meant; `seed` goes to one that came by name.

    Raises:
        ValueError: for an unknown initializer, or a seed that it cannot take.
    """
    found = keras.initializers.get(initializer)
    if seed is None:
        return found
    if isinstance(initializer, str) and "seed" in found.get_config():
        return type(found)(**{**found.get_config(), "seed": seed})
    raise ValueError(
        "`seed` is for the default initializer or one given by a name that draws at random; give any other its own "
        f"seed. Received: initializer={initializer!r}, seed={seed!r}"
    )
