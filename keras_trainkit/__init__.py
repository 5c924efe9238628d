"""Training parts for Keras 3."""

from keras_trainkit._version import __version__

__all__ = ["__version__"]
