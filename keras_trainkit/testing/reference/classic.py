"""Twins of the optimizers without a first moment, and of plain momentum."""

from __future__ import annotations

import numpy as np

from keras_trainkit.testing.reference.arrays import ZERO, Array


class GradientDescent:
    """SGD with momentum: Polyak, 1964; Nesterov's form by Sutskever et al., 2013."""

    def __init__(self, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.momentum, self.nesterov, self.velocity = momentum, nesterov, ZERO

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.velocity = self.momentum * self.velocity - rate * gradient
        if self.nesterov:
            return self.momentum * self.velocity - rate * gradient
        return self.velocity


class Adagrad:
    """Duchi et al., 2011."""

    def __init__(self, initial_accumulator_value: float = 0.1, epsilon: float = 1e-7) -> None:
        self.total, self.epsilon = ZERO + initial_accumulator_value, epsilon

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.total = self.total + gradient**2
        return -rate * gradient / np.sqrt(self.total + self.epsilon)


class Adadelta:
    """Zeiler, 2012, arXiv:1212.5701, algorithm 1."""

    def __init__(self, rho: float = 0.95, epsilon: float = 1e-7) -> None:
        self.rho, self.epsilon, self.gradients, self.steps = rho, epsilon, ZERO, ZERO

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.gradients = self.rho * self.gradients + (1 - self.rho) * gradient**2
        step = -np.sqrt(self.steps + self.epsilon) / np.sqrt(self.gradients + self.epsilon) * gradient
        self.steps = self.rho * self.steps + (1 - self.rho) * step**2
        return rate * step


class RMSprop:
    """Tieleman and Hinton, 2012; centered: Graves, 2013, arXiv:1308.0850."""

    def __init__(self, rho: float = 0.9, momentum: float = 0.0, epsilon: float = 1e-7, centered: bool = False) -> None:
        self.rho, self.momentum, self.epsilon, self.centered = rho, momentum, epsilon, centered
        self.squares, self.mean, self.velocity = ZERO, ZERO, ZERO

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.squares = self.rho * self.squares + (1 - self.rho) * gradient**2
        variance = self.squares
        if self.centered:
            self.mean = self.rho * self.mean + (1 - self.rho) * gradient
            variance = self.squares - self.mean**2
        self.velocity = self.momentum * self.velocity - rate * gradient / np.sqrt(variance + self.epsilon)
        return self.velocity


class LARS:
    """You et al., 2017, arXiv:1708.03888, algorithm 1."""

    def __init__(
        self,
        momentum: float = 0.9,
        trust_coefficient: float = 1e-3,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        self.momentum, self.trust, self.epsilon = momentum, trust_coefficient, epsilon
        self.weight_decay, self.velocity = weight_decay, ZERO

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        weight, slope = float(np.linalg.norm(parameter)), float(np.linalg.norm(gradient))
        ratio = self.trust * weight / (slope + self.weight_decay * weight + self.epsilon)
        self.velocity = self.momentum * self.velocity - rate * ratio * (gradient + self.weight_decay * parameter)
        return self.velocity


class ProximalAdagrad:
    """Duchi and Singer, 2009, equation 11, at Adagrad's rates."""

    def __init__(self, initial_accumulator_value: float = 0.1, l1: float = 0.0, l2: float = 0.0) -> None:
        self.total, self.l1, self.l2 = ZERO + initial_accumulator_value, l1, l2

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        self.total = self.total + gradient**2
        rates = rate / np.sqrt(self.total)
        x = parameter - rates * gradient
        edge = rates * self.l1
        shrunk = np.where(x > edge, x - edge, np.where(x < -edge, x + edge, 0.0))
        return shrunk / (1 + rates * self.l2) - parameter


class ConditionalGradient:
    """Frank and Wolfe, 1956; the balls of Ravi et al., 2018, arXiv:1803.06453, section 4."""

    def __init__(self, radius: float = 1.0, epsilon: float = 1e-7, nuclear: bool = False) -> None:
        self.radius, self.epsilon, self.nuclear = radius, epsilon, nuclear

    def displacement(self, parameter: Array, gradient: Array, rate: float) -> Array:
        if self.nuclear and gradient.ndim > 1:
            matrix = gradient.reshape(-1, gradient.shape[-1])
            left, _, right = np.linalg.svd(matrix)
            extreme = np.outer(left[:, 0], right[0]).reshape(gradient.shape)
        else:
            extreme = gradient / (np.linalg.norm(gradient) + self.epsilon)
        return (1 - rate) * parameter - rate * self.radius * extreme - parameter
