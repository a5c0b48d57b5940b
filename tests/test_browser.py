"""The website in Chromium, from disk: pages load without errors, formulas are set, search finds, and the explorer computes what the package does.

Needs Chromium (Debian: `apt-get install chromium`; or CHROMIUM=/path/to/it) and playwright, which drives it.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import torch

from gradient_surgery.flows import flow, nearest_loss, particles
from gradient_surgery.geometry import tangent_length
from gradient_surgery.surgery import GradientSurgery
from gradient_surgery.weights import PAIR_WEIGHTS, TRIPLET_WEIGHTS

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
SCANNED = ["index", "losses/triplet", "losses/catalogue", "explorer", "losses/gallery", "tutorials/own_images", "api/mathematics"]
MEGABYTE = 1_000_000
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium, or set CHROMIUM")


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(browser: "playwright.Browser", complaints: list[str]) -> Iterator["playwright.Page"]:
    "A fresh page that writes what goes wrong in it to `complaints`."
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(f"{request.url}: {request.failure}"))
    page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
    yield page
    context.close()


@pytest.fixture
def explorer(page: "playwright.Page", site: Path) -> Callable[..., "playwright.Page"]:
    "Opens the explorer with an address."

    def opened(address: str = "") -> "playwright.Page":
        page.goto("about:blank")  # else an address that differs in its hash only is not loaded again
        page.goto((site / "nbs" / "explorer.html").as_uri() + address)
        page.wait_for_selector("#explorer:not([hidden]) [data-part=summary]:not(:empty)")
        return page

    return opened


def size_on_disk(address: str) -> int:
    return Path(url2pathname(urlsplit(address).path)).stat().st_size


def test_every_page_loads_and_fits(page: "playwright.Page", site: Path, complaints: list[str]) -> None:
    look = r"""() => {
        const words = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
        let raw = 0;
        while (words.nextNode()) {
            const { data, parentElement } = words.currentNode;
            raw += /\$\$|\\begin\{|\\frac/.test(data) && !parentElement.closest("pre, code, script, style, annotation, textarea");
        }
        return {
            raw,
            unset: document.querySelectorAll(".math").length - document.querySelectorAll(".math .katex-html").length,
            wrong: document.querySelectorAll(".katex-error").length,
            too_wide: document.documentElement.scrollWidth - innerWidth,
        };
    }"""
    loaded, odd = set(), {}
    page.on("request", lambda request: loaded.add(request.url) if request.url.startswith("file:") else None)
    for path in sorted((site / "nbs").rglob("*.html")):
        loaded.clear()
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(path.as_uri())
        desktop = page.evaluate(look)
        desktop["too_heavy"] = weight if (weight := sum(map(size_on_disk, loaded))) > 2 * MEGABYTE else 0
        page.set_viewport_size({"width": 390, "height": 844})
        odd |= {f"{path.stem}, {size}": seen for size, seen in (("desktop", desktop), ("phone", page.evaluate(look))) if any(seen.values())}
    assert (complaints, odd) == ([], {})


def test_sets_formulas_of_several_lines(page: "playwright.Page", tmp_path: Path, site: Path) -> None:
    page.goto((site / "nbs" / "geometry.html").as_uri())
    page.evaluate(r"""katex.render("\\begin{aligned} a &= b \\\\ c &= d \\end{aligned}", document.querySelector("main p"), {displayMode: true})""")
    assert page.locator("main p .katex-html .col-align-l").count() > 0


def test_search_finds_a_loss(page: "playwright.Page", site: Path) -> None:
    page.goto((site / "nbs" / "index.html").as_uri())
    page.locator(".smalldocs-search input").first.fill("multi-similarity")
    found = page.locator(".smalldocs-search a[href*='losses/multi_similarity.html']").first
    found.wait_for()
    found.click()
    assert page.title().startswith("Multi-similarity")


@pytest.mark.parametrize("scheme, width", [("light", 1280), ("dark", 390)])
@pytest.mark.parametrize("name", SCANNED)
def test_is_accessible(browser: "playwright.Browser", site: Path, name: str, scheme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs pip install axe-playwright-python")
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    page.goto((site / "nbs" / f"{name}.html").as_uri())
    page.wait_for_timeout(300)  # the theme is read by a timer
    found = axe.Axe().run(page, options={"resultTypes": ["violations"]}).response["violations"]
    page.close()
    serious = [
        f"{one['id']} ({one['impact']}): {node['html'][:200]}"
        for one in found if one["impact"] in ("serious", "critical") for node in one["nodes"]
    ]
    assert serious == []


def settings() -> Iterator[tuple[dict, GradientSurgery]]:
    "Every combination of components as the page names it and as the package has it, with parameters drawn at random."
    generator = torch.Generator().manual_seed(3)
    draw = lambda low, high: low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()
    margin, sharpness = (lambda: draw(0, 0.6)), (lambda: draw(1, 60))
    pairs = {
        "constant": dict, "linear": lambda: {"margin": margin()},
        "sigmoid": lambda: {"alpha": sharpness(), "beta": sharpness(), "base": draw(-0.5, 0.8)}}
    triplets = {
        "constant": dict, "hinge": lambda: {"margin": margin()},
        "sigmoid": lambda: {"scale": sharpness(), "margin": margin()}, "circle": lambda: {"scale": sharpness(), "margin": margin()}}
    assert (pairs.keys(), triplets.keys()) == (PAIR_WEIGHTS.keys(), TRIPLET_WEIGHTS.keys())
    for direction, pair, triplet in product(["cosine", "euclidean", "geodesic", "squared"], pairs, triplets):
        state = {
            "direction": direction, "pair_weight": pair, "triplet_weight": triplet,
            "pair": pairs[pair](), "triplet": triplets[triplet]()}
        weights = PAIR_WEIGHTS[pair](**state["pair"]), TRIPLET_WEIGHTS[triplet](**state["triplet"])
        yield state, GradientSurgery(direction, *weights, "all")


def test_explorer_computes_what_the_package_does(explorer: Callable, complaints: list[str]) -> None:
    page = explorer()
    s = torch.tensor([-1, -0.9, -0.31, 0.02, 0.4, 0.77, 0.999, 1], dtype=torch.float64)
    s_ap, s_an = (grid.flatten() for grid in torch.meshgrid(s, s, indexing="ij"))
    states, losses = zip(*settings())
    ask = """([states, pairs]) => states.map((state) => pairs.map(([s_ap, s_an]) =>
        [...gradientSurgery.coefficients(state, s_ap, s_an), gradientSurgery.curl(state, s_ap, s_an),
         gradientSurgery.tangentLength(state.direction, s_ap)]))"""
    answers = torch.tensor(page.evaluate(ask, [states, list(zip(s_ap.tolist(), s_an.tolist()))]), dtype=torch.float64)
    inside = (s_ap.abs() < 1) & (s_an.abs() < 1)  # at the ends distances have no derivative
    for state, loss, answer in zip(states, losses, answers):
        c_ap, c_an, curl, length = answer.T
        torch.testing.assert_close((c_ap, c_an), loss.pair_coefficients(s_ap, s_an), rtol=1e-10, atol=1e-10, msg=str(state))
        torch.testing.assert_close(curl[inside], loss.curl(s_ap, s_an)[inside], rtol=1e-8, atol=1e-8, msg=str(state))
        torch.testing.assert_close(length, tangent_length(state["direction"], s_ap), rtol=1e-10, atol=1e-10)
        assert page.evaluate("(state) => gradientSurgery.compose(state).integrable", state) == loss.integrable
    assert complaints == []


def test_explorer_moves_particles_as_the_package_does(explorer: Callable) -> None:
    page = explorer()
    start, labels = particles(num_classes=3, per_class=4)
    for state, loss in list(settings())[1::9]:
        way = page.evaluate(
            "([state, start, labels]) => gradientSurgery.flow(gradientSurgery.compose(state), start, labels, 25)",
            [state, start.tolist(), labels.tolist()])
        expected = flow(loss, start, labels, steps=25)
        torch.testing.assert_close(torch.tensor(way, dtype=torch.float64), expected, rtol=1e-6, atol=1e-6, msg=str(state))


@pytest.mark.parametrize("margin", [2, 1.9])
def test_explorer_knows_the_loss_of_a_hinge_that_always_acts(explorer: Callable, margin: float) -> None:
    page = explorer(f"#direction=euclidean&pair_weight=linear&triplet_weight=hinge&triplet.margin={margin}")
    loss = GradientSurgery("euclidean", "linear", TRIPLET_WEIGHTS["hinge"](margin=margin), "all")
    exists = nearest_loss(loss.pair_coefficients)[1] < 1e-9
    assert exists == (margin == 2)
    assert ("there is a loss" if exists else "There is no loss") in page.locator("[data-part=curl-says]").inner_text()


def test_explorer_writes_the_address_once_a_slider_stops(explorer: Callable, complaints: list[str]) -> None:
    page = explorer()
    written = page.evaluate("""async () => {
        let written = 0;
        const write = history.replaceState.bind(history), slider = document.querySelector("[data-part=triplet-point] input");
        history.replaceState = (...words) => { written += 1; write(...words); };
        for (let step = 0; step < 20; step++) {
            slider.value = step / 100;
            slider.dispatchEvent(new Event("input"));
        }
        await new Promise((done) => setTimeout(done, 1000));
        return written;
    }""")
    assert (written, complaints) == (1, [])
    assert "s_ap=0.19&" in page.evaluate("location.hash")


def test_explorer_runs_twice_in_one_page(explorer: Callable, root: Path, complaints: list[str]) -> None:
    page = explorer()
    page.add_script_tag(content=(root / "site" / "explorer.js").read_text(encoding="utf-8"))
    assert len(set(page.locator("[data-part=flow] .mark").evaluate_all("all => all.map((one) => one.getAttribute('d'))"))) == 3
    assert complaints == []


def shown(page: "playwright.Page", row: str) -> list[float]:
    cells = page.locator("[data-part=point] tr", has=page.get_by_role("rowheader", name=row)).locator("td")
    return [float(text) for text in cells.all_inner_texts()]


def test_explorer_shows_the_numbers_and_keeps_them_in_the_address(explorer: Callable, complaints: list[str]) -> None:
    page = explorer("#direction=geodesic&pair_weight=linear&triplet_weight=sigmoid&pair.margin=0.5&triplet.scale=3&s_ap=0.25&s_an=-0.4")
    loss = GradientSurgery("geodesic", PAIR_WEIGHTS["linear"](margin=0.5), TRIPLET_WEIGHTS["sigmoid"](scale=3))
    at = torch.tensor([0.25, -0.4], dtype=torch.float64)
    assert shown(page, "coefficient") == pytest.approx([c.item() for c in loss.pair_coefficients(*at)], abs=6e-4)
    assert "the package's numbers" in page.locator("[data-part=check]").inner_text()
    assert "no loss" in page.locator("[data-part=summary]").inner_text()

    page.get_by_label("pair weight", exact=True).select_option("constant")
    page.get_by_label("scale").focus()
    page.keyboard.press("ArrowRight")  # by the keyboard alone
    said = page.evaluate("gradientSurgery.state")
    assert said["triplet"]["scale"] > 3 and said["pair"] == {}
    loss = GradientSurgery("geodesic", "constant", TRIPLET_WEIGHTS["sigmoid"](**said["triplet"]))
    assert shown(page, "coefficient") == pytest.approx([c.item() for c in loss.pair_coefficients(*at)], abs=6e-4)
    page.wait_for_function("document.querySelector('[data-part=summary]').textContent.includes('There is a loss')")

    address = page.evaluate("location.hash")
    assert explorer(address).evaluate("gradientSurgery.state") == said
    assert complaints == []


def test_explorer_starts_from_a_published_loss(explorer: Callable) -> None:
    page = explorer()
    page.get_by_label("start from").select_option("CosFace")
    page.wait_for_function("document.querySelector('[data-part=summary]').textContent.includes('CosFace, with a cosine of 1.000')")
    assert page.evaluate("gradientSurgery.state.triplet") == {"scale": 64, "margin": 0.35}


@pytest.mark.parametrize("address", ["#direction=sideways&pair.margin=x", "#triplet_weight=toString", "#s_ap=1e9&pair_weight=linear&pair.margin=-7", "#what-it-computes"])
def test_explorer_withstands_an_address_that_says_nothing(explorer: Callable, complaints: list[str], address: str) -> None:
    state = explorer(address).evaluate("gradientSurgery.state")
    assert state["direction"] == "euclidean" and -1 <= state["s_ap"] <= 1
    assert complaints == []


def test_explorer_page_holds_the_files_of_the_site(root: Path) -> None:
    notebook = json.loads((root / "nbs" / "explorer.ipynb").read_text(encoding="utf-8"))
    saved = "".join("".join(output["data"].get("text/html", "")) for cell in notebook["cells"] for output in cell.get("outputs", []) if "data" in output)
    for kind in ("css", "html", "js"):
        assert (root / "site" / f"explorer.{kind}").read_text(encoding="utf-8") in saved, f"run nbs/explorer.ipynb: explorer.{kind} has changed"
