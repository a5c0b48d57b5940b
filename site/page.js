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
