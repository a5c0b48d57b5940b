"""Make the rendered website work without a network. Quarto and smalldocs both run this after rendering.

Formulas are set by KaTeX, which both renderers load from a content delivery network: the pages are pointed at the
copy in site/katex instead. Web fonts that themes import are left to the system's fonts. The search index is also
written as a script, which pages can load from disk. The home page, rendered from nbs/index.ipynb, is also reached
from the top of the site.
"""

import json
import os
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KATEX_CDN = re.compile(r"https://cdn\.jsdelivr\.net/npm/katex@[^/\"']+/dist/")
WEB_FONT = re.compile(r"@import\s+(url\(https?:[^)]*\)|url\([\"']https?:[^\"']*[\"']\)|[\"']https?:[^\"']*[\"'])[^;]*;")
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


def main() -> None:
    site = Path(os.environ.get("QUARTO_PROJECT_OUTPUT_DIR", ROOT / "_docs")).resolve()
    localise_maths(site)
    drop_web_fonts(site)
    add_own_script(site)
    (site / "index.html").write_text(HOME, encoding="utf-8")


if __name__ == "__main__":
    main()
