"""Which media an item's row names, and which bytes each of them is: one sound, one picture or several.

In: the text of a column, hashes. Out: references in order, the row's columns of hashes, both side by side.
`image` holds one name or a JSON list. `image_sha256` is the first picture that has bytes; `images_sha256` has a place
for each picture of a list, null where there are none, and is null itself where one or none is named.
Trade-off: the first picture stands twice in such a row; in exchange nobody who wants one picture looks at lists.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

COLUMNS = {"image": ("image_sha256", "images_sha256"), "audio": ("audio_sha256",)}


def references(modality: str, text: str | None) -> list[str]:
    """The files or URLs that a column `modality` names: one, or of pictures those of a JSON list, in order.

    Null and empty names of a list are none. What is no list of texts is one name, as it stands.
    """
    if not text:
        return []
    if modality == "image" and text.lstrip().startswith("["):
        try:
            found = json.loads(text)
            if isinstance(found, list) and all(n is None or isinstance(n, str) for n in found):
                "".join(n or "" for n in found).encode()  # half of a surrogate pair names no file
                return [n for n in found if n]
        except (ValueError, RecursionError):
            pass
    return [text]


def hashes(modality: str, shas: Sequence[str | None]) -> dict[str, Any]:
    """`COLUMNS` of a row that names media of these hashes, one each, None where there are no bytes."""
    found: dict[str, Any] = {f"{modality}_sha256": next((s for s in shas if s), None)}
    if modality == "image":
        found["images_sha256"] = list(shas) if len(shas) > 1 else None
    return found


def media(row: dict[str, Any], modality: str) -> list[tuple[str, str | None]]:
    """What a row of bronze.items or silver.items names, each with the hash of its bytes or None."""
    named = references(modality, row[modality])
    shas = row["images_sha256"] if modality == "image" else None
    if not shas:  # one; or a list that was taken for one name when the row came: it had no bytes
        shas = ([row[f"{modality}_sha256"]] + [None] * len(named))[: len(named)]
    return list(zip(named, shas, strict=True))
