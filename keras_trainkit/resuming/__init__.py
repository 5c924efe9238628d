"""The state of a run on disk: what it consists of, how it is written whole, and how it is found again."""

from keras_trainkit.resuming.bundle import Damaged
from keras_trainkit.resuming.store import Saved, saved_states

__all__ = ["Damaged", "Saved", "saved_states"]
