"""A described hub model in torch: its tower, pooling, dense layers and unit length as one module.

In: a description, then ids and mask, pixels or sounds. Out: emb_BD. The export traces `load`'s module; on a GPU
`TorchGraph` runs it where the processor runs ONNX.
Trade-off: attention is written out (eager) in both, because the trace follows it; a GPU would do a little better fused.

Shape legend: B rows, L tokens, D vector size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmrec.content.hub_config import Description
from mmrec.errors import InputError


class TorchGraph:
    """The model in torch under bf16 autocast, called as an ONNX session is.

    Raises: InputError: the device can't be used.
    """

    def __init__(self, description: Description, device: str) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise InputError("the configured device can't be used: torch sees no GPU", where="config: device",
                             value=device, valid="a machine with a CUDA driver, or cpu",
                             next='set device = "cpu" in mmrec.toml')  # fmt: skip
        self.device, self.model = device, load(description).to(device)

    def run(self, _: None, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        """[(B, D) float32] of ids and mask, or of pixels or sounds."""
        with torch.inference_mode(), torch.autocast(self.device, torch.bfloat16):
            emb_BD = self.model(*(torch.from_numpy(v).to(self.device) for v in feeds.values()))
        return [emb_BD.float().cpu().numpy()]


def load(description: Description) -> torch.nn.Module:
    """A module: ids (B, L) and mask (B, L), or pixels or sounds, to emb (B, D), as the description says.

    Raises: InputError: weights that the vectors need are in no file.
    """
    from transformers import AutoModel

    model, info = AutoModel.from_pretrained(description.folder, dtype=torch.float32, attn_implementation="eager",
                                            output_loading_info=True)  # fmt: skip
    unused = ("pooler.",) if description.feature in ("tokens", "cls") else ()
    lost = sorted(k for k in info["missing_keys"] if not any(u in k for u in unused))
    if lost:
        raise InputError("weights are missing; they would be random", where=description.folder, value=lost[:5],
                         valid="every weight in the files", next="name a complete model")  # fmt: skip
    if getattr(model.config, "enable_fusion", False) or getattr(
        getattr(model.config, "audio_config", None), "enable_fusion", False
    ):
        raise InputError("CLAP with fusion draws lots for long sounds", where=description.folder, value="enable_fusion",
                         valid="a CLAP without fusion", next="name an unfused model")  # fmt: skip
    model.config.use_cache = False
    return _Pooled(model, description).eval().requires_grad_(False)


class _Pooled(torch.nn.Module):
    def __init__(self, model: Any, description: Description) -> None:
        super().__init__()
        self.model, self.said = model, description
        self.dense = torch.nn.Sequential(*(layer for place in description.dense for layer in _dense(Path(place))))

    def forward(self, first: torch.Tensor, mask_BL: torch.Tensor | None = None) -> torch.Tensor:
        emb_BD = self.dense(self._features(first, mask_BL).float())
        return torch.nn.functional.normalize(emb_BD, dim=1) if self.said.unit else emb_BD

    def _features(self, first: torch.Tensor, mask_BL: torch.Tensor | None) -> torch.Tensor:
        feature = self.said.feature
        if self.said.modality == "text":
            given = {"input_ids": first} if mask_BL is None else {"input_ids": first, "attention_mask": mask_BL}
            if feature == "text_features":
                return _projected(self.model.get_text_features(**given))
            if mask_BL is None:
                mask_BL = torch.ones_like(first)
            return _pool(self.model(**given).last_hidden_state.float(), mask_BL, self.said.pooling)
        if feature == "image_features":
            return _projected(self.model.get_image_features(pixel_values=first))
        if feature == "audio_features":
            return _projected(self.model.get_audio_features(input_features=first))
        name = "pixel_values" if self.said.modality == "image" else "input_values"
        out = self.model(**{name: first})
        return out.last_hidden_state[:, 0] if feature == "cls" else out.pooler_output


def _projected(out: Any) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else out.pooler_output


def _pool(hidden_BLD: torch.Tensor, mask_BL: torch.Tensor, how: tuple[str, ...]) -> torch.Tensor:
    """As sentence-transformers defines each; right whether the padding is on the left or on the right."""
    at_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    weight_BL1 = mask_BL.unsqueeze(-1).to(hidden_BLD.dtype)
    sum_BD, count_B1 = (hidden_BLD * weight_BL1).sum(1), weight_BL1.sum(1).clamp(min=1e-9)

    def token(at_B: torch.Tensor) -> torch.Tensor:
        return hidden_BLD.gather(1, at_B[:, None, None].expand(-1, 1, hidden_BLD.shape[2])).squeeze(1)

    def one(name: str) -> torch.Tensor:
        if name == "cls":
            return token((at_L + (1 - mask_BL) * mask_BL.shape[1]).amin(1))
        if name == "lasttoken":
            return token((at_L * mask_BL).amax(1))
        if name == "max":
            return hidden_BLD.masked_fill(weight_BL1 == 0, -1e9).amax(1)
        if name == "weightedmean":
            place_BL1 = (mask_BL.cumsum(1) * mask_BL).unsqueeze(-1).to(hidden_BLD.dtype)
            return (hidden_BLD * place_BL1).sum(1) / place_BL1.sum(1).clamp(min=1e-9)
        return sum_BD / (count_B1.sqrt() if name == "mean_sqrt_len_tokens" else count_B1)

    return torch.cat([one(name) for name in how], 1)


def _dense(place: Path) -> list[torch.nn.Module]:
    """sentence-transformers' Dense: a linear layer and its activation."""
    conf = json.loads((place / "config.json").read_text())
    known = {"Tanh": torch.nn.Tanh, "Identity": torch.nn.Identity, "GELU": torch.nn.GELU, "ReLU": torch.nn.ReLU}
    name = str(conf.get("activation_function") or "torch.nn.modules.activation.Tanh")
    short = name.removeprefix("torch.nn.modules.").rsplit(".", 1)[-1]
    if not name.startswith("torch.nn.") or short not in known or conf.get("use_residual"):
        raise InputError("a dense layer that is not supported", where=str(place / "config.json"), valid=sorted(known),
                         value=name + " with a residual" * bool(conf.get("use_residual")),
                         next="name another model")  # fmt: skip
    if (place / "model.safetensors").is_file():
        from safetensors.torch import load_file

        weights = load_file(str(place / "model.safetensors"))
    else:
        weights = torch.load(place / "pytorch_model.bin", weights_only=True, map_location="cpu")
    layer = torch.nn.Linear(conf["in_features"], conf["out_features"], bias=conf.get("bias", True))
    layer.load_state_dict({k.removeprefix("linear."): v.float() for k, v in weights.items()})
    return [layer, known[short]()]
