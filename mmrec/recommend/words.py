"""What a row of a list says to its user, in the shop's language.

In: a language, a kind of reason, titles. Out: sentences, an Arrow column at a time.
Every language has the same templates with the same placeholders; a title goes in as it is.
Trade-off: titles are not inflected, so templates are worded so that any title fits where it stands.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

# one, two, both: why the model has it; title: of an item that has none; the others name no item
TEMPLATES = {
    "en": {
        "one": "because of {a}", "two": "because of {a} and {b}", "both": "because of {a} and {b}: both are {what}",
        "title": "an earlier choice", "drawn": "something else to try", "picked": "picked by the shop",
        "popular": "popular lately", "newcomers": "what newcomers like",
        "content": "like earlier choices", "item_to_item": "goes with the latest choice",
        "new": "new in the shop", "social": "chosen by people you follow",
    },
    "de": {
        "one": "wegen {a}", "two": "wegen {a} und {b}", "both": "wegen {a} und {b}: beides {what}",
        "title": "einer früheren Wahl", "drawn": "mal etwas anderes", "picked": "vom Shop ausgewählt",
        "popular": "zurzeit beliebt", "newcomers": "was neuen Kunden gefällt",
        "content": "ähnlich wie frühere Auswahl", "item_to_item": "passt zur letzten Wahl",
        "new": "neu im Shop", "social": "gewählt von Leuten, denen Sie folgen",
    },
    "nl": {
        "one": "vanwege {a}", "two": "vanwege {a} en {b}", "both": "vanwege {a} en {b}: allebei {what}",
        "title": "een eerdere keuze", "drawn": "eens iets anders", "picked": "gekozen door de winkel",
        "popular": "populair op dit moment", "newcomers": "wat nieuwe klanten leuk vinden",
        "content": "lijkt op eerdere keuzes", "item_to_item": "past bij de laatste keuze",
        "new": "nieuw in de winkel", "social": "gekozen door mensen die je volgt",
    },
    "fr": {
        "one": "d'après {a}", "two": "d'après {a} et {b}", "both": "d'après {a} et {b} : même rayon, {what}",
        "title": "un choix précédent", "drawn": "pour changer un peu", "picked": "choisi par la boutique",
        "popular": "apprécié en ce moment", "newcomers": "ce qui plaît aux nouveaux clients",
        "content": "proche de choix précédents", "item_to_item": "va avec le dernier choix",
        "new": "nouveau en boutique", "social": "choisi par des personnes que vous suivez",
    },
    "es": {
        "one": "por {a}", "two": "por {a} y {b}", "both": "por {a} y {b}: misma categoría, {what}",
        "title": "una elección anterior", "drawn": "para variar un poco", "picked": "elegido por la tienda",
        "popular": "popular últimamente", "newcomers": "lo que gusta a los nuevos clientes",
        "content": "parecido a elecciones anteriores", "item_to_item": "va con la última elección",
        "new": "nuevo en la tienda", "social": "elegido por personas a las que sigues",
    },
}  # fmt: skip
NAMELESS = ("content", "item_to_item", "new", "social", "drawn", "picked", "popular", "newcomers")


def said(language: str, kind: str, **values: pa.Array) -> pa.Array:
    """Sentences of one kind, or its words where it has no placeholder.

    Args:
        values: a string column a placeholder, all of one length.
    """
    pieces = re.split(r"\{(\w+)\}", TEMPLATES[language][kind])
    if len(pieces) == 1:
        return pa.array(pieces, pa.string())
    whole = [values[piece] if n % 2 else pa.scalar(piece, pa.string()) for n, piece in enumerate(pieces)]
    return pc.binary_join_element_wise(*whole, "")
