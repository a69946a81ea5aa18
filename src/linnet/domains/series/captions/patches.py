"""A series as patches of numbers, with its scale as digits, so that amounts and positions can be stated.

Windows of several channels are patches in units of the training part.
Legend: n = values, P = patches, T = steps of a window, C = channels.
"""

from __future__ import annotations

import numpy as np

from linnet.domains.series.codec import SeriesCodec
from linnet.domains.series.tables import LARGEST
from linnet.errors import BadInput, counted

LENGTH = 8  # values of a patch
MOST = 192  # values that a caption is about; of a longer series the last ones
CLIP = 8.0  # deviations
LEAST = 1e-300  # of a mean or a deviation; what is less counts as 0
EXPONENTS = 12  # 1e-4 to 1e7
DIGIT = 10
SCALE = 1 + EXPONENTS + 3 * DIGIT
WIDTH = 2 * LENGTH + 3 * DIGIT + 2 * SCALE


def patches(values: np.ndarray) -> np.ndarray:
    """float32 [P, WIDTH]: deviations from the mean, a mask, the step at which each begins, mean and deviation."""
    x = np.asarray(values, np.float64)
    if not len(x) or not (np.abs(x) <= LARGEST).all():
        raise BadInput(f"a series needs at least one value, all of them numbers up to {LARGEST:g}")
    x = x[-MOST:]
    count = -(-len(x) // LENGTH)
    mean, deviation = float(x.mean()), float(x.std())
    padded = np.zeros(count * LENGTH)
    padded[: len(x)] = np.clip((x - mean) / max(deviation, 1e-9 * max(1.0, abs(mean))), -CLIP, CLIP)
    there = np.zeros(count * LENGTH)
    there[: len(x)] = 1
    found = np.zeros((count, WIDTH), np.float32)
    found[:, :LENGTH] = padded.reshape(count, LENGTH)
    found[:, LENGTH : 2 * LENGTH] = there.reshape(count, LENGTH)
    for row in range(count):
        found[row, 2 * LENGTH : 2 * LENGTH + 3 * DIGIT] = digits(row * LENGTH + 1)
    found[:, -2 * SCALE :] = np.concatenate([scale(mean), scale(deviation)])
    return found


def window_patches(values: np.ndarray, codec: SeriesCodec) -> np.ndarray:
    """float32 [P, LENGTH (C + 1)]: the steps of a window [T, C] and a mask, LENGTH steps a patch."""
    from linnet.domains.series.labels import normalised

    x = np.asarray(values, np.float64)
    if x.ndim != 2 or not x.size or not np.isfinite(x).all():
        raise BadInput("a window needs at least one step, all of its values finite numbers")
    if x.shape[1] != len(codec.channels):
        raise BadInput(f"it has {counted(x.shape[1], 'channel')}, and the run reads {', '.join(codec.channels)}")
    x = x[-codec.length :]
    count = -(-len(x) // LENGTH)
    padded = np.zeros((count * LENGTH, x.shape[1] + 1), np.float32)
    padded[: len(x), :-1] = np.clip(normalised(x[None], codec)[0], -CLIP, CLIP)
    padded[: len(x), -1] = 1
    return padded.reshape(count, -1)


def digits(number: int) -> np.ndarray:
    """The last three digits of a number, each as ten switches."""
    found = np.zeros((3, DIGIT), np.float32)
    found[np.arange(3), [number // 100 % 10, number // 10 % 10, number % 10]] = 1
    return found.ravel()


def scale(number: float) -> np.ndarray:
    """The sign, the exponent and the first three digits of a number, as switches."""
    found = np.zeros(SCALE, np.float32)
    if abs(number) < LEAST:
        return found
    exponent = int(np.floor(np.log10(abs(number))))
    first = round(abs(number) / 10.0 ** (exponent - 2))
    if first == 1000:
        first, exponent = 100, exponent + 1
    found[0] = np.sign(number)
    found[1 + min(max(exponent + 4, 0), EXPONENTS - 1)] = 1
    found[1 + EXPONENTS :] = digits(first)
    return found
