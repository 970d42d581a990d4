"""Sounds to find the pitch of: recordings, speech of a synthesiser, tones of a known pitch."""

from __future__ import annotations

import math
import shutil
import subprocess
import wave
from pathlib import Path
from typing import Any

import numpy as np
from scipy.signal import resample_poly

RATE, WINDOW, HOP, CHUNK = 16_000, 1024, 160, 50
RECORDINGS = Path("/usr/share/sounds/alsa")
SENTENCES = (
    "The north wind and the sun were disputing which was the stronger.",
    "A traveller came along wrapped in a warm cloak.",
    "They agreed that the one who first made him take it off should win.",
    "Then the north wind blew as hard as he could.",
)
VOICES = ("en-gb", "en-us", "en-gb+f2", "en-us+f4", "en-gb+m3", "de", "fr", "es")


def sounds(tones: int, *, real: bool = True) -> dict[str, tuple[np.ndarray, float | None]]:
    """Waveforms at 16 kHz by name, and the pitch of tones, in Hz.

    Args:
        real: recordings and speech too, where they are installed.
    """
    found: dict[str, tuple[np.ndarray, float | None]] = {}
    for file in sorted(RECORDINGS.glob("*.wav")) if real else []:
        found[f"recording {file.stem}"] = read(file.read_bytes(), file), None
    if real and (speaker := shutil.which("espeak-ng")):
        for number, voice in enumerate(VOICES):
            for text in SENTENCES:
                pitch = 20 + 10 * (number % 7)
                command = [speaker, "-v", voice, "-p", str(pitch), "--stdout", text]
                done = subprocess.run(command, capture_output=True, check=True)
                found[f"speech {voice} {text[:12]}"] = read(done.stdout, voice), None
    rng = np.random.default_rng(0)
    for number in range(tones):
        pitch = float(60 * 2 ** rng.uniform(0, 4))
        found[f"tone {number}"] = tone(pitch, rng), pitch
    return found


def tone(pitch: float, rng: np.random.Generator) -> np.ndarray:
    """Half a second of harmonics of one pitch, with noise."""
    time = np.arange(RATE // 2) / RATE
    strengths = rng.uniform(0, 1, 8) / np.arange(1, 9)
    phases = rng.uniform(0, 2 * np.pi, 8)
    made = sum(
        strength * np.sin(2 * np.pi * n * pitch * time + phase)
        for n, (strength, phase) in enumerate(zip(strengths, phases, strict=True), start=1)
        if n * pitch < RATE / 2
    )
    noise = rng.normal(size=len(time)) * rng.uniform(0, 0.3)
    return np.asarray(made + noise, np.float32)


def read(data: bytes, name: Any) -> np.ndarray:
    """A WAV file of 16 bits, one channel of it, at 16 kHz."""
    start = data.find(b"data") + 8
    begun = data.find(b"fmt ") + 8
    kind, channels = map(int, np.frombuffer(data, "<u2", 2, begun))
    rate = int(np.frombuffer(data, "<u4", 1, begun + 4)[0])
    if kind != 1 or not data.startswith(b"RIFF"):
        raise wave.Error(f"{name} is no WAV file of integers")
    samples = np.frombuffer(data[start : start + (len(data) - start) // 2 * 2], "<i2")
    one = samples[: len(samples) // channels * channels].reshape(-1, channels)[:, 0] / 32768
    common = math.gcd(RATE, rate)
    return resample_poly(one, RATE // common, rate // common).astype(np.float32)


def chunks(name: str, sound: np.ndarray, pitch: float | None) -> list[dict[str, Any]]:
    """Rows of up to 50 frames of 1,024 samples, one every 10 ms, each of mean 0 and deviation 1."""
    whole = np.pad(sound, (WINDOW // 2, WINDOW // 2))
    frames = np.lib.stride_tricks.sliding_window_view(whole, WINDOW)[::HOP]
    frames = frames - frames.mean(-1, keepdims=True)
    frames = (frames / np.maximum(frames.std(-1, ddof=1, keepdims=True), 1e-10)).astype(np.float32)
    return [
        {"id": f"{name}, {start}", "frames": frames[start : start + CHUNK], "pitch": pitch}
        for start in range(0, len(frames), CHUNK)
    ]
