"""Mel spectrograms of sound as ImageBind takes them, with numpy, without torch.

Kaldi's filter banks as torchaudio computes them (`kaldi.fbank` with a Hann window and 128 bins), padded with zeros or
cut to a fixed number of frames, then normalised.
"""

import numpy as np
import numpy.typing as npt

from model.video.inputs import SoundSpec

NUM_BINS = 128
NUM_FRAMES = 204
MEAN, DEVIATION = -4.268, 9.138
"""Of the logarithms of energies, in ImageBind's training set."""

MIN_SAMPLES = 400
"""Samples of one frame: 25 ms at 16 kHz."""
_STEP = 160  # samples, 10 ms
_FFT_SIZE = 512
_PREEMPHASIS = 0.97
_LOWEST = 20.0  # Hz
_FLOOR = np.finfo(np.float32).eps
"""Energies below it are raised to it before the logarithm."""

Mel = npt.NDArray[np.float32]


def mel_spectrograms(stretches: npt.NDArray[np.float32], spec: SoundSpec) -> Mel:
    """Compute the mel spectrograms [count, 1, 128, 204] of stretches [count, samples], normalised.

    A stretch has at least `MIN_SAMPLES` samples. The constants are those of 16 kHz.
    """
    banks = _mel_banks(spec.rate)
    return np.stack([_spectrogram(stretch, banks)[None] for stretch in stretches])


def _spectrogram(stretch: npt.NDArray[np.float32], banks: npt.NDArray[np.float64]) -> Mel:
    frames = np.lib.stride_tricks.sliding_window_view(stretch.astype(np.float64), MIN_SAMPLES)[::_STEP]  # [n, 400]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate((frames[:, :1], frames[:, :-1]), axis=1)
    window = np.hanning(MIN_SAMPLES)
    power = np.abs(np.fft.rfft((frames - _PREEMPHASIS * before) * window, _FFT_SIZE)) ** 2  # [n, 257]
    mel = np.log(np.maximum(power @ banks.T, _FLOOR)).T[:, :NUM_FRAMES]  # [128, n]
    padded = np.zeros((NUM_BINS, NUM_FRAMES))  # padded before the normalisation, so that silence is not zero
    padded[:, : mel.shape[1]] = mel
    return ((padded - MEAN) / DEVIATION).astype(np.float32)


def _mel_banks(rate: int) -> npt.NDArray[np.float64]:
    """Return the weights of the frequencies in each bin, [128, 257]: triangles, equally wide on the mel scale."""
    edges = np.linspace(_mel(_LOWEST), _mel(rate / 2), NUM_BINS + 2)
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    mel = _mel(np.arange(_FFT_SIZE // 2) * rate / _FFT_SIZE)[None, :]
    rising, falling = (mel - left) / (centre - left), (right - mel) / (right - centre)
    return np.pad(np.maximum(0.0, np.minimum(rising, falling)), ((0, 0), (0, 1)))  # Kaldi ignores the last frequency


def _mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)
