// The explorer: the package's components in JavaScript, and the pictures of a composition.
// nbs/explorer.ipynb puts this file into its page, with defaults, published losses and numbers to check from the package.

var gradientSurgery = (() => { // not const: JupyterLab runs this a second time where the cell is run again
  "use strict";

  // ---- the components, as in geometry.ipynb and weights.ipynb

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const sigmoid = (z) => 1 / (1 + Math.exp(-z));
  const inverseRoot = (square) => (square > 8 * Number.EPSILON ? 1 / Math.sqrt(square) : 0);
  const tangent = (s) => Math.sqrt(Math.max(0, (1 - s) * (1 + s)));

  const DIRECTIONS = {
    cosine: { distance: (s) => 1 - s, slope: () => 1 },
    euclidean: { distance: (s) => Math.sqrt(Math.max(0, 2 - 2 * s)), slope: (s) => inverseRoot(2 - 2 * s) },
    geodesic: { distance: (s) => Math.acos(clamp(s, -1, 1)), slope: (s) => inverseRoot((1 - s) * (1 + s)) },
    squared: { distance: (s) => 2 - 2 * s, slope: () => 2 },
  };

  const PAIR_WEIGHTS = {
    constant: () => ({ positive: () => 1, negative: () => 1 }),
    linear: ({ margin }) => ({
      positive: (s) => Math.max(0, 1 + margin - s),
      negative: (s) => Math.max(0, s + margin),
    }),
    sigmoid: ({ alpha, beta, base }) => ({
      positive: (s) => sigmoid(-alpha * (s - base)),
      negative: (s) => sigmoid(beta * (s - base)),
    }),
  };

  // T(g) and its derivative; circle's own gap and the gap's two derivatives
  const TRIPLET_WEIGHTS = {
    constant: () => ({ weight: () => 1, slope: () => 0 }),
    hinge: ({ margin }) => ({ weight: (gap) => (gap + margin > 0 ? 1 : 0), slope: () => 0 }),
    sigmoid: ({ scale, margin }) => {
      const weight = (gap) => sigmoid(scale * (gap + margin));
      return { weight, slope: (gap) => scale * weight(gap) * (1 - weight(gap)) };
    },
    circle: ({ scale, margin }) => ({
      ...TRIPLET_WEIGHTS.sigmoid({ scale, margin: 0 }),
      gap: (s_ap, s_an) => s_an ** 2 + (1 - s_ap) ** 2 - 2 * margin ** 2,
      gapSlopes: (s_ap, s_an) => [-2 * (1 - s_ap), 2 * s_an],
    }),
  };

  // ---- a composition, as in surgery.ipynb

  function compose({ direction, pair_weight, triplet_weight, pair = {}, triplet = {} }) {
    const { distance, slope: w } = DIRECTIONS[direction];
    const P = PAIR_WEIGHTS[pair_weight](pair);
    const T = TRIPLET_WEIGHTS[triplet_weight](triplet);
    const gap = T.gap || ((s_ap, s_an) => distance(s_ap) - distance(s_an));
    const gapSlopes = T.gapSlopes || ((s_ap, s_an) => [-w(s_ap), w(s_an)]);
    return {
      w, P, gap,
      T: (s_ap, s_an) => T.weight(gap(s_ap, s_an)),
      integrable: triplet_weight === "constant" || (pair_weight === "constant" && !T.gap),
      coefficients(s_ap, s_an) {
        const weight = T.weight(gap(s_ap, s_an));
        return [-weight * P.positive(s_ap) * w(s_ap), weight * P.negative(s_an) * w(s_an)];
      },
      curl(s_ap, s_an) {
        const [by_ap, by_an] = gapSlopes(s_ap, s_an);
        return T.slope(gap(s_ap, s_an)) * (by_ap * P.negative(s_an) * w(s_an) + by_an * P.positive(s_ap) * w(s_ap));
      },
    };
  }

  const tangentLength = (direction, s) => DIRECTIONS[direction].slope(s) * tangent(s);

  const linspace = (from, to, number) => Array.from({ length: number }, (_, i) => from + ((to - from) * i) / (number - 1));

  // the steps along the sphere on a grid of the square: [s_ap, s_an, right, up] of each point, row by row
  function field(composition, number) {
    const s = linspace(-0.96, 0.96, number);
    return s.flatMap((s_an) => s.map((s_ap) => {
      const [c_ap, c_an] = composition.coefficients(s_ap, s_an);
      return [s_ap, s_an, -c_ap * tangent(s_ap), -c_an * tangent(s_an)];
    }));
  }

  // how alike two fields are: the cosine between them, as in the map of unification.ipynb
  function nearest(composition, published, number) {
    const own = field(composition, number).flatMap(([, , right, up]) => [right, up]);
    const dot = (a, b) => a.reduce((sum, value, i) => sum + value * b[i], 0);
    const size = Math.sqrt(dot(own, own)) || 1;
    return published
      .map((loss) => ({ ...loss, cosine: dot(own, loss.field) / (size * Math.sqrt(dot(loss.field, loss.field))) }))
      .sort((one, other) => other.cosine - one.cosine);
  }

  // ---- particles on the sphere, as in flows.ipynb, all triplets acting

  const along = (a, b) => a.reduce((sum, value, k) => sum + value * b[k], 0);

  function gradients(composition, f, labels) {
    const S = f.map((a) => f.map((b) => along(a, b)));
    const gradient = f.map((a) => a.map(() => 0));
    const pull = (i, j, coefficient) => f[i].forEach((_, k) => {
      gradient[i][k] += coefficient * f[j][k];
      gradient[j][k] += coefficient * f[i][k];
    });
    const others = (a, same) => labels.flatMap((label, i) => (i !== a && (label === labels[a]) === same ? [i] : []));
    f.forEach((_, a) => {
      const negatives = others(a, false);
      const pushes = negatives.map(() => 0);
      for (const p of others(a, true)) {
        let pulls = 0;
        negatives.forEach((n, k) => {
          const T = composition.T(S[a][p], S[a][n]);
          pulls += T;
          pushes[k] += T;
        });
        pull(a, p, -pulls * composition.P.positive(S[a][p]) * composition.w(S[a][p]));
      }
      negatives.forEach((n, k) => pull(a, n, pushes[k] * composition.P.negative(S[a][n]) * composition.w(S[a][n])));
    });
    return gradient.map((g, i) => g.map((value, k) => value - along(g, f[i]) * f[i][k]));
  }

  function flow(composition, start, labels, steps = 200, step = 0.04) {
    const way = [start];
    for (let t = 0; t < steps; t++) {
      const f = way[t], gradient = gradients(composition, f, labels);
      const size = Math.max(1e-12, Math.sqrt(gradient.flat().reduce((sum, g) => sum + g * g, 0) / f.length));
      way.push(f.map((x, i) => {
        const moved = x.map((value, k) => value - (step * (1 - t / steps) * gradient[i][k]) / size);
        const length = Math.sqrt(along(moved, moved));
        return moved.map((value) => value / length);
      }));
    }
    return way;
  }

  // mean similarity of the pairs of one class, and of pairs of two
  function meanSimilarities(f, labels) {
    const sums = [[0, 0], [0, 0]];
    f.forEach((a, i) => f.slice(0, i).forEach((b, j) => {
      const sum = sums[labels[i] === labels[j] ? 0 : 1];
      sum[0] += along(a, b);
      sum[1] += 1;
    }));
    return sums.map(([sum, number]) => sum / number);
  }

  // ---- the state, and the address that holds it

  const COMPONENTS = ["direction", "pair_weight", "triplet_weight"];
  const WEIGHTS = { pair: "pair_weight", triplet: "triplet_weight" };
  const write = (value) => String(Number(value.toPrecision(4)));

  // `options` has, for each component, its names, and for each name its parameters: {default, low, high, log}
  function toHash(state) {
    const parts = COMPONENTS.map((component) => [component, state[component]]);
    for (const side of Object.keys(WEIGHTS))
      for (const [name, value] of Object.entries(state[side])) parts.push([`${side}.${name}`, write(value)]);
    parts.push(["s_ap", write(state.s_ap)], ["s_an", write(state.s_an)]);
    return "#" + new URLSearchParams(parts);
  }

  // what the address does not say, or says wrongly, is as the package has it by default
  function fromHash(hash, options) {
    const said = new URLSearchParams(hash.replace(/^#/, ""));
    const number = (key, { default: usual, low, high }) => {
      const value = Number.parseFloat(said.get(key));
      return Number.isFinite(value) ? clamp(value, low, high) : usual;
    };
    const state = Object.fromEntries(COMPONENTS.map((component) => {
      const name = said.get(component);
      return [component, Object.hasOwn(options[component], name) ? name : options.defaults[component]];
    }));
    for (const [side, component] of Object.entries(WEIGHTS)) {
      const parameters = Object.entries(options[component][state[component]]);
      state[side] = Object.fromEntries(parameters.map(([name, range]) => [name, number(`${side}.${name}`, range)]));
    }
    state.s_ap = number("s_ap", { default: 0.3, low: -1, high: 1 });
    state.s_an = number("s_an", { default: 0.6, low: -1, high: 1 });
    return state;
  }

  // what this file computes for the settings of which the package's numbers are known: the largest difference
  function disagreement(checks) {
    const apart = checks.flatMap(({ state, s_ap, s_an, c_ap, c_an, curl }) => {
      const composition = compose(state);
      const found = [...composition.coefficients(s_ap, s_an), composition.curl(s_ap, s_an)];
      return [c_ap, c_an, curl].map((value, i) => Math.abs(value - found[i]) / Math.max(1, Math.abs(value)));
    });
    return Math.max(...apart);
  }

  return {
    WEIGHTS, compose, tangent, tangentLength, linspace, field, nearest, flow, meanSimilarities, toHash, fromHash, write,
    disagreement,
    coefficients: (state, s_ap, s_an) => compose(state).coefficients(s_ap, s_an),
    curl: (state, s_ap, s_an) => compose(state).curl(s_ap, s_an),
  };
})();
window.gradientSurgery = gradientSurgery;

// ---- the page

(() => {
  "use strict";
  const { WEIGHTS, compose, tangent, tangentLength, linspace, field, toHash, fromHash, write } = gradientSurgery;
  const root = document.getElementById("explorer");
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const CLASS_COLOURS = data.class_colours;
  let state, way;

  // ---- drawing: each picture is a string of SVG, with the square of similarities at the same place

  const SIZE = 300, LEFT = 44, TOP = 12, WIDTH = LEFT + SIZE + 12, HEIGHT = TOP + SIZE + 42;
  const x = (s) => LEFT + ((s + 1) / 2) * SIZE;
  const y = (s) => TOP + ((1 - s) / 2) * SIZE;
  const subscript = (name) => `${name[0]}<tspan class="sub" dy="4">${name.slice(2)}</tspan><tspan dy="-4">`;
  const svg = (content, width = WIDTH, height = HEIGHT) => `<svg viewBox="0 0 ${width} ${height}" aria-hidden="true">${content}</svg>`;
  const points = (pairs) => pairs.map(([px, py]) => `${px.toFixed(1)},${py.toFixed(1)}`).join(" ");

  function axes(xLabel, yLabel, yTicks = [-1, -0.5, 0, 0.5, 1], place = y) {
    const below = TOP + SIZE;
    const ticks = [-1, -0.5, 0, 0.5, 1].map((s) => `<path d="M${x(s)} ${below}v4"/><text x="${x(s)}" y="${below + 16}">${s}</text>`);
    const aside = yTicks.map((s) => `<path d="M${LEFT - 4} ${place(s)}h4"/><text x="${LEFT - 7}" y="${place(s) + 4}" class="end">${s}</text>`);
    return `<g class="axes"><path d="M${LEFT} ${TOP}V${below}H${LEFT + SIZE}"/>${ticks.join("")}${aside.join("")}
      <text x="${x(0)}" y="${below + 34}">${xLabel}</text>
      <text transform="translate(11 ${y(0)}) rotate(-90)">${yLabel}</text></g>`;
  }
  const S_AP = `${subscript("s_ap")} (the positive is nearer →)</tspan>`;
  const S_AN = `${subscript("s_an")} (the negative is nearer →)</tspan>`;
  const DIAGONAL = `<path class="diagonal" d="M${x(-1)} ${y(-1)}L${x(1)} ${y(1)}"/>`;

  const INSIDE = `<clipPath id="explorer-inside"><rect x="${LEFT}" y="${TOP}" width="${SIZE}" height="${SIZE}"/></clipPath>`;

  // a picture of n by n colours, lowest row first, smoothed by the browser
  function shade(n, colour) {
    const canvas = Object.assign(document.createElement("canvas"), { width: n, height: n });
    const pixels = new ImageData(n, n);
    for (let i = 0; i < n * n; i++) pixels.data.set(colour(i), 4 * ((n - 1 - Math.floor(i / n)) * n + (i % n)));
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return `<image x="${LEFT}" y="${TOP}" width="${SIZE}" height="${SIZE}" href="${canvas.toDataURL()}"/>`;
  }

  // a filled arrow as matplotlib's quiver draws it: a shaft, and a head three times as wide
  function arrow([s_ap, s_an, right, up]) {
    const length = Math.hypot(right, up) * SIZE / 9, head = Math.min(9, length), half = 0.1 * head;
    const [cos, sin] = [right, -up].map((value) => value / Math.hypot(right, up));
    const shape = [[0, half], [length - head, half], [length - head, 3 * half], [length, 0], [length - head, -3 * half], [length - head, -half], [0, -half]];
    return `M${points(shape.map(([u, v]) => [x(s_ap) + u * cos - v * sin, y(s_an) + u * sin + v * cos]))}Z`;
  }

  function drawField(composition) {
    const fine = 49, size = ([, , right, up]) => Math.hypot(right, up);
    const arrows = field(composition, 13), longest = Math.max(1e-12, ...arrows.map(size));
    const shades = field(composition, fine).map(size);
    const acting = arrows.filter((one) => size(one) > 1e-3 * longest);
    const scaled = acting.map(([s_ap, s_an, right, up]) => [s_ap, s_an, right / longest, up / longest]);
    part("field").innerHTML = svg(
      shade(fine, (i) => [0, 0, 0, 255 * Math.min(1, shades[i] / longest / 2.5)]).replace("<image", '<image class="ink"')
      + axes(S_AP, S_AN) + DIAGONAL + INSIDE + `<path class="arrows" clip-path="url(#explorer-inside)" d="${scaled.map(arrow).join("")}"/>`
      + `<circle class="probe" cx="${x(state.s_ap)}" cy="${y(state.s_an)}" r="7"/>`);
    return acting.length / arrows.length;
  }

  function drawWeights({ P }) {
    const s = linspace(-1, 1, 201);
    const curves = [
      ["attraction", "P₊, the pull", P.positive], ["repulsion", "P₋, the push", P.negative],
      ["tangent", "tangent length", (value) => tangentLength(state.direction, clampInside(value))],
    ].map(([style, label, curve]) => ({ style, label, values: s.map(curve) }));
    const top = Math.max(1, ...curves.flatMap(({ values }) => values)) * 1.05;
    const height = (value) => TOP + SIZE * (1 - value / top);
    const lines = curves.map(({ style, values }) => `<polyline class="${style}" points="${points(values.map((value, i) => [x(s[i]), height(value)]))}"/>`);
    part("weights").innerHTML = svg(axes("similarity of the pair", "weight", top > 1.3 ? [0, 1, 2] : [0, 0.5, 1], height) + lines.join(""));
    part("weights-key").innerHTML = curves.map(({ style, label }) => `<li class="${style}">${label}</li>`).join("");
  }
  const clampInside = (s) => Math.min(1 - 1e-9, Math.max(1e-9 - 1, s)); // a limit, at the ends

  function drawCurl(composition) {
    const fine = 49, s = linspace(-0.95, 0.95, fine);
    const curls = s.flatMap((s_an) => s.map((s_ap) => composition.curl(s_ap, s_an)));
    const largest = Math.max(...curls.map(Math.abs)), limit = Math.max(largest, 1e-6);
    const colour = (value) => [...(value > 0 ? [128, 115, 172] : [224, 130, 20]), (255 * Math.abs(value)) / limit];
    part("curl").innerHTML = svg(shade(fine, (i) => colour(curls[i])) + axes(S_AP, S_AN) + DIAGONAL);
    return largest;
  }

  // each class has its own mark, for those who do not see its colour
  const MARKS = ["M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0Z", "M-4.5-4.5h9v9h-9Z", "M0-5.5L5.5 4.5h-11Z"];

  // seen from above the pole round which the particles start; hollow: on the far side
  function drawFlow() {
    const time = Number(part("time").value), centre = 160, radius = 150;
    const place = ([px, py]) => [centre + radius * px, centre - radius * py];
    const ways = way[0].map((_, i) => `<polyline stroke="${CLASS_COLOURS[data.labels[i]]}" points="${points(way.slice(0, time + 1).map((f) => place(f[i])))}"/>`);
    const ends = way[time].map((f, i) => {
      const [px, py] = place(f), colour = CLASS_COLOURS[data.labels[i]];
      return `<path class="mark" d="${MARKS[data.labels[i]]}" transform="translate(${px} ${py})" stroke="${colour}" fill="${f[2] < 0 ? "var(--bs-body-bg, white)" : colour}"/>`;
    });
    part("flow").innerHTML = svg(`<circle class="sphere" cx="${centre}" cy="${centre}" r="${radius}"/><g class="ways">${ways.join("")}</g>${ends.join("")}`, 320, 320);
    const [same, other] = gradientSurgery.meanSimilarities(way[time], data.labels).map((value) => value.toFixed(2));
    part("flow-says").textContent = `After ${time} of ${way.length - 1} steps, the mean similarity within a class is ${same}, between classes ${other}.`;
  }

  // ---- in words

  function verdict({ integrable, gap }, largest) {
    if (integrable && state.triplet_weight === "constant") return "There is a loss behind it: the sum of the works of pull and push.";
    if (integrable) return "There is a loss behind it: the triplet weight's potential, a function of the two distances' difference.";
    if (state.triplet_weight === "hinge" && gap(1, -1) + state.triplet.margin >= 0) // of no triplet is the gap smaller
      return "Every triplet acts: there is a loss behind it, the sum of the works of pull and push.";
    if (state.triplet_weight === "hinge") return "There is no loss behind it. The curl lies on the hinge's edge alone, where this square cannot show it.";
    return `There is no loss behind it: the curl is not zero. Its largest value in this square is ${write(largest)}.`;
  }

  function sayPoint(composition) {
    const { s_ap, s_an } = state, [c_ap, c_an] = composition.coefficients(s_ap, s_an);
    const rows = [
      ["triplet weight", composition.T(s_ap, s_an), null],
      ["pair weight", composition.P.positive(s_ap), composition.P.negative(s_an)],
      ["tangent length", tangentLength(state.direction, s_ap), tangentLength(state.direction, s_an)],
      ["coefficient", c_ap, c_an],
      ["step along the sphere", -c_ap * tangent(s_ap), -c_an * tangent(s_an)],
    ];
    const cell = (value) => `<td>${(value + 0).toFixed(3)}</td>`;
    part("point").innerHTML = rows.map(([name, positive, negative]) => `<tr><th scope="row">${name}</th>`
      + (negative === null ? `<td colspan="2">${positive.toFixed(3)}</td>` : cell(positive) + cell(negative)) + "</tr>").join("");
  }

  function sayNearest(composition) {
    const found = gradientSurgery.nearest(composition, data.published, data.points).slice(0, 5);
    part("nearest").innerHTML = found.map(({ name, page, cosine }) => `<li><a href="${page}">${name}</a> <span>${cosine.toFixed(3)}</span></li>`).join("");
    return found[0];
  }

  let speaking;
  function say(acting, verdict, { name, cosine }) {
    const text = `It acts on ${Math.round(100 * acting)} % of the square. ${verdict} `
      + `The nearest loss of the catalogue is ${name}, with a cosine of ${cosine.toFixed(3)} between the fields.`;
    clearTimeout(speaking); // a screen reader hears where a slider stops, not each step on the way
    speaking = setTimeout(() => { part("summary").textContent = text; }, 150);
  }

  function draw() {
    const composition = compose(state);
    const acting = drawField(composition), largest = drawCurl(composition), words = verdict(composition, largest);
    drawWeights(composition);
    sayPoint(composition);
    part("curl-says").textContent = words;
    way = gradientSurgery.flow(composition, data.start, data.labels, data.steps);
    drawFlow();
    say(acting, words, sayNearest(composition));
    gradientSurgery.state = structuredClone(state);
  }

  // ---- the controls

  const toSlider = ({ log }, value) => (log ? Math.log10(value) : value);
  const fromSlider = ({ log }, value) => Number((log ? 10 ** value : Number(value)).toPrecision(4));

  function slider(label, range, value, change) {
    const holder = document.createElement("label");
    const [low, high] = [range.low, range.high].map((end) => toSlider(range, end));
    holder.innerHTML = `<span>${label}</span><input type="range" min="${low}" max="${high}" step="${range.log ? 0.01 : (high - low) / 200}"><output></output>`;
    const [input, output] = holder.querySelectorAll("input, output");
    const show = (shown) => {
      output.textContent = write(shown);
      input.setAttribute("aria-valuetext", write(shown));
    };
    input.value = toSlider(range, value);
    show(value);
    input.addEventListener("input", () => {
      const chosen = fromSlider(range, input.value);
      show(chosen);
      change(chosen);
    });
    return holder;
  }

  let remembering;
  const changed = () => {
    part("preset").value = "";
    draw();
    clearTimeout(remembering); // Safari refuses more than 100 addresses in half a minute
    remembering = setTimeout(() => history.replaceState(null, "", toHash(state)), 100);
  };

  function controls() {
    for (const component of ["direction", ...Object.values(WEIGHTS)]) part(component).value = state[component];
    for (const [side, component] of Object.entries(WEIGHTS)) {
      const parameters = Object.entries(data.options[component][state[component]]);
      part(side).replaceChildren(...parameters.map(([name, range]) => slider(name, range, state[side][name], (value) => {
        state[side][name] = value;
        changed();
      })));
    }
    part("triplet-point").replaceChildren(...["s_ap", "s_an"].map((name) => slider(
      `s<sub>${name.slice(2)}</sub>`, { low: -1, high: 1 }, state[name], (value) => {
        state[name] = value;
        changed();
      })));
  }

  function choose(next) {
    clearTimeout(remembering);
    state = next;
    controls();
    draw();
  }

  const usual = (component, name) => Object.fromEntries(
    Object.entries(data.options[component][name]).map(([parameter, range]) => [parameter, range.default]));

  function listen() {
    for (const component of ["direction", ...Object.values(WEIGHTS)]) {
      part(component).innerHTML = Object.keys(data.options[component]).map((name) => `<option>${name}</option>`).join("");
      part(component).addEventListener("change", ({ target }) => {
        state[component] = target.value;
        for (const side of Object.keys(WEIGHTS)) if (WEIGHTS[side] === component) state[side] = usual(component, target.value);
        controls();
        changed();
      });
    }
    part("preset").innerHTML = '<option value="">…</option>' + data.presets.map(({ name }, i) => `<option value="${i}">${name}</option>`).join("");
    part("preset").addEventListener("change", ({ target }) => {
      if (target.value === "") return;
      choose({ ...structuredClone(data.presets[target.value].state), s_ap: state.s_ap, s_an: state.s_an });
      history.replaceState(null, "", toHash(state));
    });
    const probe = ({ clientX, clientY, buttons, type }) => {
      if (type === "pointermove" && !buttons) return;
      const box = part("field").querySelector("svg").getBoundingClientRect(), unit = box.width / WIDTH;
      const inside = (value) => Math.min(1, Math.max(-1, Number(value.toFixed(2))));
      state.s_ap = inside((2 * ((clientX - box.left) / unit - LEFT)) / SIZE - 1);
      state.s_an = inside(1 - (2 * ((clientY - box.top) / unit - TOP)) / SIZE);
      controls();
      changed();
    };
    part("field").addEventListener("pointerdown", probe);
    part("field").addEventListener("pointermove", probe);
    part("time").max = data.steps;
    part("time").value = data.steps;
    part("time").addEventListener("input", drawFlow);
    part("play").addEventListener("click", play);
    window.addEventListener("hashchange", () => { if (location.hash.includes("=")) choose(fromHash(location.hash, data.options)); });
  }

  function play() {
    const time = part("time");
    time.value = 0;
    const advance = () => {
      drawFlow();
      if (Number(time.value) < data.steps) {
        time.value = Number(time.value) + 2;
        requestAnimationFrame(advance);
      }
    };
    advance();
  }

  const apart = gradientSurgery.disagreement(data.checks);
  part("check").textContent = apart < 1e-9
    ? `Checked just now, in this browser: ${data.checks.length} settings give the package's numbers, with differences of at most ${apart.toExponential(0)}.`
    : `This page computes otherwise than the package: the numbers differ by up to ${apart.toExponential(0)}.`;
  listen();
  choose(fromHash(location.hash, data.options));
  root.hidden = false;
})();
