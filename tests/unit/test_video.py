"""Videos: which frames are taken, what their vector is, and that hostile ones cost themselves alone."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path

import bombs
import clips
import numpy as np
import pytest
from clips import KINDS, clip, moving, number
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mmrec.content import sandbox as sandboxes
from mmrec.content import video
from mmrec.content.batching import fill_media
from mmrec.content.decode import phash, pixels
from mmrec.content.encoders import Encoder, encoder, fingerprint
from mmrec.content.media import BadMedia
from mmrec.content.sandbox import Sandbox
from mmrec.content.video import FRAMES, decode_video, is_video, still
from mmrec.lake.store import Lake
from tests.conftest import mmrec, share_encoders

DAY = "2026-03-02"
CODES = {"empty", "not_an_image", "no_video", "unsupported", "too_large", "truncated"}


def frames(data: bytes, n: int = FRAMES) -> list[np.ndarray]:
    return [np.asarray(image) for image in decode_video(data, n)]


def code(got: np.ndarray | BadMedia) -> str | None:
    return str(got).split(":")[0] if isinstance(got, BadMedia) else None


def scene(seed: int) -> np.ndarray:
    """Shapes on a shaded ground."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for n in range(12):
        x, y, r = (int(rng.integers(*span)) for span in ((0, 560), (0, 400), (30, 200)))
        (draw.ellipse if n % 2 else draw.rectangle)((x, y, x + r, y + r), fill=tuple(rng.integers(0, 256, 3).tolist()))
    return np.asarray(image)


@pytest.fixture(scope="module")
def lite0(encoders_cache: Path) -> Encoder:
    return encoder("efficientnet-lite0", encoders_cache)


@pytest.fixture(scope="module")
def shared() -> Iterator[Sandbox]:
    with Sandbox() as box:
        yield box


@pytest.mark.parametrize("kind", KINDS, ids=["-".join(k[:2]) for k in KINDS])
@pytest.mark.parametrize("gop", [2, 12, 250])
def test_frames_are_those_shown_in_the_middle_of_equal_parts(kind: tuple[str, str, str], gop: int) -> None:
    data = clip(moving(), *kind, gop=gop, b="4000k")
    assert is_video(data)
    got = frames(data)
    assert {f.shape for f in got} == {(64, 64, 3)}
    # 50 frames in 8 parts of 6.25
    assert np.rint([number(f) for f in got]).tolist() == [int((k + 0.5) * 50 / 8) for k in range(8)]
    assert np.rint(number(frames(data, 1)[0])) == 25
    for again in frames(data), frames(data):
        assert all((a == b).all() for a, b in zip(again, got, strict=True))


def test_a_frames_colours_are_the_pictures() -> None:
    for kind in KINDS:
        for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255), (128, 128, 128), (200, 120, 40), (255, 255, 255), (0, 0, 0)):
            flat = frames(clip([np.full((64, 64, 3), colour, np.uint8)] * 3, *kind, b="4000k"), 1)[0]
            assert np.abs(flat.astype(int) - colour).max() <= 6, (kind, colour)
    drawn = scene(0)
    off = frames(clip([drawn] * 3, crf="1"), 1)[0].astype(int) - drawn
    assert np.abs(off.mean((0, 1))).max() < 0.5, "rounded, not cut off"


@pytest.mark.parametrize("n", range(1, 10))
def test_a_short_video_gives_frames_more_than_once(n: int) -> None:
    assert np.rint([number(f) for f in frames(clip(moving(n)))]).tolist() == [int((k + 0.5) * n / 8) for k in range(8)]


def test_frames_are_spread_over_time_not_over_their_number() -> None:
    shown = io.BytesIO()
    with clips.av.open(shown, "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=1)
        stream.height, stream.width, stream.pix_fmt, stream.codec_context.time_base = 64, 64, "yuv420p", Fraction(1, 100)
        for k, at in enumerate([*range(40), 800]):  # forty in the first half second, the last after eight
            frame = clips.av.VideoFrame.from_ndarray(moving(41)[k], format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 100)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    assert np.rint([number(f) for f in frames(shown.getvalue())]).tolist() == [39] * 8


def test_an_open_group_of_pictures_gives_the_frames_that_a_closed_one_gives() -> None:
    for codec, options in (("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:crf=5"}), ("libx265", {"x265-params": "open-gop=1:keyint=12:bframes=3:crf=5"})):
        got = frames(clip(moving(), codec, **options))
        assert np.rint([number(f) for f in got]).tolist() == [3, 9, 15, 21, 28, 34, 40, 46]


def test_what_no_frame_needs_is_not_decoded_and_the_work_for_one_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []

    def counted(packets, codec, wanted):
        class Counting:
            width, height = codec.width, codec.height
            flush_buffers = staticmethod(codec.flush_buffers)

            @staticmethod
            def decode(packet):
                fed.append(1)
                return codec.decode(packet)

        return real(packets, Counting, wanted)

    real = video._frames
    monkeypatch.setattr(video, "_frames", counted)
    many = moving(50) * 20
    frames(clip(many, gop=25, bf="0", **{"x264-params": "scenecut=0"}))
    assert len(fed) < 8 * 27
    fed.clear()
    monkeypatch.setattr(video, "_AHEAD", 2 * 64 * 64)
    got = frames(clip(moving(50), gop=250, bf="0"))
    numbers = np.rint([number(f) for f in got])
    # three a frame: earlier than asked for, never later, and always in order
    assert numbers.tolist() == sorted(numbers)
    assert (numbers <= [int((k + 0.5) * 50 / 8) for k in range(8)]).all()
    assert numbers[-1] < 40
    assert len(fed) < 40


def test_a_telephones_video_is_upright() -> None:
    halves = np.zeros((32, 64, 3), np.uint8)
    halves[:, :32, 0] = halves[:, 32:, 2] = 255
    whole, upright = frames(clip([halves] * 9), 1)[0], frames(clips.turned(clip([halves] * 9)), 1)[0]
    assert (whole.shape, upright.shape) == ((32, 64, 3), (64, 32, 3))
    np.testing.assert_array_equal(upright, np.rot90(whole, -1))
    assert upright[2, 16, 0] > 200
    assert upright[-3, 16, 2] > 200


def test_what_is_a_video_is_decided_by_content() -> None:
    assert all(is_video(clip(moving(3), *kind)) for kind in KINDS)
    whole = clip(moving(3))
    at = whole.index(b"moov") - 4
    assert is_video(whole[at:]), "a QuickTime file of old begins anywhere"
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "AVIF"):
        assert not is_video(bombs.picture(Image.fromarray(bombs.NOISE), kind))
    for other in (b"", b"abc", b"hello" * 9, bombs.sound(bombs.SINE), bombs.sound(bombs.SINE, "OGG"), bombs.archive(), b"<!doctype html>"):
        assert not is_video(other)
    with pytest.raises(BadMedia, match=r"^not_an_image"):
        frames(b"hello" * 9)
    # playlists and the like make FFmpeg open other files; none is ever given to it
    for trap in (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n"):
        assert not is_video(trap)
        with pytest.raises(BadMedia):
            frames(clip(moving(3))[:32] + trap)


def test_every_hostile_video_is_refused_by_its_name_or_harmless_and_its_neighbours_are_what_they_were() -> None:
    corpus, good = list(clips.hostile()), clip(moving(9))
    with Sandbox(memory_mb=400) as box:
        got = list(box.map(partial(pixels, size=32), [d for _, data, _ in corpus for d in (data, good)]))
        peaks = list(box.map(partial(bombs.peak_of, decode=partial(pixels, size=32)), [good, *(data for _, data, _ in corpus)]))
    assert {name: code(g) for (name, _, _), g in zip(corpus, got[::2], strict=True)} == {n: c for n, _, c in corpus}
    for bystander in got[1::2]:
        np.testing.assert_array_equal(bystander, pixels(good, size=32))
    seen = [int(p[0]) for p in peaks if not isinstance(p, BadMedia)]
    assert len(seen) == len(corpus) + 1
    assert max(seen) - seen[0] < 400 * 1024


@pytest.mark.parametrize("memory_mb", [8, 40, 100])
def test_memory_that_runs_out_is_called_that_and_not_a_broken_video(memory_mb: int) -> None:
    large = clip(moving(20, 3840, 2160), gop=20, preset="ultrafast")
    with Sandbox(memory_mb=memory_mb) as box:
        assert str(next(box.map(partial(pixels, size=32), [large]))) == f"too_large: more than {memory_mb} MB"
    with Sandbox() as box:
        assert next(box.map(partial(pixels, size=32), [large])).shape == (8, 32, 32, 3)


def test_a_reason_is_the_same_every_time_and_names_no_object() -> None:
    for name, data, wanted in clips.hostile():
        if wanted:
            said = set()
            for _ in range(2):
                with pytest.raises(BadMedia) as caught:
                    frames(data)
                said.add(str(caught.value))
            assert len(said) == 1, name
            assert "0x" not in said.pop()


WHOLE = [clip(moving(12), *kind) for kind in KINDS if kind[0] != "libsvtav1"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WHOLE), st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), max_size=9), st.sampled_from([0, 0, 0, 1, 700]))
def test_any_bytes_are_a_video_or_refused(shared: Sandbox, data: bytes, flips: list[tuple[int, int]], cut: int) -> None:
    spoilt = bytearray(data)
    for at, value in flips:
        spoilt[at % (len(data) if at % 2 else 700)] ^= value
    (got,) = shared.map(partial(pixels, size=16), [bytes(spoilt[: len(data) - cut])])
    assert code(got) in CODES | {None}
    if not isinstance(got, BadMedia):
        assert (got.dtype, got.shape) in [(np.uint8, (8, 16, 16, 3)), (np.uint8, (16, 16, 3))]


def test_a_video_of_one_picture_has_that_pictures_vector(lite0: Encoder) -> None:
    # as large as videos are: on a picture of 160 pixels halved colours alone, which JPEG has too, weigh far more
    raw = [d for s in map(scene, range(4)) for d in (bombs.picture(Image.fromarray(s)), clip([s] * 20, crf="15"), clip([s] * 20, "libvpx-vp9", "webm", crf="15", b="4000k"))]
    emb, why = lite0.encode(raw)
    assert why == [None] * 12
    np.testing.assert_allclose(np.linalg.norm(emb, axis=1), 1, atol=1e-6)
    alike = emb @ emb.T
    for n in range(0, 12, 3):
        assert alike[n, n + 1 : n + 3].min() > 0.99
        assert np.delete(alike[n], [n, n + 1, n + 2]).max() < alike[n, n + 1 : n + 3].min()


def test_a_videos_vector_is_the_mean_of_its_frames_as_pictures_and_has_no_companions(lite0: Encoder) -> None:
    films = [clip(moving(50)), clip(moving(30)[::-1], "libvpx-vp9", "webm"), clip(moving(5))]
    stills = [bombs.picture(image) for film in films for image in decode_video(film)]
    alone = lite0.encode(stills)[0].reshape(3, FRAMES, -1).astype(np.float64)
    mean = alone.mean(1) / np.linalg.norm(alone.mean(1), axis=1, keepdims=True)
    picture = bombs.picture(Image.fromarray(bombs.NOISE))
    raw = [b"", films[0], picture, films[1][:-9], films[1], picture, films[2], films[0]]
    emb, why = lite0.encode(raw)
    assert [w and w.split(":")[0] for w in why] == ["empty", None, None, "truncated", None, None, None, None]
    np.testing.assert_allclose(emb[[1, 4, 6]], mean, atol=1e-6)
    np.testing.assert_array_equal(emb[1], emb[7])
    assert not emb[[0, 3]].any()
    np.testing.assert_array_equal(emb[[2, 5]], np.vstack([lite0.encode([picture])[0]] * 2))
    for order in (raw[::-1], raw[1:5], [films[0]]):
        for data, vector in zip(order, lite0.encode(order)[0], strict=True):
            np.testing.assert_array_equal(vector, emb[raw.index(data)])


def test_many_videos_fill_batches_and_no_more_than_two_are_sent_at_once(lite0: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = lite0._run
    monkeypatch.setattr(lite0, "_run", lambda images, key: (sizes.append(len(images)), real(images, key))[1])
    raw = [clip(moving(3)), bombs.picture(Image.fromarray(bombs.NOISE))] * 9
    emb, _ = lite0.encode(raw)
    assert sum(sizes) == 9 * FRAMES + 9
    assert max(sizes) <= 8
    assert len(np.unique(emb, axis=0)) == 2
    chunks = list(sandboxes._chunks(raw))
    assert [d for c in chunks for d in c] == raw
    assert max(sum(FRAMES if is_video(d) else 1 for d in c) for c in chunks) <= 16


def test_vectors_of_any_length_are_pooled_by_direction_and_keep_their_mean_length() -> None:
    media = [np.float32([3, 4]), np.float32([[2, 0], [0, 6]]), BadMedia("truncated: half"), np.float32([[1, 0], [-1, 0]]), np.float32([[0, 5], [0, 5]])]
    out, why = np.zeros((5, 2), np.float32), [None] * 5
    fill_media(out, why, media, frames=[0, 2, 2, 2, 2], size=lambda _: 3, run=lambda rows, _: np.stack(rows), threads=2)
    with pytest.raises(ValueError, match="zip"):  # a worker that was taken over gives no frames to its neighbours
        fill_media(out.copy(), [None], [np.float32([[1, 0]])], frames=[2], size=lambda _: 3, run=lambda rows, _: np.stack(rows), threads=1)
    half = 4 * np.sqrt(0.5)
    np.testing.assert_allclose(out, [[3, 4], [half, half], [0, 0], [0, 0], [0, 5]], rtol=1e-6)
    assert why == [None, None, "truncated: half", "no_direction: its frames cancel each other out", None]


def test_which_frames_are_taken_is_part_of_the_versions_that_promise_it(lite0: Encoder) -> None:
    # vectors under these names were made of eight frames: another number needs other names
    assert (FRAMES, lite0.version) == (8, "efficientnet-lite0/pool/160/fp32")


def test_a_video_has_no_fingerprint() -> None:
    with pytest.raises(BadMedia, match=r"^video: "):
        phash(clip(moving(5)))
    image = fingerprint("image")
    assert image is not None
    emb, why = image[1].encode([clip(moving(5)), bombs.picture(Image.fromarray(bombs.NOISE))])
    assert [w and w.split(":")[0] for w in why] == ["video", None]
    assert np.abs(emb).sum(1).tolist() == [0, 64]


def test_what_stands_for_a_video_on_a_page_is_its_middle_frame_opened_in_the_sandbox(shared: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    film = clip(moving(51, 128, 64))
    monkeypatch.setattr(video, "decode_video", None)  # here; a worker has its own
    made = Image.open(io.BytesIO(still(shared, film, (32, 32))))
    assert (made.format, made.size) == ("PNG", (32, 16))
    assert number(np.asarray(made)) == pytest.approx(25, abs=0.5)
    picture = bombs.picture(Image.fromarray(bombs.NOISE))
    assert still(shared, picture, (8, 8)) == picture
    assert still(shared, film[:-1], (8, 8)) == still(shared, clips.sound(), (8, 8)) == b""


def test_a_shops_videos_are_embedded_shown_and_refused_by_the_command_line(tmp_path: Path, encoders_cache: Path) -> None:
    shop, home = tmp_path / "shop", tmp_path / "home"
    folder = shop / "2026-03-01"
    (folder / "media").mkdir(parents=True)
    shown = scene(0)
    whole = clip([shown] * 30, crf="15")
    files = {"film.mp4": whole, "named-wrong.jpg": whole, "web.webm": clip(moving(30), "libvpx-vp9", "webm"), "half.mp4": whole[: len(whole) // 2],
             "song.mp4": clips.sound(), "hour.mp4": clip(moving(10), each=Fraction(360)), "still.png": bombs.picture(Image.fromarray(shown))}  # fmt: skip
    with (folder / "items.jsonl").open("w") as file:
        for name, data in files.items():
            (folder / "media" / name).write_bytes(data)
            file.write(json.dumps({"item_id": name, "title": f"Thing {name}", "image": f"media/{name}"}) + "\n")
    mmrec("init", "--home", str(home), "--source", "files", "--root", str(shop))
    share_encoders(home, encoders_cache)
    for step in ("ingest", "validate"):
        mmrec(step, "--home", str(home), "--date", DAY)
    counts = json.loads(mmrec("embed", "--home", str(home), "--date", DAY, "--json").stdout)
    assert (counts["image_new"], counts["image_refused"], counts["text_refused"]) == (6, 3, 0)
    lake = Lake(home / "lake")
    sha = {r["item_id"]: r["image_sha256"] for r in lake.arrow("silver.items").to_pylist()}
    rows = {(r["content_sha256"], r["modality"]): r for r in lake.arrow("gold.item_embeddings").to_pylist() if not r["encoder_version"].startswith(("phash", "words"))}
    assert sum(m == "text" for _, m in rows) == 7, "a broken video costs the item that medium, never the item"
    of = {name: rows[s, "image"] for name, s in sha.items()}
    assert {name: (r["refused"] or "").split(":")[0] for name, r in of.items()} == {
        "film.mp4": "", "named-wrong.jpg": "", "web.webm": "", "half.mp4": "truncated", "song.mp4": "no_video", "hour.mp4": "too_large", "still.png": ""}  # fmt: skip
    assert np.dot(of["film.mp4"]["embedding"], of["still.png"]["embedding"]) > 0.99
    assert np.dot(of["film.mp4"]["embedding"], of["web.webm"]["embedding"]) < 0.9
    assert sorted((r["raw"], r["rule"]) for r in lake.arrow("ops.quarantine").to_pylist()) == [
        (f"2026-03-01/media/{name}.mp4", f"image_{rule}") for name, rule in (("half", "truncated"), ("hour", "too_large"), ("song", "no_video"))]  # fmt: skip
    again = json.loads(mmrec("embed", "--home", str(home), "--date", DAY, "--json").stdout)
    assert again["image_new"] == again["text_new"] == 0
