"""What a transformers model's own files say: modality, pooling, prompt, length, and a digest of all that matters.

In: a folder or a hub name. Out: a `Description`. Files are read as JSON and bytes: no torch, no transformers.
Trade-off: the files decide, not a table of model names; where they don't say how tokens become one vector, it is an
error, not a guess. Pooled by convention: encoders by the mean of their tokens, decoders by the last one. Vectors get
unit length unless sentence-transformers' modules say otherwise.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmrec.errors import InputError

_METHOD = 2  # of this code: raise it where the same files would give other vectors
_DTYPES = ("fp32", "int8", "bf16")
_JOINT = {"clip": ("text", "image"), "siglip": ("text", "image"), "clap": ("text", "audio")}
_PICTURES = {"vit": "cls", "deit": "cls", "dinov2": "pooler", "dinov2_with_registers": "pooler",
             "dinov3_vit": "pooler", "clip_vision_model": "pooler", "siglip_vision_model": "pooler"}  # fmt: skip
_SOUNDS = {"audio-spectrogram-transformer": "pooler"}
_ENCODERS = {"albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet",
             "roberta", "xlm-roberta"}  # fmt: skip
_DECODERS = {"gemma", "gemma2", "gemma3_text", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"}
_POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")  # concatenated in this order
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "vocab.json",
              "merges.txt", "added_tokens.json", "tokenizer.model", "sentencepiece.bpe.model",
              "spiece.model")  # fmt: skip
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Description:
    """What a model's own files say, and what was decided where they leave it open.

    `dtype` is what the vectors are made in; where int8 was asked for and not kept, it is fp32 and `reason` says why.
    """

    source: str
    folder: str
    modality: str
    architecture: str
    feature: str  # tokens, cls, pooler, or a joint model's text, image, audio features
    pooling: tuple[str, ...]  # of tokens
    dense: tuple[str, ...]  # folders of linear layers after the pooling
    unit: bool
    prompt: str
    lower: bool
    max_length: int  # tokens; 0: no text
    fixed_length: bool  # every text is padded to max_length, as the model was trained
    weights: str  # sha256, 12 digits
    preprocessing: str  # sha256 of settings, tokenizer, prompt, 12 digits
    dtype: str
    reason: str | None = None

    @property
    def version(self) -> str:
        """Names weights, preprocessing, pooling, length, unit length and dtype; a folder that moves keeps it."""
        how = "+".join(self.pooling) or self.feature
        unit, length = "unit" if self.unit else "raw", [str(self.max_length)] if self.max_length else []
        parts = [self.architecture, self.modality, how, unit, *length, f"w{self.weights}", f"p{self.preprocessing}"]
        return "/".join([*parts, self.dtype])


def read(source: str, modality: str | None, dtype: str, prompt: str | None, max_length: int) -> Description:
    """The description before int8 is tried; arguments and errors as `hub.describe` has them."""
    root = _resolve(source)
    stages, folder = _stages(root)
    config = _read(folder / "config.json", source)
    kind = str(config.get("model_type", ""))
    feature, found = _feature(config, kind, modality, source)
    known("dtype", dtype, _DTYPES if found == "text" else ("fp32", "bf16"), source)
    pooling: tuple[str, ...] = ()
    dense: tuple[str, ...] = ()
    unit, text, lower, longest, fixed = True, "", False, 0, False
    if found == "text":
        lower, longest = _length(folder, config, max_length)
        fixed = kind == "siglip"  # it pools the last position, so its texts must fill the length
        longest = int(config.get("text_config", {}).get("max_position_embeddings", 64)) if fixed else longest
        text = _prompt(root, prompt, source)
    if feature == "tokens":
        if stages:
            pooling, dense, unit = _declared(root, stages, text, source)
        else:
            pooling = (_convention(config, kind, source),)
    settings = {"method": _METHOD, "prompt": text, "lower": lower, "feature": feature, "dense": len(dense)}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    wanted = ("config.json", *(_TOKENIZER if found == "text" else _PROCESSOR))
    for file in [folder / name for name in wanted] + [Path(d) / "config.json" for d in dense]:
        if file.is_file():
            digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return Description(
        source=source, folder=str(folder), modality=found, architecture=kind, feature=feature, pooling=pooling,
        dense=dense, unit=unit, prompt=text, lower=lower, max_length=longest, fixed_length=fixed,
        weights=_weights(folder, dense, source), preprocessing=digest.hexdigest()[:12], dtype=dtype,
    )  # fmt: skip


def _resolve(source: str) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.resolve()
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        found = Path(snapshot_download(source, allow_patterns=wanted, ignore_patterns=["onnx/*", "openvino/*"]))
        if not list(found.rglob("*.safetensors")):  # older models: torch's own format, read with weights_only
            found = Path(snapshot_download(source, allow_patterns=[*wanted, "*pytorch_model*.bin"]))
        return found
    except Exception as error:  # a bad name, no such model, no network, offline: each its own class
        raise InputError("no such folder, and the name can't be resolved: no hub is reachable, or it has no such model",
                         where="encoder", value=f"{source} ({type(error).__name__})",
                         valid="a folder with config.json, or a hub name",
                         next="name a folder that holds the model's files") from None  # fmt: skip


def _read(file: Path, source: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError("a model's file can't be read", where=str(file), value=str(error)[:200], valid="JSON",
                         next=f"save {source} again with save_pretrained") from None  # fmt: skip


def known(what: str, value: str, valid: tuple[str, ...], where: str) -> None:
    """Raises: InputError: a value that is none of the valid ones."""
    if value not in valid:
        raise InputError(f"no such {what} here", where=where, value=value, valid=valid, next="edit mmrec.toml")


def _stages(root: Path) -> tuple[list[tuple[str, str]], Path]:
    """sentence-transformers' modules after the first, as (class, path), and the transformer's folder."""
    if not (root / "modules.json").is_file():
        return [], root
    listed = _read(root / "modules.json", str(root))
    stages = [(str(m["type"]).rsplit(".", 1)[-1], str(m["path"])) for m in listed]
    if not stages or stages[0][0] not in ("Transformer", "CLIPModel"):
        raise InputError("its first module is no transformer", where=str(root / "modules.json"),
                         value=[k for k, _ in stages], valid=["Transformer"], next="name another model")  # fmt: skip
    return stages[1:], root / stages[0][1]


def _feature(config: dict[str, Any], kind: str, modality: str | None, source: str) -> tuple[str, str]:
    """Which output is taken, and the modality."""
    if kind in _JOINT:
        if modality not in _JOINT[kind]:
            raise InputError("the model has two towers: which?", where=source, value=modality, valid=_JOINT[kind],
                             next="name the modality")  # fmt: skip
        return f"{modality}_features", str(modality)
    found = "image" if kind in _PICTURES else "audio" if kind in _SOUNDS else "text"
    if modality not in (None, found):
        raise InputError("the model encodes something else", where=source, value=modality, valid=[found],
                         next="name the modality it has")  # fmt: skip
    if config.get("is_encoder_decoder"):
        raise InputError("a model with encoder and decoder is not supported", where=source, value=kind,
                         valid="one tower", next="name another model")  # fmt: skip
    return (_PICTURES | _SOUNDS).get(kind, "tokens"), found


def _convention(config: dict[str, Any], kind: str, source: str) -> str:
    heads = " ".join(map(str, config.get("architectures") or []))
    if kind in _DECODERS or "ForCausalLM" in heads:
        return "lasttoken"
    if kind in _ENCODERS or "ForMaskedLM" in heads:
        return "mean"
    raise InputError("nothing says how this architecture's tokens become one vector", where=source, value=kind,
                     valid=sorted(_ENCODERS | _DECODERS | {*_JOINT, *_PICTURES, *_SOUNDS}),
                     next="add modules.json and 1_Pooling/config.json of sentence-transformers")  # fmt: skip


def _declared(
    root: Path, stages: list[tuple[str, str]], prompt: str, source: str
) -> tuple[tuple[str, ...], tuple[str, ...], bool]:
    """Pooling, dense layers and unit length as sentence-transformers' modules declare them."""
    pooling: tuple[str, ...] = ()
    dense, unit = [], False
    for kind, path in stages:
        if kind == "Pooling" and not pooling:
            conf = _read(root / path / "config.json", source)
            named = conf.get("pooling_mode")
            named = {named} if isinstance(named, str) else set(named or ())
            flags = {"cls": "cls_token"} | {p: f"{p}_tokens" for p in ("max", "mean", "weightedmean")}
            named |= {p for p in _POOLINGS if conf.get(f"pooling_mode_{flags.get(p, p)}")}
            for name in named or {"none"}:
                known("pooling", name, _POOLINGS, str(root / path / "config.json"))
            pooling = tuple(p for p in _POOLINGS if p in named)
            if prompt and conf.get("include_prompt") is False:
                raise InputError("a prompt left out of the pooling is not supported", where=str(root / path),
                                 value=prompt, valid="include_prompt: true", next="name another model")  # fmt: skip
        elif kind == "Dense" and pooling and not unit:
            dense.append(str(root / path))
        elif kind == "Normalize":
            unit = True
        elif kind != "Dropout":  # idle outside training
            raise InputError("a module that is not supported, or not in this place", where=str(root / "modules.json"),
                             value=kind, valid="Pooling, Dense, Normalize, in this order",
                             next="name another model")  # fmt: skip
    if not pooling:
        raise InputError("its modules pool nothing", where=str(root / "modules.json"), value=[k for k, _ in stages],
                         valid="a Pooling module", next="name another model")  # fmt: skip
    return pooling, tuple(dense), unit


def _length(folder: Path, config: dict[str, Any], most: int) -> tuple[bool, int]:
    """Whether texts are lowered first, and at most how many tokens are read."""
    said: dict[str, Any] = {}
    if (folder / "sentence_bert_config.json").is_file():
        said = _read(folder / "sentence_bert_config.json", str(folder))
    tokenizer: dict[str, Any] = {}
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = _read(folder / "tokenizer_config.json", str(folder))
    tower = config.get("text_config") or config
    longest = [most, said.get("max_seq_length"), tokenizer.get("model_max_length")]
    if tower.get("max_position_embeddings"):
        # RoBERTa and its kin count positions from the padding's number on
        late = str(tower.get("model_type", "")) in ("roberta", "xlm-roberta", "camembert", "mpnet", "clap_text_model")
        longest.append(tower["max_position_embeddings"] - ((tower.get("pad_token_id") or 1) + 1) * late)
    elif config.get("model_type") == "clip":
        longest.append(77)  # its config leaves defaults out
    return bool(said.get("do_lower_case")), int(min(n for n in longest if n))


def _prompt(root: Path, name: str | None, source: str) -> str:
    file = root / "config_sentence_transformers.json"
    conf = _read(file, source) if file.is_file() else {}
    prompts = conf.get("prompts") or {}
    name = name if name is not None else conf.get("default_prompt_name")
    if name is None:
        return ""
    known("prompt", name, tuple(sorted(prompts)), str(file))
    return str(prompts[name])


def _weights(folder: Path, dense: tuple[str, ...], source: str) -> str:
    """Digest of all weight files, names and bytes."""
    digest = hashlib.sha256()
    for place in (folder, *map(Path, dense)):
        files = sorted(place.glob("*.safetensors")) or sorted(place.glob("pytorch_model*.bin"))
        if not files:
            raise InputError("no weights", where=str(place), value=source, next="name a folder that holds them",
                             valid="*.safetensors or pytorch_model*.bin")  # fmt: skip
        for file in files:
            found = file.stat()
            digest.update(file.name.encode() + _digest(file, found.st_size, found.st_mtime_ns))
    return digest.hexdigest()[:12]


@lru_cache(maxsize=64)
def _digest(file: Path, _size: int, _changed_ns: int) -> bytes:
    """A night names its encoders several times, and weights may be gigabytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
