"""Which encoder versions somebody needs: those of the settings, and those that served bundles were trained on.

In: settings, the registry, bundles on disk. Out: encoders to feed, versions whose vectors may not go.
A bundle is served while an alias names it (champion, previous, challenger). As long its encoder versions are fed with
what is new, though the settings have moved on; then `mmrec maintain` takes their vectors out.
Trade-off: encoders are made anew at each call and open their graphs when a row needs them, so naming them is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from mmrec.bundle import registry
from mmrec.bundle.bundle import Bundle, load
from mmrec.config import Config
from mmrec.errors import InputError, QualityError
from mmrec.models.fields import pooling

_MODALITIES = ("text", "image", "audio")


def encoders(config: Config) -> list[Any]:
    """The encoders that the settings name, ready to encode; see content/encoders.py."""
    from mmrec.content.encoders import encoder

    where = config.cache / "encoders"
    return [encoder(name, where, config.device, config.threads, m) for m, name in config.encoder_names.items()]


def looked_at(config: Config, bundle: Bundle, needed: bool = True) -> dict[str, Any]:
    """The contents that diversity and candidates look at, as a manifest has them: encoders (modality -> version) and
    fields; those of the bundle, else those of the settings.

    Raises: InputError: neither names an encoder, and one is needed.
    """
    looked = bundle.encoders or {e.modality: e.version for e in encoders(config)}
    if needed and not looked:
        raise InputError("contents are to be looked at, and no encoder is named", where="mmrec.toml: night",
                         value="no text, image or audio encoder",
                         valid="one of them; else no strength and serendipity, and no generator content",
                         next="edit mmrec.toml")  # fmt: skip
    return {"encoders": looked, "fields": bundle.fields}


def fed(config: Config) -> list[Any]:
    """The encoders to feed, each version once: of a modality those of served bundles, then that of the settings.

    The last one says what is refused. A bundle that is not whole on this disk can't score either, and is passed over.
    """
    from mmrec.content.earlier import Earlier

    own = encoders(config)
    theirs: dict[tuple[str, str], list[str]] = {}
    for bundle in _bundles(config):
        for modality, encoder_version in bundle.encoders.items():
            ways = theirs.setdefault((modality, encoder_version), [])
            ways += [n for m, n in bundle.encoder_names.items() if m == modality and n not in ways]
    for encoder in own:
        theirs.pop((encoder.modality, encoder.version), None)
    where = config.cache / "encoders"
    earlier = [Earlier(m, v, ways, where, config.device, config.threads) for (m, v), ways in theirs.items()]
    return sorted([*earlier, *own], key=lambda e: _MODALITIES.index(e.modality))


def texts_apart(config: Config) -> bool:
    """Whether the settings or a served bundle take title and text for two contents: then they are encoded as such."""
    chosen = (config.content.fields, *(bundle.fields for bundle in _bundles(config)))
    return any(pooling(fields, "text") == "mean" for fields in chosen)


def fingerprints(config: Config) -> dict[str, Any]:
    """Name -> what tells near-duplicates, of the modalities whose encoder and fingerprint have a bound."""
    from mmrec.content.encoders import fingerprint

    bounds = config.twins.bounds
    made = [fingerprint(modality) for modality, name in config.encoder_names.items() if name in bounds]
    return {name: encoder for name, encoder in filter(None, made) if name in bounds}


def needed(config: Config) -> set[str]:
    """Every encoder version that the settings or a served bundle name, fingerprints too.

    Raises: InputError, QualityError: a served bundle is not whole on this disk, or an encoder of the settings can't be
        opened: what they need is not known. TransientError: the registry does not answer.
    """
    versions = {e.version for e in (*encoders(config), *fingerprints(config).values())}
    for version, digest in registry.served(config):
        versions.update(load(config.bundles / version, digest, deep=False).encoders.values())
    return versions


def _bundles(config: Config) -> Iterator[Bundle]:
    """The served bundles that are whole on this disk."""
    for version, digest in registry.served(config, alone=True):
        with suppress(InputError, QualityError):
            yield load(config.bundles / version, digest, deep=False)
