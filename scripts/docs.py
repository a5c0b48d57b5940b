"""Build the website from the notebooks' saved outputs: with Quarto where it is on PATH, else with smalldocs."""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
QUARTO_ONLY = {  # smalldocs never executes anything and always writes formulas for KaTeX
    "execute.enabled is ignored: smalldocs runs no code",
    "format.html.html-math-method is ignored",
}


def with_quarto(output: Path) -> int:
    return subprocess.run(["quarto", "render", str(ROOT), "--output-dir", str(output)]).returncode


def with_smalldocs(output: Path) -> int:
    "Render with smalldocs; a broken link or an option it does not know is an error."
    from smalldocs.config import BuildError, ConfigError, load
    from smalldocs.site import Site

    try:
        site = Site(load(ROOT), quiet=True)
        site.out = output
        pages = site.build()
    except (BuildError, ConfigError) as error:
        print(error, file=sys.stderr)
        return 1
    # a link from the root is the sidebar's, and would be reported for each page that shows the sidebar
    warnings = dict.fromkeys(re.sub(r"^.*: (broken link /)", r"_quarto.yml: \1", warning) for warning in site.warnings)
    complaints = [warning for warning in warnings if warning not in QUARTO_ONLY]
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    print(f"{pages} pages in {output}")
    return 1 if complaints else 0


RENDERERS = {"quarto": with_quarto, "smalldocs": with_smalldocs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "_docs", help="folder for the site (default: _docs)")
    parser.add_argument("--renderer", choices=RENDERERS, default="quarto" if shutil.which("quarto") else "smalldocs")
    arguments = parser.parse_args()
    return RENDERERS[arguments.renderer](arguments.output.resolve())


if __name__ == "__main__":
    sys.exit(main())
