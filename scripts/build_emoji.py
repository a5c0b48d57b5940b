#!/usr/bin/env python3
"""Build `gradient_surgery/data/emoji.zip`, the emoji benchmark, from openly licensed npm packages.

    python scripts/build_emoji.py                          # fetches the packages with `npm pack`
    python scripts/build_emoji.py --packages some/folder   # uses the tarballs found there

`emoji_matches.csv` beside this file says which icon of which set draws which emoji. The script keeps the
emoji that enough sets draw, renders each icon at 64 pixels on white, leaves out pictures that repeat another
one pixel for pixel, splits the emoji by emojibase subgroup, and packs everything into one zip whose bytes
depend on nothing but the packages, the table and the versions of resvg_py and pillow.
"""
import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import resvg_py
import typer
from PIL import Image
from tqdm import tqdm

SIZE = 64                 # pixels on a side
MINIMUM_RENDERINGS = 6    # an emoji that fewer sets draw is left out
FRACTIONS = {"train": 0.4, "validation": 0.1, "test": 0.5}   # of the emoji, not of the subgroups
COLUMNS = ["file", "set", "icon", "codepoints", "label", "group", "subgroup", "split"]
MATCHES = Path(__file__).with_name("emoji_matches.csv")
TARGET = Path(__file__).resolve().parent.parent / "gradient_surgery" / "data"
CACHE = Path.home() / ".cache" / "gradient_surgery" / "npm"

APACHE = "[Apache-2.0](https://www.apache.org/licenses/LICENSE-2.0)"
CC_BY = "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)"
CC_BY_SA = "[CC BY-SA 4.0](https://creativecommons.org/licenses/by-sa/4.0/)"
MIT = "[MIT](https://opensource.org/license/mit)"


class Source(NamedTuple):
    "An npm package and what its licence asks us to say about the drawings in it."
    package: str
    version: str
    name: str
    authors: str
    licence: str
    link: str
    attribution: str

    @property
    def tarball(self):
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


SOURCES = {
    "noto": Source(
        "@iconify-json/noto", "1.2.9", "Noto Emoji", "Google", APACHE,
        "https://github.com/googlefonts/noto-emoji",
        "Noto Emoji, copyright Google, licensed under the Apache License 2.0."),
    "noto-v1": Source(
        "@iconify-json/noto-v1", "1.2.5", "Noto Emoji, first design", "Google", APACHE,
        "https://github.com/googlefonts/noto-emoji",
        "Noto Emoji (first design), copyright Google, licensed under the Apache License 2.0."),
    "twemoji": Source(
        "@iconify-json/twemoji", "1.2.5", "Twemoji", "Twitter, Inc. and other contributors", CC_BY,
        "https://github.com/jdecked/twemoji",
        "Graphics by Twemoji, copyright Twitter, Inc. and other contributors, licensed under CC BY 4.0."),
    "openmoji": Source(
        "@iconify-json/openmoji", "1.2.29", "OpenMoji", "HfG Schwäbisch Gmünd and contributors", CC_BY_SA,
        "https://openmoji.org",
        "Emoji designed by OpenMoji, the open-source emoji and icon project, licensed under CC BY-SA 4.0."),
    "fluent-emoji": Source(
        "@iconify-json/fluent-emoji", "1.2.7", "Fluent Emoji", "Microsoft Corporation", MIT,
        "https://github.com/microsoft/fluentui-emoji",
        "Fluent Emoji, copyright Microsoft Corporation, licensed under the MIT License (text below)."),
    "fxemoji": Source(
        "@iconify-json/fxemoji", "1.2.2", "FxEmojis (Firefox OS Emoji)", "Mozilla Foundation", CC_BY,
        "https://github.com/mozilla/fxemoji",
        "FxEmojis, copyright 2015 Mozilla Foundation. Visual design licensed under CC BY 4.0, code under "
        "Apache-2.0; the npm package names Apache-2.0 only, so we follow the stricter notice of the project."),
    "emojione": Source(
        "@iconify-json/emojione", "1.2.3", "EmojiOne 2 (Emojitwo)", "Ranks.com and the Emojitwo community", CC_BY,
        "https://github.com/EmojiTwo/emojitwo",
        "Emoji artwork provided by Emojitwo, originally released as Emojione 2 by Ranks.com "
        "(https://www.emojione.com) with contributions from the Emojitwo community, licensed under CC BY 4.0."),
    "emojione-v1": Source(
        "@iconify-json/emojione-v1", "1.2.3", "EmojiOne 1", "Ranks.com (Emoji One)", CC_BY_SA,
        "https://github.com/joypixels/emojione-legacy",
        "Emoji One 1.5 artwork by Ranks.com (https://www.emojione.com), licensed under CC BY-SA 4.0."),
    "emojibase": Source(
        "emojibase-data", "17.0.0", "emojibase", "Miles Johnson", MIT,
        "https://github.com/milesj/emojibase",
        "Labels, groups and subgroups from emojibase, copyright 2017-2019 Miles Johnson, "
        "licensed under the MIT License (text below)."),
}

MIT_TEXT = """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation
the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and
to permit persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of
the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO
THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF
CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS
IN THE SOFTWARE.
"""


def fetch(packages):
    "Fetch the tarballs that are not yet in the folder `packages`."
    packages.mkdir(parents=True, exist_ok=True)
    missing = [source for source in SOURCES.values() if not (packages / source.tarball).exists()]
    if missing and not shutil.which("npm"):
        raise SystemExit(f"{packages} lacks {', '.join(s.tarball for s in missing)} and there is no npm to fetch "
                         "them: install npm, or put the tarballs there by hand.")
    for source in tqdm(missing, desc="npm pack", disable=not missing):
        subprocess.run(["npm", "pack", "--silent", "--pack-destination", str(packages),
                        f"{source.package}@{source.version}"], check=True, stdout=subprocess.DEVNULL)


def read_json(packages, source, path):
    "One JSON file out of a package's tarball."
    with tarfile.open(packages / source.tarball) as tarball:
        return json.load(tarball.extractfile(f"package/{path}"))


def read_matches():
    "The rows of the match table whose emoji is drawn by enough sets and has a subgroup to be split by."
    with open(MATCHES, newline="", encoding="utf-8") as file:
        # emojibase puts the regional indicators (boxed letters that pair up to flags) in no group
        rows = [row for row in csv.DictReader(file) if row["subgroup"]]
    renderings = Counter(row["codepoints"] for row in rows)
    return [row for row in rows if renderings[row["codepoints"]] >= MINIMUM_RENDERINGS]


def resolve(icons, name):
    "An icon's body, box and turns; an alias takes its parent's body and adds its own flips and quarter turns."
    if name in icons["icons"]:
        default = {"left": 0, "top": 0, "width": icons["width"], "height": icons["height"]}
        return {"rotate": 0, "hFlip": False, "vFlip": False} | default | icons["icons"][name]
    alias = icons["aliases"][name]
    icon = resolve(icons, alias["parent"])
    for flip in ("hFlip", "vFlip"):
        icon[flip] ^= alias.get(flip, False)
    icon["rotate"] = (icon["rotate"] + alias.get("rotate", 0)) % 4
    return icon | {key: alias[key] for key in ("left", "top", "width", "height") if key in alias}


def square_svg(icon):
    "The icon as an SVG document whose box is padded to a square around the drawing's centre."
    side = max(icon["width"], icon["height"])
    x, y = icon["left"] + icon["width"] / 2, icon["top"] + icon["height"] / 2
    scale = f"{-1 if icon['hFlip'] else 1} {-1 if icon['vFlip'] else 1}"
    turns = f"translate({x} {y}) rotate({90 * icon['rotate']}) scale({scale}) translate({-x} {-y})"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{x - side / 2} {y - side / 2} {side} {side}"><g transform="{turns}">{icon["body"]}</g></svg>')


def render(icon):
    "The icon drawn on white, [size, size, 3] bytes."
    # The machine's fonts must not decide what the benchmark looks like.
    png = resvg_py.svg_to_bytes(svg_string=square_svg(icon), width=SIZE, height=SIZE, background="#ffffff",
                                skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def is_blank(pixels):
    "Whether a picture shows nothing: every pixel has (almost) the same colour."
    return int(pixels.max(axis=(0, 1)).astype(int).max() - pixels.min()) < 16


def drop_copies(rows, pictures):
    "Keep the first of several equal pictures of one emoji; drop pictures that two emoji share."
    emoji_of, kept, report = defaultdict(set), [], Counter()
    for row in rows:
        emoji_of[pictures[row["file"]].tobytes()].add(row["codepoints"])
    seen = set()
    for row in rows:
        key = pictures[row["file"]].tobytes()
        if len(emoji_of[key]) > 1:
            report["shown by two emoji"] += 1
        elif key in seen:
            report["copy within an emoji"] += 1
        else:
            seen.add(key)
            kept.append(row)
    return kept, report


def split_subgroups(rows):
    """Which split each subgroup belongs to.

    Subgroups come in the order of the SHA-256 of their names (an order that nobody chose); each goes whole to
    the split that is then furthest below its share of the emoji.
    """
    emoji = defaultdict(set)
    for row in rows:
        emoji[row["subgroup"]].add(row["codepoints"])
    wanted = {split: fraction * sum(map(len, emoji.values())) for split, fraction in FRACTIONS.items()}
    chosen = {}
    for subgroup in sorted(emoji, key=lambda name: hashlib.sha256(name.encode()).hexdigest()):
        chosen[subgroup] = max(wanted, key=wanted.get)
        wanted[chosen[subgroup]] -= len(emoji[subgroup])
    return chosen


def licences(rows):
    "The attribution text: for every set its name, authors, licence, link and what was changed."
    count = Counter(row["set"] for row in rows)
    lines = [
        "# Where the emoji come from, and their licences", "",
        "Every picture in `emoji.zip` stays under the licence of the set it comes from; the folder name in the zip "
        "names the set. **Changes:** each drawing was taken as SVG from the npm package named below (made by "
        f"Iconify), mirrored where the package says so, padded to a square, rasterised to {SIZE} × {SIZE} pixels on white and stored as lossless WebP. "
        "Nothing else was changed. No author or project named here endorses this one.", "",
        "| set | project | authors | licence of the drawings | npm package | pictures |", "|---|---|---|---|---|---|"]
    for key, source in SOURCES.items():
        lines.append(f"| `{key}` | [{source.name}]({source.link}) | {source.authors} | {source.licence} | "
                     f"`{source.package}` {source.version} | {count.get(key, 'labels only')} |")
    lines += ["", "## Attribution", ""]
    lines += [f"- {source.attribution} Source: {source.link}" for source in SOURCES.values()]
    lines += ["", "The table `index.csv` and the split are this project's work and carry its licence. Whoever passes on "
              "pictures under CC BY-SA 4.0 in changed form passes them on under that licence.", "",
              "## MIT License (Fluent Emoji: copyright Microsoft Corporation; emojibase: copyright 2017-2019 Miles "
              "Johnson)", "", MIT_TEXT]
    return "\n".join(lines)


def webp(pixels):
    "The picture as lossless WebP."
    buffer = io.BytesIO()
    # quality is the search effort here: 100 takes 18 times as long as 80 and saves less than 1 %
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, quality=80, method=6)
    return buffer.getvalue()


def table(rows):
    "The rows as CSV bytes."
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write(path, content):
    "Write a file in one step, so that a broken run leaves no half of it."
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def pack(files):
    "A zip of `{name: bytes}`, stored, in the given order and with a fixed date: equal files give equal bytes."
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16   # as if written on Unix, everywhere
            archive.writestr(entry, content)
    return buffer.getvalue()


def build(packages, target):
    "Build the zip and the licence file in the folder `target`; return the kept rows and what was left out."
    fetch(packages)
    icons = {name: read_json(packages, source, "icons.json") for name, source in SOURCES.items()
             if name != "emojibase"}
    groups = read_json(packages, SOURCES["emojibase"], "meta/groups.json")

    rows, pictures, left_out = [], {}, Counter()
    for row in tqdm(read_matches(), desc="render"):
        row = row | {"file": f"images/{row['set']}/{row['codepoints']}.webp",
                     "group": groups["groups"][row["group"]], "subgroup": groups["subgroups"][row["subgroup"]]}
        pixels = render(resolve(icons[row["set"]], row["icon"]))
        if is_blank(pixels):
            left_out["blank"] += 1
            continue
        rows.append(row)
        pictures[row["file"]] = pixels

    rows, copies = drop_copies(rows, pictures)
    left_out += copies
    renderings = Counter(row["codepoints"] for row in rows)
    few = [row for row in rows if renderings[row["codepoints"]] < MINIMUM_RENDERINGS]
    left_out["emoji with too few renderings after that"] = len(few)
    rows = [row for row in rows if renderings[row["codepoints"]] >= MINIMUM_RENDERINGS]

    chosen = split_subgroups(rows)
    rows = sorted((row | {"split": chosen[row["subgroup"]]} for row in rows), key=lambda row: row["file"])
    files = {"index.csv": table(rows), "LICENCES.md": licences(rows).encode()}
    files |= {row["file"]: webp(pictures[row["file"]]) for row in tqdm(rows, desc="compress")}
    target.mkdir(parents=True, exist_ok=True)
    write(target / "emoji.zip", pack(files))
    write(target / "emoji_licences.md", files["LICENCES.md"])
    return rows, left_out


def main(
    packages: Annotated[Path, typer.Option(help="Folder of npm tarballs; missing ones are fetched into it.")] = CACHE,
    target: Annotated[Path, typer.Option(help="Folder to write emoji.zip and emoji_licences.md to.")] = TARGET,
):
    "Build the emoji benchmark."
    rows, left_out = build(packages, target)
    for reason, count in left_out.items():
        print(f"left out, {reason}: {count} pictures")
    for split in FRACTIONS:
        ours = [row for row in rows if row["split"] == split]
        print(f"{split}: {len({r['codepoints'] for r in ours})} emoji, {len(ours)} pictures, "
              f"{len({r['subgroup'] for r in ours})} subgroups")
    content = (target / "emoji.zip").read_bytes()
    print(f"emoji.zip: {len(content) / 2**20:.1f} MiB, SHA-256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    typer.run(main)
