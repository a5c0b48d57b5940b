"""How much the pages of the website load, and how soon something is seen, in Chromium from localhost.

Bytes are those of the page and of all that it requests, uncompressed, as `python -m http.server` sends them; the cache
is empty each time. Paint is the first contentful paint after the request, the median over the rounds. Build the site
first: `make docs`. Needs Chromium (or CHROMIUM=/path/to/it) and playwright.

    python benchmarks/pages.py --site _docs --painted index losses/circle --output runs/speed/pages.json
"""

import argparse
import functools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

from measuring import facts, in_own_process, write

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FIRST_PAINT = """() => new Promise((resolve) => new PerformanceObserver((list) =>
    list.getEntriesByName("first-contentful-paint").forEach((paint) => resolve(paint.startTime))
).observe({ type: "paint", buffered: true }))"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@contextmanager
def served(site: Path) -> Iterator[str]:
    "The address of a folder on localhost."
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def load(browser, address: str) -> tuple[int, int, float]:
    "Bytes and files that a page loads, and its first contentful paint in milliseconds."
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, answers = context.new_page(), []
    page.on("response", lambda answer: answers.append(answer) if answer.url.startswith("http") else None)
    page.goto(address)
    paint = page.evaluate(FIRST_PAINT)
    size = sum(len(answer.body()) for answer in answers)
    context.close()
    return size, len(answers), paint


def measured(options: argparse.Namespace) -> list[dict]:
    from playwright.sync_api import sync_playwright

    folder = options.site / "nbs"
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in sorted(folder.rglob("*.html"))]
    with served(options.site) as root, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        rows = []
        for name in names:
            size, files, _ = load(browser, f"{root}/nbs/{name}.html")
            rows.append({"page": name, "bytes": size, "files": files, "first_paint_ms": None})
        rows.sort(key=lambda row: -row["bytes"])
        for row in rows:
            if row["page"] in options.painted or row is rows[0]:
                paints = [load(browser, f"{root}/nbs/{row['page']}.html")[2] for _ in range(options.rounds)]
                row["first_paint_ms"] = median(paints)
        browser.close()
    return rows


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, default=Path("_docs"), help="folder of the built website")
    parser.add_argument(
        "--painted", nargs="*", default=["index", "losses/circle", "losses/catalogue", "explorer"], metavar="PAGE",
        help="pages whose first paint is measured, besides the heaviest")
    parser.add_argument("--rounds", type=int, default=5, help="loads for each paint")
    parser.add_argument("--output", default="runs/speed/pages.json", metavar="FILE")
    return parser.parse_args(words)


def main(options: argparse.Namespace) -> None:
    if not (options.site / "nbs" / "index.html").is_file():
        raise SystemExit(f"--site is {options.site}, which holds no website; expected one that `make docs` has built")
    rows = measured(options)
    settings = {"rounds": options.rounds, "painted": options.painted, "browser": "Chromium, headless, 1280 x 900"}
    result = {"benchmark": "pages"} | in_own_process(facts, "cpu", 1)
    write(options.output, result | {"settings": settings, "rows": rows})
    for row in rows:
        paint = "" if row["first_paint_ms"] is None else f"first paint after {row['first_paint_ms']:.0f} ms"
        print(f"{row['page']:40} {row['bytes'] / 1e6:6.2f} MB in {row['files']:2} files  {paint}")


if __name__ == "__main__":
    main(arguments())
