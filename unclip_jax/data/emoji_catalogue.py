"""Which pictures the four emoji icon sets hold, and what emojibase calls them.

An icon set is Iconify JSON: SVG bodies by slug, and aliases. emojibase gives every emoji of Unicode
a label, tags, a group and a subgroup in English. A slug is a label written with hyphens, so the two
are joined by slug; `RENAMED` holds the icons whose designers chose another name.

A concept is a base emoji with all its skin tones, genders, ages of one role and directions: "woman
astronaut: dark skin tone" belongs to "astronaut". Splits are drawn over concepts (`emoji_splits`).
"""

from __future__ import annotations

import gzip
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ASSETS = Path(__file__).parent.parent / "assets" / "emoji"

STYLES = {
    "noto": "noto",
    "twemoji": "twemoji",
    "flat": "fluent-emoji-flat",
    "3d": "fluent-emoji",
}
"""The word for a style in captions → the folder of its icon set."""

TONES = ("light", "medium-light", "medium", "medium-dark", "dark")
"""Skin tones in Unicode's order; emojibase numbers them from 1."""

RENAMED = {
    "blackbird": "black-bird",
    "flag-us-outlying-islands": "flag-u-s-outlying-islands",
    "flag-us-virgin-islands": "flag-u-s-virgin-islands",
    "hugging-face": "smiling-face-with-open-hands",
    "japanese-hear-button": "japanese-here-button",
    "keycap-hashtag": "keycap-hash",
    "keycap-pound": "keycap-hash",
    "knocked-out-face": "face-with-crossed-out-eyes",
    "man-deaf": "deaf-man",
    "man-merpeople": "merman",
    "person-deaf": "deaf-person",
    "person-merpeople": "merperson",
    "phoenix-bird": "phoenix",
    "piata": "pinata",
    "pouting-face": "enraged-face",
    "red-triangle": "red-triangle-pointed-up",
    "up-exclamation-button": "up-button",
    "woman-deaf": "deaf-woman",
    "woman-merpeople": "mermaid",
    **{f"{who}-blonde-hair": f"{who}-blond-hair" for who in ("man", "woman", "person")},
    **{
        f"{one}-{doing}": f"{many}-{doing}"
        for one, many in (("man", "men"), ("woman", "women"), ("person", "people"))
        for doing in ("with-bunny-ears", "wrestling")
    },
    **{
        f"person-{role}": role
        for role in (
            *("elf", "fairy", "genie", "mage", "superhero", "supervillain", "vampire", "zombie"),
        )
    },
}
"""Slug in an icon set → slug of the emojibase label."""

_SAME_CODE = {
    "1F468": "1F9D1",  # man, woman → person
    "1F469": "1F9D1",
    "1F466": "1F9D2",  # boy, girl → child
    "1F467": "1F9D2",
    "1F474": "1F9D3",  # old man, old woman → older person
    "1F475": "1F9D3",
}
_SAME_LABEL = {
    "prince": "person with crown",
    "princess": "person with crown",
    "Santa Claus": "Mx Claus",
    "Mrs. Claus": "Mx Claus",
    "man dancing": "woman dancing",
    "pregnant woman": "pregnant person",
    "pregnant man": "pregnant person",
    "women holding hands": "people holding hands",
    "men holding hands": "people holding hands",
    "woman and man holding hands": "people holding hands",
}


@dataclass(frozen=True)
class Entry:
    """What emojibase says about one emoji."""

    label: str
    """CLDR short name, 'woman astronaut: dark skin tone'."""
    concept: str
    """Label of the base emoji, 'astronaut'."""
    tags: tuple[str, ...]
    group: str
    subgroup: str
    has_tone: bool
    """A skin tone other than the default yellow."""


@dataclass(frozen=True)
class Icon:
    """One picture of one icon set."""

    entry: Entry
    style: str
    slug: str
    """Name of the SVG in its icon set."""


def slug_of(label: str) -> str:
    """An emojibase label as Iconify writes it: 'keycap: #' → 'keycap-hash'."""
    text = label.replace("#", " hash ").replace("*", " asterisk ").replace("&", " and ")
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", text.replace("'", "")).strip("-")


def _read(*parts: str) -> Any:
    with gzip.open(ASSETS.joinpath(*parts), "rt", encoding="utf-8") as file:
        return json.load(file)


def _family(emoji: dict[str, Any]) -> str:
    """A key that all genders, ages and directions of one emoji share."""
    label: str = emoji["label"]
    prefix = label.split(":")[0]
    if prefix in ("family", "kiss", "couple with heart"):
        return prefix
    if label in _SAME_LABEL or label in _SAME_LABEL.values():
        return _SAME_LABEL.get(label, label)
    code = re.sub(r"-200D-(2640|2642|27A1)(?=-|$)", "", emoji["hexcode"].replace("-FE0F", ""))
    return "-".join(_SAME_CODE.get(part, part) for part in code.split("-"))


@cache
def load_entries() -> dict[str, tuple[Entry, dict[int, Entry]]]:
    """emojibase by slug of the label: the emoji, and its single skin tones by number."""
    table = _read("emojibase-data", "en.data.json.gz")
    messages = _read("emojibase-data", "en.messages.json.gz")
    groups = {item["order"]: item["message"] for item in messages["groups"]}
    subgroups = {item["order"]: item["message"] for item in messages["subgroups"]}

    names: dict[str, str] = {}
    families = [_family(emoji) for emoji in table]
    for emoji, family in zip(table, families, strict=True):
        # The neutral form names the concept; where there is none, the first in Unicode's order.
        is_neutral = family in (emoji["label"], emoji["hexcode"].replace("-FE0F", ""))
        if is_neutral or family not in names:
            names[family] = emoji["label"]

    entries: dict[str, tuple[Entry, dict[int, Entry]]] = {}
    for emoji, family in zip(table, families, strict=True):

        def make(item: dict[str, Any], has_tone: bool, family: str = family) -> Entry:
            tags = tuple(tag for tag in item.get("tags", ()) if tag != item["label"])
            # The 26 regional indicators have no group of their own.
            group, subgroup = groups.get(item.get("group", -1)), subgroups.get(item.get("subgroup"))
            return Entry(
                item["label"], names[family], tags, group or "symbols", subgroup or "", has_tone
            )

        tones: dict[int, Entry] = {}
        for skin in emoji.get("skins", ()):
            entry = make({**skin, "tags": emoji.get("tags", ())}, has_tone=True)
            entries.setdefault(slug_of(skin["label"]), (entry, {}))
            if isinstance(skin.get("tone"), int):
                tones[skin["tone"]] = entry
        entries[slug_of(emoji["label"])] = (make(emoji, has_tone=False), tones)
    return entries


def _match(slug: str) -> Entry | None:
    """The emoji that an icon's slug names, or None."""
    entries = load_entries()
    slug = RENAMED.get(slug, slug)
    if slug in entries:
        return entries[slug][0]
    tone = re.fullmatch(r"(.+?)-(medium-light|medium-dark|light|medium|dark)(-skin-tone)?", slug)
    if tone is None:
        return None
    base = entries.get(RENAMED.get(tone[1], tone[1]))
    return base[1].get(TONES.index(tone[2]) + 1) if base else None


def load_icons(style: str) -> Iterator[tuple[Icon, str]]:
    """The captioned icons of a style with their SVG documents, sorted by label, one a label.

    Of several icons with the same label the one that is current and spelt like the label is taken.
    An SVG document is square: an icon that is not is centred in it.
    """
    icons = _read(STYLES[style], "icons.json.gz")
    best: dict[str, tuple[tuple[bool, bool, str], Entry, str, bool]] = {}
    names = {name: (name, False) for name in icons["icons"]}
    for name, alias in icons.get("aliases", {}).items():
        names[name] = (alias["parent"], bool(alias.get("hFlip")))
    for name, (slug, is_flipped) in names.items():
        entry = _match(name)
        if entry is None:
            continue
        is_old = bool(icons["icons"][slug].get("hidden"))
        rank = (is_old, name != slug_of(entry.label), name)
        if entry.label not in best or rank < best[entry.label][0]:
            best[entry.label] = (rank, entry, slug, is_flipped)
    for label in sorted(best):
        _, entry, slug, is_flipped = best[label]
        name = slug_of(label)
        yield Icon(entry, style, name), _document(icons, slug, is_flipped)


def _document(icons: dict[str, Any], slug: str, is_flipped: bool) -> str:
    icon = icons["icons"][slug]
    width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
    body = icon["body"]
    if is_flipped:
        body = f'<g transform="translate({width} 0) scale(-1 1)">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" width="SIZE" height="SIZE">{body}</svg>'
    )
