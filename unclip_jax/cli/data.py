"""`python -m unclip_jax data sheet | build | stats | groups`: look at data, and build it."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from unclip_jax.cli.overrides import OneLineParser
from unclip_jax.config import DataConfig
from unclip_jax.errors import UserError


def main(argv: list[str]) -> None:
    """Run one of the commands.

    Raises:
        UserError: what the command was asked for cannot be read or written.
    """
    arguments = parser().parse_args(argv)
    arguments.run(arguments)


def parser() -> argparse.ArgumentParser:
    """What reads the command line of `unclip data`."""
    parser = OneLineParser(prog="unclip data", description="Look at data, and build it.")
    commands = parser.add_subparsers(dest="COMMAND", required=True, metavar="COMMAND")

    sheet = commands.add_parser("sheet", help="pictures of a split with their captions, as one PNG")
    _add_source(sheet)
    sheet.add_argument("--out", default="sheet.png", help="where the PNG goes (%(default)s)")
    sheet.add_argument("--columns", type=int, default=12, help="pictures a row (%(default)s)")
    sheet.add_argument("--limit", type=int, default=96, help="pictures in all (%(default)s)")
    sheet.set_defaults(run=_sheet)

    build = commands.add_parser("build", help="draw the emoji at some sizes into the cache")
    build.add_argument("--sizes", type=int, nargs="+", default=[64], help="64, 256, 1024 pixels")
    build.add_argument("--variants", action="store_true", help="the skin tones too")
    build.add_argument("--cache-dir", help="instead of $UNCLIP_CACHE or ~/.cache/unclip_jax")
    build.set_defaults(run=_build)

    stats = commands.add_parser("stats", help="how many pictures there are of what")
    _add_source(stats)
    stats.add_argument("--names", action="store_true", help="list the concepts of the split")
    stats.set_defaults(run=_stats)

    groups = commands.add_parser(
        "groups", help="for maintainers: find near-duplicate emoji again (changes the splits)"
    )
    groups.add_argument("--out", required=True, help="the JSON file to write")
    groups.set_defaults(run=_groups)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    default = DataConfig()
    parser.add_argument(
        "--source", default=default.source, help="emoji, FOLDER, 'SHARDS*.tar' or tfds:FOLDER"
    )
    parser.add_argument("--split", default=default.split, help="%(default)s")
    parser.add_argument("--size", type=int, default=default.image_size, help="%(default)s pixels")
    parser.add_argument("--concepts", nargs="*", default=[], help="emoji: only these")
    parser.add_argument("--variants", action="store_true", help="emoji: the skin tones too")
    parser.add_argument("--image-key", default=default.image_key, help="tfds: %(default)s")
    parser.add_argument("--caption-key", default=default.caption_key, help="tfds: %(default)s")
    parser.add_argument("--cache-dir", help="instead of $UNCLIP_CACHE or ~/.cache/unclip_jax")


def _config(arguments: argparse.Namespace) -> DataConfig:
    return DataConfig(
        source=arguments.source,
        split=arguments.split,
        image_size=arguments.size,
        concepts=tuple(arguments.concepts),
        variants=arguments.variants,
        image_key=arguments.image_key,
        caption_key=arguments.caption_key,
        cache_dir=arguments.cache_dir,
    )


def _sheet(arguments: argparse.Namespace) -> None:
    from unclip_jax.data.captions import EmojiFacts, caption_with_style
    from unclip_jax.data.images import BadImage, decode_image, make_grid, resize_and_crop, save_png
    from unclip_jax.data.sources import open_source

    source = open_source(_config(arguments))
    count = max(1, min(arguments.limit, len(source)))
    cells = []
    for index in np.linspace(0, len(source) - 1, count).round().astype(int):
        try:
            record = source[int(index)]
            image = resize_and_crop(decode_image(record.image, name=record.name), arguments.size)
            facts = record.captions
            is_emoji = isinstance(facts, EmojiFacts)
            text = caption_with_style(facts.label, facts.style) if is_emoji else facts[0]
        except BadImage as error:
            image = np.full((arguments.size, arguments.size, 3), 128, np.uint8)
            text = f"unreadable: {error.reason}"
        cells.append(_with_caption(image, text))
    save_png(arguments.out, make_grid(np.stack(cells), arguments.columns, pad=4))
    print(f"{arguments.out}: {count} of {len(source)} pictures of {arguments.split}")


def _with_caption(image: np.ndarray, text: str) -> np.ndarray:
    """The picture with its caption below in small letters, at most three lines."""
    from PIL import Image, ImageDraw, ImageFont

    size = image.shape[0]
    width = max(size, 96)
    font = ImageFont.load_default(size=10)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    cell = Image.new("RGB", (width, size + 38), "white")
    cell.paste(Image.fromarray(image), ((width - size) // 2, 0))
    draw = ImageDraw.Draw(cell)
    for row, line in enumerate(lines[:3]):
        left = max(0.0, (width - font.getlength(line)) / 2)
        draw.text((left, size + 1 + 12 * row), line, fill="black", font=font)
    return np.asarray(cell)


def _build(arguments: argparse.Namespace) -> None:
    from unclip_jax.data.emoji import SIZES, build_emoji

    for size in arguments.sizes:
        if size not in SIZES:
            raise UserError(f"--sizes {size}: the emoji are drawn at {', '.join(map(str, SIZES))}")
        for variants in (False, True) if arguments.variants else (False,):
            print(build_emoji(size, variants, arguments.cache_dir))


def _stats(arguments: argparse.Namespace) -> None:
    if arguments.source != "emoji":
        from unclip_jax.data.sources import open_source

        print(f"{arguments.source}: {len(open_source(_config(arguments)))} captioned pictures")
        return
    from unclip_jax.data.emoji import list_icons
    from unclip_jax.data.emoji_catalogue import STYLES
    from unclip_jax.data.emoji_splits import SPLITS

    icons = [(icon, split) for icon, _, split in list_icons()]
    plain = [(icon, split) for icon, split in icons if not icon.entry.has_tone]
    chosen = icons if arguments.variants else plain
    if arguments.names:
        names = {icon.entry.concept for icon, split in chosen if split == arguments.split}
        print("\n".join(sorted(names)))
        return
    styles = Counter((split, icon.style) for icon, split in chosen)
    groups = Counter((split, icon.entry.group) for icon, split in chosen)
    concepts = Counter(split for _, split in {(i.entry.concept, split) for i, split in chosen})
    _table("style", {style: [styles[split, style] for split in SPLITS] for style in STYLES})
    found = sorted({icon.entry.group for icon, _ in chosen})
    _table("group", {group: [groups[split, group] for split in SPLITS] for group in found})
    _table("concepts", {"in each split": [concepts[split] for split in SPLITS]}, total=False)
    kind = "with" if arguments.variants else "without"
    print(f"{len(chosen)} pictures {kind} skin tones ({len(icons) - len(plain)} have one)")


def _table(title: str, rows: dict[str, list[int]], total: bool = True) -> None:
    from unclip_jax.data.emoji_splits import SPLITS

    if total:
        rows = {**rows, "all": [sum(column) for column in zip(*rows.values(), strict=True)]}
    print(f"{title:20}" + "".join(f"{split:>12}" for split in SPLITS))
    for name, counts in rows.items():
        print(f"{name:20}" + "".join(f"{count:12}" for count in counts))
    print()


def _groups(arguments: argparse.Namespace) -> None:
    import json

    from unclip_jax.data.emoji import draw_all
    from unclip_jax.data.emoji_catalogue import STYLES
    from unclip_jax.data.emoji_splits import make_groups, near_duplicates

    icons, images = draw_all()
    pairs: set[tuple[str, str]] = set()
    for style in STYLES:
        rows = [row for row, icon in enumerate(icons) if icon.style == style]
        pairs |= near_duplicates(images[rows], [icons[row].entry.concept for row in rows])
    groups: list[Any] = make_groups(pairs, {icon.entry.concept for icon in icons})
    lines = ",\n".join(json.dumps(group, ensure_ascii=False) for group in groups)
    Path(arguments.out).write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{arguments.out}: {len(groups)} groups")
