"""Leave out of the website's stylesheets what no page uses: rules for classes that no page and no script names.

The themes are whole Bootstraps, one for light and one for dark, and the icons have a rule for each of two thousand.
"""

import re
from pathlib import Path

WORD = re.compile(r"[A-Za-z_][\w-]*")
CLASS = re.compile(r"\.(-?[A-Za-z_][\w-]*)")


def words_of(site: Path) -> set[str]:
    "Every word of every page and script, which includes the names of all classes that can come up."
    files = [file for suffix in ("html", "js") for file in site.rglob(f"*.{suffix}") if file.name != "search.js"]
    return {word for file in files for word in WORD.findall(file.read_text(encoding="utf-8"))}


def without_unused(css: str, words: set[str]) -> str:
    "The stylesheet without the selectors that ask for a class that is not among the words."
    import tinycss2

    kept = []
    for rule in tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True):
        if rule.type == "at-rule" and rule.lower_at_keyword in ("media", "supports") and rule.content is not None:
            inside = without_unused(tinycss2.serialize(rule.content), words)
            kept += [f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inside}}}"] if inside else []
        elif rule.type == "qualified-rule":
            selectors = tinycss2.serialize(rule.prelude)
            # a comma within :not(…) or :is(…) does not part selectors: such a rule stays whole
            parts = [selectors] if "(" in selectors else selectors.split(",")
            used = [part for part in parts if "(" in part or words.issuperset(CLASS.findall(part))]
            kept += [f"{','.join(used)}{{{tinycss2.serialize(rule.content)}}}"] if used else []
        else:
            kept.append(rule.serialize())
    return "".join(kept)


def shrink_stylesheets(site: Path) -> None:
    "Rewrite the stylesheets that the renderer brought; ours are written for these pages."
    try:
        import tinycss2  # noqa: F401
    except ImportError:
        print("tinycss2 is not installed, so the stylesheets keep their size: pip install tinycss2")
        return
    words = words_of(site)
    for sheet in (site / "site_libs").rglob("*.css"):
        sheet.write_text(without_unused(sheet.read_text(encoding="utf-8"), words), encoding="utf-8")
