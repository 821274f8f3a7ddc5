"""What tells copies from things of a kind: a picture's hash against an independent transform, a text's words by hand."""

from __future__ import annotations

import io
import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy.fft import dctn

from mmrec.content.decode import phash
from mmrec.content.encoders import Encoder, fingerprint
from mmrec.content.media import BadMedia


def saved(image: Image.Image, form: str = "PNG", **more: int) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **more)
    return out.getvalue()


@cache
def scene(seed: int, size: tuple[int, int] = (120, 180)) -> Image.Image:
    """Shapes on a shaded ground, such as a poster has."""
    rng = random.Random(seed)
    w, h = size
    ground = np.linspace(rng.randrange(256), rng.randrange(256), h)[:, None] + np.linspace(0, rng.randrange(-99, 99), w)
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8)).convert("RGB")
    draw = ImageDraw.Draw(image)
    for _ in range(9):
        x, y, r = rng.randrange(w), rng.randrange(h), rng.randrange(8, 60)
        colour = tuple(rng.randrange(256) for _ in range(3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((x, y, x + r, y + r * rng.randrange(1, 3)), fill=colour)
    return image


def differ(a: bytes, b: bytes) -> int:
    return int((phash(a) != phash(b)).sum())


@pytest.mark.parametrize("seed", range(20))
def test_the_bits_are_those_of_the_transform_that_scipy_makes(seed: int) -> None:
    grey = np.asarray(scene(seed).convert("L").resize((32, 32), Image.Resampling.BOX), float)
    low = dctn(grey, norm="ortho")[1:9, 1:9]
    got = phash(saved(scene(seed)))
    assert (got.dtype, got.shape, set(got.tolist())) == (np.float32, (64,), {-1.0, 1.0})
    np.testing.assert_array_equal(got.reshape(8, 8) > 0, low > np.median(low))
    assert got.sum() == 0, "half are above the median"


def test_a_wave_across_is_told_by_its_own_frequency() -> None:
    n = np.arange(32)
    for k in range(1, 9):
        # a product of two waves has one frequency that is not nought
        wave = np.outer(np.cos(np.pi * (2 * n + 1) * k / 64), np.cos(np.pi * (2 * n + 1) / 64))
        bits = phash(saved(Image.fromarray(np.rint(128 + 100 * wave).astype(np.uint8)))).reshape(8, 8)
        assert bits[k - 1, 0] == 1
        assert phash(saved(Image.fromarray(np.rint(128 - 100 * wave).astype(np.uint8)))).reshape(8, 8)[k - 1, 0] == -1


@pytest.mark.parametrize("seed", range(12))
def test_a_copy_in_another_format_size_or_brightness_has_nearly_the_same_bits_and_another_picture_has_not(seed: int) -> None:
    image = scene(seed)
    own = saved(image)
    for form in ("WEBP", "GIF"):
        assert differ(own, saved(image, form)) <= 6
    for quality in (30, 60, 90):
        assert differ(own, saved(image, "JPEG", quality=quality)) <= 6
    assert differ(own, saved(image, "PNG", compress_level=0)) == 0
    for size in ((60, 90), (300, 450)):
        assert differ(own, saved(image.resize(size, Image.Resampling.BICUBIC))) <= 6
    assert differ(own, saved(image.point(lambda v: v // 2 + 40))) <= 6
    for other in range(12):
        if other != seed:
            assert differ(own, saved(scene(other))) >= 12
    negative = phash(saved(image.point(lambda v: 255 - v)))
    assert (negative == -phash(own)).mean() > 0.9


def test_a_picture_of_one_colour_is_refused_and_never_rounding_noise() -> None:
    image = fingerprint("image")
    assert image is not None
    flat = [saved(Image.new("RGB", (48, 72), (9, 200, 31))), saved(Image.new("RGB", (48, 72), (9, 200, 31)), "JPEG", quality=20),
            saved(Image.new("1", (1, 1)))]  # fmt: skip
    emb, why = image[1].encode([*flat, saved(scene(1)), b"", saved(scene(1))[:200]])
    assert why[:3] == ["flat: nothing to see"] * 3
    assert [w and w.split(":")[0] for w in why[3:]] == [None, "empty", "truncated"]
    assert np.flatnonzero(emb.any(1)).tolist() == [3]
    np.testing.assert_array_equal(emb[3], phash(saved(scene(1))))
    with pytest.raises(BadMedia, match="flat"):
        phash(flat[0])


@pytest.fixture(scope="module")
def words() -> Encoder:
    found = fingerprint("text")
    assert found is not None
    assert found[0] == "words"
    return found[1]


def likeness(words: Encoder, a: str, b: str) -> float:
    x, y = words.encode([a, b])[0]
    return float(x @ y)


@pytest.mark.parametrize(("a", "b"), [
    ("Toy Story (1995). Comedy", "TOY STORY - 1995! comedy"), ("The End, A", "a the end"), ("Straße ﬁne", "STRASSE FINE"),
    ("東京物語 1953", "1953 物語、東京"), ("e\u0301t\u00e9", "\u00e9te\u0301"), ("hat hat hat", "hat"),
])  # fmt: skip
def test_case_punctuation_order_and_repeats_say_nothing(words: Encoder, a: str, b: str) -> None:
    assert likeness(words, a, b) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("a", "b", "want"), [
    # words in common over the root of the product of both; one with a digit weighs nine times in each
    ("red hat wool cap", "red hat wool shoe", 3 / 4), ("saw ii 2005", "saw iii 2006", 1 / 11), ("hat", "shoe", 0.0),
    ("hat no 12", "hat no 47", 2 / 11), ("alpha beta gamma", "alpha beta gamma delta", 3 / 12**0.5), ("東京物語", "東京", 2 / 8**0.5),
])  # fmt: skip
def test_other_words_are_counted_as_by_hand(words: Encoder, a: str, b: str, want: float) -> None:
    assert likeness(words, a, b) == pytest.approx(want, abs=0.1)


def test_likeness_is_that_of_the_sets_of_words_within_some_hundredths(words: Encoder) -> None:
    rng, known = random.Random(0), [f"w{chr(97 + n % 26)}{chr(97 + n // 26)}" for n in range(400)]
    sets = [set(rng.sample(known, rng.randrange(5, 60))) for _ in range(60)]
    emb = words.encode([" ".join(s) for s in sets])[0]
    error = [emb[a] @ emb[b] - len(sets[a] & sets[b]) / (len(sets[a]) * len(sets[b])) ** 0.5 for a in range(60) for b in range(a)]
    assert abs(np.mean(error)) < 0.005
    assert np.std(error) < 0.06


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=8), st.randoms(use_true_random=False))
def test_a_texts_vector_is_its_own_whatever_its_companions(texts: list[str], random: random.Random) -> None:
    found = fingerprint("text")
    assert found is not None
    emb, why = found[1].encode(texts)
    assert (emb.dtype, emb.shape) == (np.float32, (len(texts), 512))
    np.testing.assert_allclose(np.linalg.norm(emb, axis=1), [w is None for w in why], atol=1e-6)
    order = random.sample(range(len(texts)), len(texts))
    np.testing.assert_array_equal(found[1].encode([texts[i] for i in order])[0], emb[order])


def test_a_text_without_a_word_has_no_vector_and_half_a_character_disturbs_nobody(words: Encoder) -> None:
    emb, why = words.encode(["", " ...!", "😀", "_", "a \ud800", "ten " * 3_000_000])
    assert [w is None for w in why] == [False, False, False, False, True, True]
    assert 1 <= (emb[4] != 0).sum() <= 4
    assert 1 <= (emb[5] != 0).sum() <= 4


def test_a_sound_has_no_fingerprint() -> None:
    assert fingerprint("audio") is None
    assert {fingerprint(m)[0] for m in ("text", "image")} == {"words", "phash"}  # type: ignore[index]
