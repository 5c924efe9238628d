"""Searches keep books in the same way on every backend, so that one is enough to test them on; estimators train."""

from pathlib import Path

import keras
import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items):
    """Leaves out on other backends what trains nothing, or trains as Keras does."""
    if keras.backend.backend() == "tensorflow":
        return
    for item in items:
        if item.path.parent == HERE and "sklearn" not in item.path.name:
            item.add_marker(pytest.mark.skip(reason="searches are tested on the TensorFlow backend"))
