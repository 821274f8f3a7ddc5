"""What the built-in world's items look, sound and read like.

In: an item's hidden kinds (text, image, audio, each a small number) and a random generator. Out: title and
description, PNG bytes, WAV bytes. A kind shows in its own medium alone: words, shape and colour, pitch and rhythm.
Trade-off: kinds are easy for a fair encoder and invisible to the wrong one, so that what a modality adds is known.
"""

from __future__ import annotations

import io
import math
import wave

import numpy as np
from PIL import Image, ImageDraw

KINDS = 12  # of each medium
RATE = 16_000
_SIZE = 64

# one theme a text kind: (noun, five words that go with it)
_THEMES = (
    ("lantern", ("candle", "glow", "evening", "porch", "amber")),
    ("kettle", ("tea", "steam", "kitchen", "copper", "breakfast")),
    ("compass", ("voyage", "harbour", "map", "north", "sailor")),
    ("violin", ("concert", "melody", "strings", "orchestra", "bow")),
    ("tent", ("campfire", "forest", "hiking", "trail", "backpack")),
    ("novel", ("chapter", "library", "author", "fiction", "reader")),
    ("racket", ("tennis", "court", "match", "serve", "tournament")),
    ("telescope", ("stars", "galaxy", "planet", "night sky", "astronomy")),
    ("saddle", ("horse", "stable", "rider", "meadow", "gallop")),
    ("robot", ("circuit", "battery", "sensor", "machine", "engineer")),
    ("orchid", ("garden", "petal", "greenhouse", "seed", "bloom")),
    ("helmet", ("motorcycle", "engine", "highway", "speed", "garage")),
)
NOUNS, WORDS = tuple(noun for noun, _ in _THEMES), tuple(words[0] for _, words in _THEMES)
_MAKES = ("classic", "small", "grand", "travel", "studio", "pocket", "heritage", "everyday", "deluxe", "light")
_COLOURS = ((214, 48, 49), (9, 132, 227), (0, 148, 50), (253, 203, 110), (108, 92, 231), (45, 52, 54))
_SHAPES = ("disc", "bars")
_WAVES = ("sine", "square", "saw")


def text(kind: int, number: int, rng: np.random.Generator) -> tuple[str, str]:
    """Title and description of an item."""
    noun, words = _THEMES[kind]
    first, second, third = rng.choice(words, 3, replace=False)
    make = _MAKES[int(rng.integers(len(_MAKES)))]
    title = f"{make.capitalize()} {noun} no. {number}"
    return title, f"A {make} {noun} for everyone who loves {first} and {second}. It goes well with {third}."


def picture(kind: int, rng: np.random.Generator) -> bytes:
    """A PNG of 64 x 64: colour and shape are the kind, place and size are chance."""
    colour, shape = _COLOURS[kind % len(_COLOURS)], _SHAPES[kind // len(_COLOURS)]
    shade = rng.integers(-18, 19, 3)
    ground = tuple(int(v) for v in rng.integers(225, 256, 3))
    fill = tuple(int(np.clip(c + s, 0, 255)) for c, s in zip(colour, shade, strict=True))
    image = Image.new("RGB", (_SIZE, _SIZE), ground)
    draw = ImageDraw.Draw(image)
    x, y = (int(v) for v in rng.integers(26, 39, 2))
    r = int(rng.integers(17, 24))
    if shape == "disc":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        draw.ellipse((x - r // 3, y - r // 3, x + r // 3, y + r // 3), fill=ground)
    else:
        for k in range(-2, 3):
            draw.rectangle((x + k * 10 - 3, y - r, x + k * 10 + 3, y + r), fill=fill)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def tone(kind: int, rng: np.random.Generator) -> bytes:
    """Half a second of 16 kHz mono WAV: pitch and waveform are the kind, loudness and detune are chance."""
    pitch = 220.0 * 2 ** ((kind // len(_WAVES)) * 7 / 12) * float(rng.uniform(0.985, 1.015))
    t = np.arange(RATE // 2) / RATE
    phase = (pitch * t) % 1.0
    shape = _WAVES[kind % len(_WAVES)]
    if shape == "sine":
        sound = np.sin(2 * math.pi * phase)
    elif shape == "square":
        sound = np.sign(0.5 - phase)
    else:
        sound = 2 * phase - 1
    sound = sound * np.minimum(1, 20 * np.minimum(t, t[-1] - t)) * float(rng.uniform(0.3, 0.6))
    sound += rng.normal(0, 0.003, len(t))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
    return out.getvalue()
