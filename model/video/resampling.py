"""Resamples a piece of a signal by band-limited interpolation, with numpy.

The filter is that of torchaudio's `resample` with its defaults: a sinc under a Hann window, six zero crossings to each
side, cut off at 0.99 of the lower Nyquist frequency. Any piece can be computed without the rest of the signal.
"""

import math

import numpy as np
import numpy.typing as npt

ZERO_CROSSINGS = 6
ROLLOFF = 0.99
_CHUNK = 4096  # samples computed at a time; bounds memory

Signal = npt.NDArray[np.float32]
"""Samples [channels, samples]."""


def num_resampled(num_samples: int, *, rate: int, target: int) -> int:
    """Return the length of a signal after resampling from `rate` to `target`."""
    return -(-num_samples * target // rate)


def source_range(start: int, end: int, *, rate: int, target: int) -> tuple[int, int]:
    """Return the range of source samples that determines the samples `start` to `end` of the resampled signal.

    The range may begin before the signal and end after it; the signal is zero there.
    """
    if rate == target:
        return start, end
    reach = _reach(rate, target)
    return start * rate // target - reach, (end - 1) * rate // target + reach + 1


def resample(source: Signal, start: int, end: int, *, rate: int, target: int) -> Signal:
    """Compute the samples `start` to `end` of a signal resampled from `rate` to `target`.

    Args:
        source: the samples of `source_range`, [channels, samples].
        start: number of the first sample at `target` samples per second.
        end: number after the last one.
        rate: of `source`, samples per second.
        target: of the result, samples per second.

    Returns:
        [channels, end - start].
    """
    if rate == target:
        return source
    first, _ = source_range(start, end, rate=rate, target=target)
    windows = np.lib.stride_tricks.sliding_window_view(source, 2 * _reach(rate, target) + 1, axis=1)
    pieces = []
    for begin in range(start, end, _CHUNK):
        places = np.arange(begin, min(begin + _CHUNK, end), dtype=np.int64) * rate
        phases, kinds = np.unique(places % target, return_inverse=True)
        taps = windows[:, places // target - _reach(rate, target) - first]  # [channels, n, taps]
        pieces.append(np.einsum("cnt,nt->cn", taps, _weights(phases, rate, target)[kinds]))
    return np.concatenate(pieces, axis=1)


def _reach(rate: int, target: int) -> int:
    """Source samples to each side of a place that have a weight."""
    return math.ceil(ZERO_CROSSINGS * rate / (min(rate, target) * ROLLOFF)) + 1


def _weights(phases: npt.NDArray[np.int64], rate: int, target: int) -> Signal:
    """Return the weights [n, taps] of the source samples around places `phases / target` after a source sample."""
    reach, cutoff = _reach(rate, target), min(rate, target) * ROLLOFF / rate
    offsets = np.arange(-reach, reach + 1)[None, :] - phases[:, None] / target  # in source samples
    crossings = np.clip(offsets * cutoff, -ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = np.cos(crossings * np.pi / (2 * ZERO_CROSSINGS)) ** 2
    weights: Signal = (np.sinc(crossings) * window * cutoff).astype(np.float32)
    return weights
