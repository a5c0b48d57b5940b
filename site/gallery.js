// The gallery's filter. The losses, and what their components are called, stand in the page, written by
// nbs/losses/gallery.ipynb from the catalogue; without this script all losses are shown.
(() => {
  "use strict";
  const form = document.getElementById("gallery-filter");
  const cards = [...document.querySelectorAll("#gallery > li")].map((card) => ({ card, has: JSON.parse(card.dataset.has) }));
  const part = (name) => form.querySelector(`[data-part="${name}"]`);
  const components = Object.keys(cards[0].has);
  const ANY = "";

  // How many losses have each word, of the losses that the other choices leave: an empty choice cannot be made.
  const fits = (has, chosen) => components.every((name) => chosen[name] === ANY || has[name].includes(chosen[name]));
  const chosenNow = () => Object.fromEntries(components.map((name) => [name, form.elements[name].value]));

  const selects = components.map((name) => {
    const label = document.createElement("label");
    const select = Object.assign(document.createElement("select"), { name });
    const words = [...new Set(cards.flatMap(({ has }) => has[name]))];
    if (name !== "family") words.sort((a, b) => a.localeCompare(b, "en")); // families have an order of their own
    select.append(new Option("any", ANY), ...words.map((word) => new Option(word, word)));
    label.append(name.replaceAll("_", " "), select);
    part("choices").append(label);
    return select;
  });

  function show() {
    const chosen = chosenNow();
    let number = 0;
    for (const { card, has } of cards) {
      card.hidden = !fits(has, chosen);
      number += !card.hidden;
    }
    for (const select of selects) for (const option of select.options) {
      const left = cards.filter(({ has }) => fits(has, { ...chosen, [select.name]: option.value })).length;
      option.text = `${option.value === ANY ? "all" : option.value} (${left})`;
      option.disabled = left === 0 && !option.selected;
    }
    part("status").textContent = `${number} of ${cards.length} losses.`;
    part("all").disabled = number === cards.length;
  }

  // The address holds what is chosen: #direction=cosine&family=lists. Any other hash is a place in the page.
  function read() {
    const said = new URLSearchParams(location.hash.slice(1));
    for (const select of selects) {
      select.value = said.get(select.name) ?? ANY;
      if (select.selectedIndex < 0) select.value = ANY;
    }
    show();
  }
  function write() {
    const chosen = Object.entries(chosenNow()).filter(([, word]) => word !== ANY);
    history.replaceState(null, "", chosen.length ? "#" + new URLSearchParams(chosen) : location.pathname + location.search);
    show();
  }

  form.addEventListener("change", write);
  form.addEventListener("submit", (event) => event.preventDefault());
  part("all").addEventListener("click", () => {
    form.reset();
    write();
    selects[0].focus(); // the button is disabled now, and would lose the focus
  });
  window.addEventListener("hashchange", () => {
    if (!location.hash || location.hash.includes("=")) read();
  });
  read();
  form.hidden = false;
})();
