"""Each schedule beside its closed form in double precision, written as the papers write it."""

import math

import numpy as np

from keras_trainkit import schedules


def clip(x):
    return min(max(x, 0.0), 1.0)


def cosine(rate, steps, alpha=0.0, power=1.0, k=1.0):
    def twin(t):
        x = clip(t / steps)
        left = (steps - min(t, steps)) / steps if k == 1 else 1 - x**k
        return rate * (alpha + (1 - alpha) * math.sin(math.pi / 2 * left) ** (2 * power))

    return twin


def restarts(rate, first, factor, decay, alpha, limit):
    def twin(t):
        i, start, length = 0, 0, first
        while t >= start + length:
            start, length, i = start + length, length * factor, i + 1
        if limit is not None and i >= limit:
            return rate * alpha
        left = (length - (t - start)) / length
        return rate * (alpha + (decay**i - alpha) * math.sin(math.pi / 2 * left) ** 2)

    return twin


def one_cycle(values, ends):
    def twin(t):
        for a, b, first, last in zip(ends[:-1], ends[1:], values[:-1], values[1:], strict=True):
            if t <= b:
                left = (b - t) / (b - a)
                return last + (first - last) * math.sin(math.pi / 2 * left) ** 2
        return values[-1]

    return twin


def cyclic(base, top, up, down, mode, gamma=1.0):
    def twin(t):
        cycle, place = divmod(t, up + down)
        height = place / up if place <= up else (up + down - place) / down
        height *= {"triangular": 1.0, "triangular2": 0.5**cycle, "exp_range": gamma**t}[mode]
        return base + (top - base) * height

    return twin


def wsd(rate, warmup, stable, decay, alpha, shape):
    def twin(t):
        if t < warmup:
            return rate * t / warmup
        x = clip((t - warmup - stable) / decay)
        left = {
            "linear": (decay - min(max(t - warmup - stable, 0), decay)) / decay,
            "cosine": math.sin(math.pi / 2 * (1 - x)) ** 2,
            "1-sqrt": 1 - math.sqrt(x),
            "1-square": 1 - x**2,
        }[shape]
        return rate * (alpha + (1 - alpha) * left)

    return twin


def rex(rate, steps, end):
    def twin(t):
        z = (steps - min(t, steps)) / steps
        return end + (rate - end) * z / (0.5 + 0.5 * z)

    return twin


def polynomial(rate, steps, end, power):
    return lambda t: end + (rate - end) * ((steps - min(t, steps)) / steps) ** power


def cases(n):
    """Name, schedule and twin, for runs of about n steps, n a multiple of 100."""
    s, part = schedules, n // 100
    ramp = n // 10
    return [
        ("constant", s.Constant(0.3), lambda t: 0.3),
        ("linear", s.Linear(0.1, n, 0.002), lambda t: 0.1 + (0.002 - 0.1) * min(t, n) / n),
        ("linear to 0", s.Linear(0.1, n), polynomial(0.1, n, 0, 1)),
        ("step", s.Step(2.0, 3 * part, 0.9), lambda t: 2.0 * 0.9 ** (t // (3 * part))),
        (
            "multistep",
            s.MultiStep(2.0, [part, 50 * part, 50 * part, 90 * part], 0.3),
            lambda t: 2.0 * 0.3 ** sum(t >= m for m in (part, 50 * part, 50 * part, 90 * part)),
        ),
        ("exponential", s.Exponential(1.0, 1e-4, n), lambda t: 1e-4 ** (t / n)),
        ("exponential by steps", s.Exponential(1.0, 1 - 10 / n), lambda t: (1 - 10 / n) ** t),
        ("exponential up", s.Exponential(1e-6, 1e7, n, 5.0), lambda t: min(1e-6 * 1e7 ** (t / n), 5.0)),
        ("polynomial", s.Polynomial(0.1, n, 0.0, 0.9), polynomial(0.1, n, 0.0, 0.9)),
        ("polynomial 3", s.Polynomial(0.1, n, 0.01, 3.0), polynomial(0.1, n, 0.01, 3.0)),
        ("cosine", s.Cosine(0.1, n), cosine(0.1, n)),
        ("cosine power", s.Cosine(0.1, n, 0.1, power=1.7), cosine(0.1, n, 0.1, 1.7)),
        ("cosine k", s.Cosine(0.1, n, k_decay=2.0), cosine(0.1, n, k=2.0)),
        ("restarts", s.CosineRestarts(1.0, 7 * part, alpha=0.01), restarts(1.0, 7 * part, 1, 1.0, 0.01, None)),
        (
            "restarts longer",
            s.CosineRestarts(1.0, 6 * part, 2, 0.5, limit=3),
            restarts(1.0, 6 * part, 2, 0.5, 0.0, 3),
        ),
        (
            "one cycle",
            s.OneCycle(0.5, n),
            one_cycle([0.02, 0.5, 0.02 / 1e4], [0, n * 0.3 - 1, n - 1]),
        ),
        (
            "one cycle of three",
            s.OneCycle(0.5, n, 0.4, three_phase=True),
            one_cycle([0.02, 0.5, 0.02, 0.02 / 1e4], [0, n * 0.4 - 1, n * 0.8 - 2, n - 1]),
        ),
        ("momentum", s.OneCycle(0.5, n).momentum(), one_cycle([0.95, 0.85, 0.95], [0, n * 0.3 - 1, n - 1])),
        ("cyclic", s.Cyclic(0.01, 1.0, part, 2 * part), cyclic(0.01, 1.0, part, 2 * part, "triangular")),
        (
            "cyclic halved",
            s.Cyclic(0.01, 1.0, 8 * part, mode="triangular2"),
            cyclic(0.01, 1.0, 8 * part, 8 * part, "triangular2"),
        ),
        (
            "cyclic exponential",
            s.Cyclic(0.01, 1.0, part, 3 * part, "exp_range", 1 - 5 / n),
            cyclic(0.01, 1.0, part, 3 * part, "exp_range", 1 - 5 / n),
        ),
        *[
            (
                f"wsd {shape}",
                s.WSD(0.3, ramp, 7 * ramp, 2 * ramp, alpha, shape),
                wsd(0.3, ramp, 7 * ramp, 2 * ramp, alpha, shape),
            )
            for shape, alpha in (("linear", 0.0), ("cosine", 0.1), ("1-sqrt", 0.0), ("1-square", 0.0))
        ],
        ("inverse sqrt", s.InverseSqrt(0.3, part), lambda t: 0.3 * math.sqrt(part / (part + t))),
        (
            "noam",
            s.Noam(64, ramp, 2.0),
            lambda t: 2.0 * 64**-0.5 * min((t + 1) ** -0.5, (t + 1) * ramp**-1.5),
        ),
        ("rex", s.REX(0.4, n), rex(0.4, n, 0.0)),
        ("rex to an end", s.REX(0.4, n, 0.1), rex(0.4, n, 0.1)),
        ("tanh", s.Tanh(0.4, n, 0.01), lambda t: 0.01 + 0.39 * (1 - math.tanh(10 * min(t, n) / n - 6)) / 2),
        ("warmup", s.Warmup(0.5, ramp, 0.1), lambda t: 0.1 + 0.4 * min(t, ramp) / ramp),
        (
            "warmup polynomial",
            s.Warmup(0.5, ramp, shape="polynomial", power=3.0),
            lambda t: 0.5 * (min(t, ramp) / ramp) ** 3,
        ),
        (
            "warmup exponential",
            s.Warmup(0.5, ramp, 1e-5, shape="exponential"),
            lambda t: 1e-5 * (0.5 / 1e-5) ** (min(t, ramp) / ramp),
        ),
        (
            "sequence",
            s.Sequence([0.5, s.Linear(0.4, 3 * ramp, 0.2), s.Cosine(0.2, 6 * ramp)], [ramp, 3 * ramp]),
            lambda t: (
                0.5
                if t < ramp
                else 0.4 - 0.2 * (t - ramp) / (3 * ramp)
                if t < 4 * ramp
                else cosine(0.2, 6 * ramp)(t - 4 * ramp)
            ),
        ),
        (
            "piecewise",
            s.Piecewise([ramp, 5 * ramp], [0.5, s.Linear(0.4, n), 0.1]),
            lambda t: 0.5 if t < ramp else 0.4 * (n - t) / n if t < 5 * ramp else 0.1,
        ),
        (
            "scale",
            s.Scale(s.Linear(0.4, n), s.Cosine(0.5, n)),
            lambda t: cosine(0.5, n)(t) * polynomial(0.4, n, 0, 1)(t),
        ),
        ("offset", s.Offset(s.Linear(0.4, n), 0.1, ramp), lambda t: 0.1 + polynomial(0.4, n, 0, 1)(max(t - ramp, 0))),
        (
            "repeat",
            s.Repeat(s.Linear(0.4, ramp), ramp, 7),
            lambda t: 0.0 if t >= 7 * ramp else 0.4 * (ramp - t % ramp) / ramp,
        ),
        (
            "cooldown",
            s.Cooldown(s.Linear(0.4, n), 5 * ramp, ramp, shape="linear"),
            lambda t: 0.4 * (n - min(t, 5 * ramp)) / n * (1 - clip((t - 5 * ramp) / ramp)),
        ),
    ]


def values(schedule, steps):
    """The rates of steps 0, 1, ..., one call for each."""
    return np.array([float(schedule(step)) for step in range(steps)])
