"""Make the rendered website work without a network, and link its code to the API reference.

Quarto and smalldocs both run this after rendering.

Formulas are set by KaTeX, which both renderers load from a content delivery network: the pages are pointed at the
copy in site/katex instead. Web fonts that themes import are left to the system's fonts. The search index is also
written as a script, which pages can load from disk. Diagrams get a palette and
stylesheets lose what no page uses, which makes both small. The home page, rendered from nbs/index.ipynb, is also reached
from the top of the site.
"""

import json
import os
import re
import shutil
from pathlib import Path

from linking import link_site
from pictures import shrink_pictures
from stylesheets import shrink_stylesheets

ROOT = Path(__file__).resolve().parent.parent
KATEX_CDN = re.compile(r"https://cdn\.jsdelivr\.net/npm/katex@[^/\"']+/dist/")
WEB_FONT = re.compile(r"@import\s+(url\(https?:[^)]*\)|url\([\"']https?:[^\"']*[\"']\)|[\"']https?:[^\"']*[\"'])[^;]*;")
READING_PATH = re.compile(r'<section id="a-reading-path".*?<ol[^>]*>(.*?)</ol>', re.S)
STEP = re.compile(r'<li[^>]*>\s*(?:<p>)?\s*<a href="([^"#]+)"[^>]*>(.*?)</a>', re.S)
HOME = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>gradient_surgery</title>
<meta http-equiv="refresh" content="0; url=nbs/index.html">
<link rel="canonical" href="nbs/index.html">
</head>
<body><p><a href="nbs/index.html">gradient_surgery</a></p></body>
</html>
"""


def localise_maths(site: Path) -> None:
    "Point every page at the site's own copy of KaTeX, which is laid out as on the delivery network."
    shutil.copytree(ROOT / "site" / "katex", site / "katex", dirs_exist_ok=True)
    for page in site.rglob("*.html"):
        local = os.path.relpath(site / "katex", page.parent).replace(os.sep, "/") + "/"
        page.write_text(KATEX_CDN.sub(local, page.read_text(encoding="utf-8")), encoding="utf-8")


def drop_web_fonts(site: Path) -> None:
    "Remove the imports of web fonts from the stylesheets."
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        if "@import" in text:
            sheet.write_text(WEB_FONT.sub("", text), encoding="utf-8")


def add_own_script(site: Path) -> None:
    "Give each page site/page.js, and write the search index as a script, too, for pages that are opened from disk."
    index = json.dumps((site / "search.json").read_text(encoding="utf-8"))
    (site / "search.js").write_text(f"window.searchIndex = {index};\n", encoding="utf-8")
    script = (ROOT / "site" / "page.js").read_text(encoding="utf-8")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8").replace("</head>", f"<script>\n{script}</script>\n</head>", 1)
        page.write_text(text, encoding="utf-8")


def reading_path(home: str) -> list[tuple[str, str]]:
    "The steps of the reading path on the home page: the first link of each item of its list, and the link's text."
    found = READING_PATH.search(home)
    return [(link[1], re.sub(r"<[^>]+>", "", link[2])) for link in STEP.finditer(found[1])] if found else []


def add_reading_path(site: Path) -> None:
    "Say on each page of the reading path what comes before and after it there, which is not the order of the sidebar."
    folder = site / "nbs"
    steps = reading_path((folder / "index.html").read_text(encoding="utf-8"))
    for number, (address, _) in enumerate(steps):
        page = folder / address
        neighbours = {"previous": steps[number - 1 : number], "next": steps[number + 1 : number + 2]}
        links = [
            f'{side.capitalize()}: <a href="{os.path.relpath(folder / other, page.parent).replace(os.sep, "/")}">{title}</a>'
            for side, [(other, title)] in ((side, found) for side, found in neighbours.items() if found)
        ]
        text = f"Reading path, {number + 1} of {len(steps)}. {' · '.join(links)}"
        html = page.read_text(encoding="utf-8")
        place = html.find('<nav class="page-navigation"')
        place = html.rindex("</main>") if place < 0 else place
        line = f'<nav class="reading-path" aria-label="Reading path"><p>{text}</p></nav>\n'
        page.write_text(html[:place] + line + html[place:], encoding="utf-8")


def main() -> None:
    site = Path(os.environ.get("QUARTO_PROJECT_OUTPUT_DIR", ROOT / "_docs")).resolve()
    localise_maths(site)
    drop_web_fonts(site)
    add_own_script(site)
    link_site(site, ROOT / "nbs")
    add_reading_path(site)
    shrink_pictures(site)
    shrink_stylesheets(site)
    (site / "index.html").write_text(HOME, encoding="utf-8")


if __name__ == "__main__":
    main()
