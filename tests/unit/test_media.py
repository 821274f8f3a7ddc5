"""Hostile and odd pictures and sounds: known pixels and samples, or a refusal by name, and never anything else."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
from bombs import NOISE, RATE, SINE, archive, chunk, long_gif, long_webp, patched, picture, png, sound, zeros
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from mmrec.content.decode import log_mel
from mmrec.content.decode import pixels as small
from mmrec.content.media import BadMedia, decode_audio, decode_image

IMAGE_CODES = {"empty", "not_an_image", "unsupported", "too_large", "truncated"}
AUDIO_CODES = {"empty", "not_audio", "unsupported", "too_large", "truncated"}
many = settings(max_examples=80, deadline=None)


def refusal(decode: Callable[[bytes], Any], data: bytes) -> str:
    with pytest.raises(BadMedia) as caught:
        decode(data)
    return str(caught.value)


def code(reason: str) -> str:
    return reason.split(":")[0]


def tried(decode: Callable[[bytes], Any], data: bytes) -> tuple[Any, str | None]:
    """What was decoded, or the code of the refusal; any other exception is the test's."""
    try:
        return decode(data), None
    except BadMedia as bad:
        return None, code(str(bad))


def pixels(data: bytes) -> np.ndarray:
    image = decode_image(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def palette() -> Image.Image:
    image = Image.new("P", (8, 8))
    image.putpalette([255, 0, 0, 0, 0, 255] + [0, 255, 0] * 254)
    image.paste(1, (4, 0, 8, 8))
    return image


def sides(data: bytes) -> tuple[list[int], list[int]]:
    found = pixels(data)
    return found[4, 0].tolist(), found[4, -1].tolist()


RED, BLUE = [255, 0, 0], [0, 0, 255]
PLAIN = zlib.compress((b"\0" + b"\1" * 24) * 8)
RAW = png(8, 8, PLAIN)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="zero bytes"),
        pytest.param(b"hello" * 99, "not_an_image", id="text"),
        pytest.param(b"<!doctype html><title>404</title>", "not_an_image", id="an error page"),
        pytest.param(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not_an_image", id="svg"),
        pytest.param(archive(), "not_an_image", id="zip"),
        pytest.param(png(8, 8, PLAIN, extra=chunk(b"zTXt", b"a\0\0" + zeros(9))), "too_large", id="9 MB of text in it"),
        pytest.param(sound(SINE), "not_an_image", id="a sound"),
        pytest.param(RAW[:8] + picture(Image.fromarray(NOISE), "JPEG"), "not_an_image", id="png magic, jpeg within"),
        pytest.param(png(0, 8, zlib.compress(b"")), "not_an_image", id="no width"),
        pytest.param(png(10_000, 10_000, zlib.compress(b"")), "too_large", id="100 megapixels promised"),
        pytest.param(png(5_000, 4_001, zlib.compress(b"")), "too_large", id="more than 20 megapixels"),
        pytest.param(png(2**31 - 1, 2**31 - 1, zlib.compress(b"")), "too_large", id="4 exapixels promised"),
        pytest.param(patched(picture(palette(), "GIF"), 6, "<I", 2**32 - 1), "too_large", id="gif of 4 gigapixels"),
        pytest.param(png(8, 8, zlib.compress(b"\0" * 60)), "truncated", id="too few pixels"),
        pytest.param(png(8, 8, b"not deflate at all"), "truncated", id="not deflated"),
    ],
)
def test_a_picture_that_can_not_be_trusted_is_refused_by_name(data: bytes, reason: str) -> None:
    said = refusal(decode_image, data)
    assert code(said) == reason
    assert len(said) > len(reason) + 2


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "PPM", "ICO", "TGA", "PCX"])
def test_formats_that_are_not_on_the_list_are_not_decoded(kind: str) -> None:
    assert code(refusal(decode_image, picture(Image.fromarray(NOISE), kind))) in {"not_an_image", "unsupported"}


def test_the_limit_on_pixels_is_the_last_size_that_is_read() -> None:
    data = picture(Image.fromarray(NOISE))
    assert decode_image(data, max_pixels=48 * 64).size == (64, 48)
    with pytest.raises(BadMedia, match=r"^too_large: 64 x 48"):
        decode_image(data, max_pixels=48 * 64 - 1)


def test_a_jpeg_beyond_the_limit_is_read_at_the_largest_scale_that_fits() -> None:
    whole = Image.linear_gradient("L").resize((256, 128)).convert("RGB")
    data = picture(whole, "JPEG", quality=95)
    for limit, size in ((256 * 128, (256, 128)), (256 * 128 - 1, (128, 64)), (128 * 64 - 1, (64, 32)), (32 * 16, (32, 16))):
        got = decode_image(data, max_pixels=limit)
        assert got.size == size
        # a scale's pixel is the mean of those that it stands for, but for rounding
        mean = np.asarray(whole, float).reshape(size[1], 128 // size[1], size[0], 256 // size[0], 3).mean((1, 3))
        assert np.abs(np.asarray(got) - mean).max() < 3
    assert code(refusal(lambda d: decode_image(d, max_pixels=32 * 16 - 1), data)) == "too_large", "an eighth is the least"
    upright = Image.Exif()
    upright[0x112] = 6
    assert decode_image(picture(whole, "JPEG", exif=upright), max_pixels=9_000).size == (64, 128)
    assert code(refusal(lambda d: decode_image(d, max_pixels=9_000), data[:-500])) == "truncated"
    progressive = picture(whole, "JPEG", progressive=True)
    assert decode_image(progressive).size == (256, 128)
    assert "progressive" in refusal(lambda d: decode_image(d, max_pixels=9_000), progressive)
    promised = patched(data, data.index(b"\xff\xc0") + 5, ">I", 10_000 << 16 | 10_000)
    assert code(refusal(decode_image, promised)) == "too_large", "beyond 80 million no scale helps"


def test_a_large_webp_is_refused_before_its_decoder_is_opened() -> None:
    for options in ({"lossless": True}, {"quality": 50}, {"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}):
        data = picture(Image.fromarray(NOISE), "WEBP", **options)
        assert decode_image(data, max_pixels=48 * 64).size == (64, 48)
        assert refusal(lambda d: decode_image(d, max_pixels=48 * 64 - 1), data) == "too_large: 64 x 48 pixels"
        assert code(refusal(decode_image, data[: len(data) // 2])) == "truncated"


def test_what_a_picture_is_does_not_depend_on_a_name_or_on_what_follows() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        data = picture(palette().convert("RGB"), kind, **({"lossless": True} if kind == "WEBP" else {}))
        np.testing.assert_array_equal(pixels(data + b"<html>"), pixels(data))


def test_a_long_animation_costs_no_more_than_its_first_frame() -> None:
    one = pixels(picture(Image.new("P", (16, 16), 1), "GIF"))
    np.testing.assert_array_equal(pixels(long_gif(100_000)), one)
    assert pixels(long_webp(300))[5, 5].tolist() == [0, 0, 9]


def test_small_pixels_are_the_whole_picture_of_one_size_whatever_its_own() -> None:
    for size in ((16, 16), (64, 8), (8, 300)):
        image = palette().convert("RGB").resize(size, Image.Resampling.NEAREST)
        got = small(picture(image), size=16)
        assert (got.dtype, got.shape) == (np.uint8, (16, 16, 3))
        assert (got[8, 0].tolist(), got[8, -1].tolist()) == (RED, BLUE)
        np.testing.assert_array_equal(got, np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("GIF", {})])
def test_a_truncated_picture_is_refused_wherever_it_was_cut(kind: str, options: dict[str, Any]) -> None:
    data = picture(Image.fromarray(NOISE), kind, **options)
    whole = pixels(data)
    for cut in [*range(1, 64), *range(64, len(data) - 64, 41), *range(len(data) - 64, len(data))]:
        got, refused = tried(pixels, data[:cut])
        if refused:
            assert refused in {"not_an_image", "truncated"}, cut
        else:  # only what stands behind the last pixel may be missing
            np.testing.assert_array_equal(got, whole)
            assert cut > 0.98 * len(data)


def test_bombs_do_not_cost_memory() -> None:
    bombs = [png(8, 8, zeros(200))] + [
        png(8, 8, PLAIN, extra=chunk(kind, head + zeros(200)))
        for kind, head in ((b"iCCP", b"a\0\0"), (b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"))
    ]
    bombs += [png(9_000, 9_000, zeros(200)), png(60_000, 60_000, zeros(1))]
    # a process of its own, since the peak of this one is that of the greediest test before
    probe = """if True:
        import ast, resource, sys
        from mmrec.content.media import BadMedia, decode_image
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (10 if sys.platform != "darwin" else 20)
        bombs = ast.literal_eval(sys.stdin.read())
        before = peak()
        for bomb in bombs:
            try:
                decode_image(bomb)
            except BadMedia:
                pass
        print(peak() - before)"""
    done = subprocess.run([sys.executable, "-c", probe], input=repr(bombs), capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100, "megabytes"


def test_transparency_in_a_palette_is_no_fault() -> None:
    assert sides(picture(palette())) == (RED, BLUE)
    assert sides(picture(palette(), transparency=1)) == (RED, BLUE)
    assert sides(picture(palette(), "GIF", transparency=1)) == (RED, BLUE)
    assert sides(picture(palette(), transparency=bytes([128, 255]))) == (RED, BLUE)  # as web optimisers write it


def test_the_first_frame_stands_for_an_animation() -> None:
    first, *rest = (Image.new("RGB", (8, 8), c) for c in ("red", "blue", "lime"))
    for kind in ("GIF", "WEBP", "PNG"):
        assert sides(picture(first, kind, save_all=True, append_images=rest, lossless=True)) == (RED, RED), kind


def test_every_color_model_becomes_rgb() -> None:
    assert np.abs(pixels(picture(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")) - RED).max() < 4
    assert sides(picture(Image.new("RGBA", (8, 8), (255, 0, 0, 255)))) == (RED, RED)
    assert sides(picture(Image.new("LA", (8, 8), (70, 255)))) == ([70] * 3, [70] * 3)
    assert sides(picture(Image.new("1", (8, 8), 1))) == ([255] * 3, [255] * 3)
    deep = png(8, 8, zlib.compress((b"\0" + b"\xff\xff\0\0\0\0" * 8) * 8), depth=16)
    assert sides(deep) == (RED, RED)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert sides(picture(palette().convert("RGB"), icc_profile=srgb)) == (RED, BLUE)


def test_sixteen_bits_of_grey_are_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    got = pixels(picture(Image.fromarray(deep)))
    assert np.abs(got[..., 0] - deep / 257).max() <= 1


def test_a_photo_is_upright_as_people_see_it() -> None:
    # orientation 6 says "turn me clockwise": the left side comes to the top
    turned = Image.Exif()
    turned[0x112] = 6
    got = decode_image(picture(palette().convert("RGB").resize((32, 16)), "JPEG", exif=turned, quality=95))
    assert got.size == (16, 32)
    for where, wanted in (((8, 2), RED), ((8, 29), BLUE)):
        assert np.abs(np.subtract(got.getpixel(where), wanted)).max() < 30


def test_broken_exif_costs_nothing_but_the_orientation() -> None:
    for exif in (b"", b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + bytes(30)):
        assert decode_image(picture(Image.fromarray(NOISE), "JPEG", exif=exif)).size == (64, 48)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "empty", id="zero bytes"),
        pytest.param(b"hello" * 99, "not_audio", id="text"),
        pytest.param(RAW, "not_audio", id="a picture"),
        pytest.param(sound(SINE[:0]), "truncated", id="no samples"),
        pytest.param(sound(SINE)[:-1], "truncated", id="one byte short"),
        pytest.param(sound(SINE)[:44], "truncated", id="header alone"),
        pytest.param(patched(sound(SINE), 4, "<I", 2**32 - 60), "truncated", id="37 hours promised"),
        pytest.param(patched(sound(SINE), 24, "<I", 1), "too_large", id="an hour at 1 Hz"),
        pytest.param(patched(sound(SINE), 24, "<I", 0), "not_audio", id="0 Hz"),
        pytest.param(patched(sound(SINE, "FLAC"), 22, ">I", RATE * 7200), "too_large", id="two hours of flac promised"),
        pytest.param(sound(SINE, rate=999), "unsupported", id="999 Hz"),
        pytest.param(patched(sound(SINE), 24, "<I", 768_001), "unsupported", id="more than 768 kHz"),
        pytest.param(sound(np.zeros((9, 17))), "too_large", id="17 channels"),
        pytest.param(sound(np.zeros((9, 64))), "too_large", id="64 channels"),
        pytest.param(sound(np.zeros((1, 1000))), "too_large", id="1000 channels"),
    ],
)
def test_a_sound_that_can_not_be_trusted_is_refused_by_name(data: bytes, reason: str) -> None:
    assert code(refusal(decode_audio, data)) == reason


def test_a_small_file_that_holds_hours_of_samples_is_a_bomb_too() -> None:
    # 84 kB, 315 MB decoded; by seconds alone, 3 MB of this would be 12 GB
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", 655_350, 8, format="FLAC", subtype="PCM_16") as file:
        for _ in range(15):
            file.write(np.zeros((655_350, 8), np.int16))
    assert code(refusal(decode_audio, out.getvalue())) == "too_large"


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF", "AU", "CAF", "W64", "RF64"])
def test_half_a_sound_is_not_taken_for_the_whole(kind: str) -> None:
    data = sound(SINE, kind)
    assert code(refusal(decode_audio, data[: len(data) // 2])) in {"truncated", "not_audio", "unsupported"}


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_a_truncated_sound_is_refused_wherever_it_was_cut(kind: str) -> None:
    data = sound(SINE, kind)
    for cut in [*range(1, 200), *range(200, len(data), 53), len(data) - 1]:
        assert code(refusal(decode_audio, data[:cut])) in {"not_audio", "truncated"}, cut


def test_a_data_chunk_that_promises_hours_gives_no_more_than_the_file_holds() -> None:
    got, refused = tried(decode_audio, patched(sound(SINE), 40, "<I", 2**32 - 100))
    assert refused in {"truncated", "too_large", None}
    assert refused or len(got[0]) == len(SINE)


def test_channels_are_averaged_and_the_rate_is_the_files_own() -> None:
    for rate in (1_000, 8_000, 44_100, 768_000):
        both = np.stack([SINE, -SINE / 2], 1)
        samples, got = decode_audio(sound(both, coding="FLOAT", rate=rate))
        assert (got, samples.dtype, samples.ndim) == (rate, np.float32, 1)
        np.testing.assert_allclose(samples, SINE / 4, atol=1e-7)
    assert len(decode_audio(sound(np.tile(SINE[:9, None], 16)))[0]) == 9


def test_silence_and_a_single_sample_are_sounds() -> None:
    assert not decode_audio(sound(np.zeros(100)))[0].any()
    assert decode_audio(sound(SINE[5:6], coding="FLOAT"))[0].tolist() == [SINE[5]]


def test_a_vector_is_made_of_16_ms_of_something_and_not_of_less() -> None:
    for rate in (8_000, 16_000, 48_000):
        least = 256 * rate // 16_000
        assert np.linalg.norm(log_mel(sound(SINE[:least], rate=rate))) == pytest.approx(1)
        assert code(refusal(log_mel, sound(SINE[: least - 1], rate=rate))) == "too_short"
    assert code(refusal(log_mel, sound(np.zeros(1)))) == "too_short"
    for silence in (np.zeros(RATE), np.full(RATE, 1e-9), np.full(RATE, np.nan), np.zeros((RATE, 2))):
        assert refusal(log_mel, sound(silence, coding="FLOAT")) == "silent: nothing to hear"


def test_a_sample_that_is_no_number_does_not_spoil_the_rest() -> None:
    holes = SINE.copy()
    holes[[0, 7, -1]] = np.nan
    got, _ = decode_audio(sound(holes, coding="FLOAT"))
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(np.delete(got, [0, 7, len(got) - 1]), np.delete(SINE, [0, 7, len(SINE) - 1]))


@pytest.mark.parametrize("planted", [np.inf, -np.inf, 1e30, -3.0])
def test_samples_lie_between_minus_one_and_one_whatever_the_file_says(planted: float) -> None:
    loud = SINE.copy()
    loud[7] = planted
    got, _ = decode_audio(sound(loud, coding="FLOAT"))
    assert np.abs(got).max() <= 1
    np.testing.assert_array_equal(np.delete(got, 7), np.delete(SINE, 7))


@pytest.mark.parametrize("decode", [decode_image, decode_audio])
@pytest.mark.parametrize("file", ["empty", "text", "wav", "flac", "png"])
def test_a_reason_is_the_same_every_time(decode: Callable[[bytes], Any], file: str) -> None:
    data = {"empty": b"", "text": b"hello" * 99, "wav": sound(SINE)[:40], "flac": sound(SINE, "FLAC")[:99], "png": RAW[:50]}[file]
    # reasons are stored in tables, whose content must not depend on where an object lay in memory
    reasons = {refusal(decode, data) for _ in range(3)}
    assert len(reasons) == 1
    assert not re.search(r"0x[0-9a-f]{6}", reasons.pop())


IMAGES = [picture(Image.fromarray(NOISE), k) for k in ("PNG", "JPEG", "WEBP", "GIF")] + [picture(palette(), transparency=1)]
SOUNDS = [sound(SINE[:1500], k) for k in ("WAV", "FLAC", "OGG")] + [sound(SINE[:1500], coding="FLOAT")]


def one_of(files: list[bytes]) -> st.SearchStrategy[bytes]:
    """A real file with some bytes changed, half of them in its head, and now and then cut."""

    def spoil(data: bytes, flips: list[tuple[int, int]], keep: int) -> bytes:
        out = bytearray(data)
        for at, value in flips:
            out[at % (64 if at % 2 else len(out))] ^= value
        return bytes(out[: max(1, len(out) - keep)])

    flips = st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), max_size=8)
    return st.builds(spoil, st.sampled_from(files), flips, st.sampled_from([0, 0, 0, 1, 100, 1000]))


def random_bytes(*heads: bytes) -> st.SearchStrategy[bytes]:
    return st.builds(bytes.__add__, st.sampled_from(heads), st.binary(max_size=300))


@many
@given(one_of(IMAGES) | random_bytes(b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF\x10\0\0\0WEBPVP8 "))
def test_any_bytes_are_a_picture_or_refused(data: bytes) -> None:
    image, refused = tried(decode_image, data)
    assert refused in IMAGE_CODES | {None}
    if image:
        assert image.mode == "RGB"
        assert 0 < image.width * image.height <= 20_000_000


@many
@given(one_of(SOUNDS) | random_bytes(b"", b"RIFF\x10\0\0\0WAVEfmt ", b"fLaC\0\0\0\x22", b"OggS\0\x02", b"\xff\xfb\x90\x64", b"ID3\x04"))
def test_any_bytes_are_a_sound_or_refused(data: bytes) -> None:
    got, refused = tried(decode_audio, data)
    assert refused in AUDIO_CODES | {None}
    if got:
        samples, rate = got
        assert (samples.dtype, samples.ndim) == (np.float32, 1)
        assert np.isfinite(samples).all()
        assert min(len(samples), rate) >= 1
