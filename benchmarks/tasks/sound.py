"""Sound as the speech and machine-sound models take it: frames, spectra, mel bands, cepstra."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.signal import resample_poly

__all__ = ["RATE_HZ", "cepstra", "frames", "log_mel", "motor", "recordings", "stream"]

RATE_HZ = 16_000
_Floats = NDArray[np.float32]


def recordings(shared: Path, count: int, seed: int) -> list[_Floats]:
    """Return spoken digits at 16 kHz, at most 1 in size, drawn at random."""
    with np.load(shared / "fsdd.npz", allow_pickle=False) as file:
        pcm, offsets = file["pcm"], file["offsets"]
    picks = np.random.default_rng(seed).choice(len(offsets) - 1, count, replace=False)
    return [
        resample_poly(pcm[offsets[i] : offsets[i + 1]].astype(np.float32) / 32768, 2, 1).astype(np.float32)
        for i in picks
    ]


def stream(shared: Path, seconds: float, seed: int) -> _Floats:
    """Return digits spoken one after the other, with pauses, over a little noise; shape [samples]."""
    random = np.random.default_rng(seed)
    samples = int(seconds * RATE_HZ)
    sound = random.normal(0, 0.002, samples).astype(np.float32)
    at = 0
    for clip in recordings(shared, 200, seed):
        at += int(random.uniform(0.1, 0.8) * RATE_HZ)
        part = clip[: max(0, samples - at)]
        sound[at : at + len(part)] += part
        at += len(clip)
    return sound


def frames(sound: _Floats, length: int, hop: int) -> _Floats:
    """Cut into overlapping frames; shape [frames, length]."""
    return np.lib.stride_tricks.sliding_window_view(sound, length)[::hop]


def _mel_filters(bands: int, bins: int, low_hz: float, high_hz: float) -> _Floats:
    """Return triangles at equal distances on the HTK mel scale; shape [bins, bands]."""
    low_mel, high_mel = (2595 * math.log10(1 + hz / 700) for hz in (low_hz, high_hz))
    edges_mel = np.linspace(low_mel, high_mel, bands + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)
    return _triangles(edges, bins)


def _triangles(edges: NDArray[np.float64], bins: int) -> _Floats:
    """Return filters that rise from one edge to the next and fall to the one after; shape [bins, edges - 2]."""
    hz = np.linspace(0, RATE_HZ / 2, bins)[:, None]
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    return np.asarray(np.maximum(0, np.minimum(rising, falling)), np.float32)


def _spectra(sound: _Floats, length: int, hop: int, size: int) -> _Floats:
    window = np.hanning(length + 1)[:-1]
    return np.asarray(np.abs(np.fft.rfft(frames(sound, length, hop) * window, size)), np.float32)


def _slaney_filters(bands: int, bins: int) -> _Floats:
    """Return triangles of equal area on Slaney's mel scale, as librosa has them; shape [bins, bands]."""
    top_mel = 15 + 27 * math.log(RATE_HZ / 2 / 1000, 6.4)
    mel = np.linspace(0, top_mel, bands + 2)
    edges = np.where(mel < 15, mel * (200 / 3), 1000 * 6.4 ** ((mel - 15) / 27))
    return _triangles(edges, bins) * np.asarray(2 / (edges[2:] - edges[:-2]), np.float32)


def motor(seconds: float, seed: int) -> _Floats:
    """Return the hum of a small motor whose speed and load change, over wind noise; shape [samples]."""
    random = np.random.default_rng(seed)
    time_seconds = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    speed_hz = 40 * (1 + 0.2 * np.sin(0.6 * np.pi * time_seconds) + 0.1 * np.sin(0.13 * np.pi * time_seconds))
    turns = 2 * np.pi * np.cumsum(speed_hz) / RATE_HZ
    load = 1 + 0.5 * np.sin(0.21 * np.pi * time_seconds + 1)
    white = np.fft.rfft(random.normal(size=time_seconds.size))
    wind = np.fft.irfft(white / np.sqrt(np.maximum(np.arange(white.size), 1)), time_seconds.size)
    hum = sum(load / order * np.sin(order * turns + random.uniform(0, 6)) for order in range(1, 30))
    return np.asarray(0.01 * (hum + wind / wind.std()), np.float32)


def log_mel(sound: _Floats) -> _Floats:
    """Return what MLPerf Tiny's autoencoder takes: 128 bands in dB from frames of 64 ms; shape [frames, 128]."""
    power = _spectra(sound, 1024, 512, 1024) ** 2
    return np.asarray(10 * np.log10(power @ _slaney_filters(128, 513) + 1e-16), np.float32)


def cepstra(sound: _Floats) -> _Floats:
    """Return what MLPerf Tiny's keyword spotting takes: 49 frames of 10 cepstra from one second; shape [49, 10].

    Source: benchmark/training/keyword_spotting/get_dataset.py of mlcommons/tiny (frames of 40 ms every 20 ms, 40
    bands from 20 to 4000 Hz, the logarithm's offset 1e-6, the transform scaled as tf.signal has it).
    """
    second = np.zeros(RATE_HZ, np.float32)
    second[: len(sound)] = sound[:RATE_HZ] / max(float(np.abs(sound).max()), 1e-6)
    bands = _spectra(second, 640, 320, 1024) @ _mel_filters(40, 513, 20, 4000)
    return np.asarray(dct(np.log(bands + 1e-6), axis=1)[:, :10] / np.sqrt(80), np.float32)
