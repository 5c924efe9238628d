"""Replicas on one machine, and what the machine has."""

from keras_trainkit.distribution.devices import describe_devices
from keras_trainkit.distribution.seeds import separate_seeds
from keras_trainkit.distribution.strategies import SingleDevice, strategy

__all__ = ["SingleDevice", "describe_devices", "separate_seeds", "strategy"]
