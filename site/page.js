// A browser lets no page that is opened from disk fetch the search index. There the same index comes as a script.
if (location.protocol === "file:") {
  const fetchFromWeb = window.fetch;
  window.fetch = (what, ...options) => String(what).endsWith("search.json")
    ? new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = String(what).replace(/json$/, "js");
        script.onload = () => resolve(new Response(window.searchIndex));
        script.onerror = reject;
        document.head.append(script);
      })
    : fetchFromWeb(what, ...options);
}

// A row of pictures would be too small to see on a phone: site/style.css lets it scroll instead.
window.addEventListener("load", () => document.querySelectorAll("main img").forEach((image) => {
  image.classList.toggle("wide", image.naturalWidth > 2 * image.naturalHeight);
}));

// What is too wide for the screen scrolls by itself, and so has to be within reach of the keyboard.
const SCROLLING = "main pre, main .cell-output-display, main .sd-table, main .katex-display";
const reachScrolling = () => document.querySelectorAll(SCROLLING).forEach((box) => {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
});
window.addEventListener("load", reachScrolling);
window.addEventListener("resize", reachScrolling);

// Tables: a press on a heading sorts by its column, another turns the order round, a third gives back the page's own.
const MISSING = /^[-–—]?$/;
const NUMBER = /^[<>≤≥~≈]?\s*([+−-]?\d[\d,]*(?:\.\d+)?(?:e[+−-]?\d+)?)\s*(%|[a-zµ]*)/i;
const UNITS = {
  ns: 1e-9, µs: 1e-6, us: 1e-6, ms: 1e-3, s: 1, min: 60, h: 3600,
  B: 1, KB: 1e3, kB: 1e3, MB: 1e6, GB: 1e9, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30,
};
const inOrder = new Intl.Collator("en", { numeric: true }).compare;

// What a cell shows: of a formula its TeX, since what KaTeX writes holds it twice.
const shownIn = (cell) => {
  const copy = cell.cloneNode(true);
  copy.querySelectorAll(".katex").forEach((formula) => formula.replaceWith(formula.querySelector("annotation")?.textContent ?? ""));
  return copy.textContent.trim();
};

// 52.9 ± 0.6, -0.76 (-2.06 to +0.55), 40 %, 2e-16, 5,864 and 12 ms go by their first number; null is no number.
const numberIn = (text) => {
  const [, digits, unit] = text.match(NUMBER) ?? [];
  return digits === undefined ? null : Number(digits.replaceAll(",", "").replaceAll("−", "-")) * (UNITS[unit] ?? 1);
};

// The rows in the order of a column's texts; what is missing comes last in either direction.
const sorted = (rows, texts, direction) => {
  const said = texts.filter((text) => !MISSING.test(text));
  const numeric = said.length > 0 && said.every((text) => numberIn(text) !== null);
  const compare = numeric ? (a, b) => numberIn(a) - numberIn(b) : inOrder;
  const missing = (i) => MISSING.test(texts[i]);
  const places = rows.map((_, i) => i);
  places.sort((i, j) => missing(i) - missing(j) || (missing(i) ? 0 : direction * compare(texts[i], texts[j])) || i - j);
  return places.map((i) => rows[i]);
};

// A row that says only one thing, in its first cell, is the heading of those below it.
const isHeading = (row) => row.cells.length > 2 && row.cells[0].textContent.trim() && [...row.cells].slice(1).every((cell) => !cell.textContent.trim());

function makeSortable(table) {
  const body = table.tBodies[0], asWritten = [...body.rows], headings = [...table.tHead.rows[0].cells];
  const data = asWritten.filter((row) => !isHeading(row));
  headings.forEach((heading, column) => {
    if (!heading.textContent.trim()) return;
    const button = document.createElement("button");
    button.type = "button";
    if (heading.querySelector(".math")) button.ariaLabel = heading.textContent.replace(/\\[()]/g, "").trim(); // its TeX
    button.append(...heading.childNodes);
    heading.append(button);
    heading.classList.add("sortable");
    button.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort");
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      if (before === "descending") {
        body.append(...asWritten);
      } else {
        heading.setAttribute("aria-sort", before === "ascending" ? "descending" : "ascending");
        body.append(...sorted(data, data.map((row) => shownIn(row.cells[column])), before === "ascending" ? -1 : 1));
        asWritten.filter(isHeading).forEach((row) => row.remove()); // they head nothing now
      }
    });
  });
}

// Long tables: a box that leaves only the rows that hold what is written in it. site/style.css keeps its place free.
const LONG = 12; // as in site/style.css
function makeSearchable(table) {
  const rows = [...table.tBodies[0].rows], data = rows.filter((row) => !isHeading(row));
  const box = document.createElement("div");
  box.className = "table-filter";
  box.innerHTML = `<label>Filter <input type="search" autocomplete="off" spellcheck="false"></label> <span role="status"></span>`;
  const [input, status] = box.querySelectorAll("input, span");
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = data.filter((row) => {
      const text = [...row.cells].map(shownIn).join(" ").toLowerCase();
      const fits = words.every((word) => text.includes(word));
      row.classList.toggle("filtered", !fits);
      return fits;
    });
    let heading;
    rows.forEach((row) => { // one that heads no row that is left
      if (isHeading(row)) (heading = row).classList.add("filtered");
      else if (heading && found.includes(row)) heading.classList.remove("filtered");
    });
    if (!words.length) rows.forEach((row) => row.classList.remove("filtered"));
    status.textContent = words.length ? `${found.length} of ${data.length} rows` : "";
  });
  table.before(box);
}

document.addEventListener("DOMContentLoaded", () => document.querySelectorAll("main table").forEach((table) => {
  const plain = table.tHead?.rows.length === 1 && table.tBodies.length === 1 && !table.querySelector("[rowspan], [colspan]");
  if (!plain || table.tBodies[0].rows.length < 3 || table.closest("#explorer")) return;
  makeSortable(table);
  if (table.tBodies[0].rows.length >= LONG) makeSearchable(table);
}));

// What the hidden answer to an exercise prints and draws is hidden with it.
window.addEventListener("load", () => document.querySelectorAll("details.code-fold").forEach((fold) => {
  if (!/^\s*Answers?\s*$/.test(fold.querySelector("summary")?.textContent ?? "")) return;
  while (fold.nextElementSibling?.matches(".cell-output, .cell-output-display")) fold.append(fold.nextElementSibling);
}));
