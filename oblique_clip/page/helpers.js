// Elements are made by name and filled with text alone: nothing that a run says is ever read as markup.
const SVG = "http://www.w3.org/2000/svg";

function make(name, attributes = {}, ...inside) {
  return filled(document.createElement(name), attributes, inside);
}

function draw(name, attributes = {}, ...inside) {
  return filled(document.createElementNS(SVG, name), attributes, inside);
}

function filled(element, attributes, inside) {
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...inside);
  return element;
}

const source = document.getElementById("data");
const data = source ? JSON.parse(source.textContent) : { runs: [], curves: [], spreads: [], maps: [], pictures: {} };

// Run by run another colour and another dash, so that lines differ in grey as well.
const DASHES = ["", "8 4", "2 3", "10 3 2 3", "14 5", "5 2", "1 4", "10 3 2 3 2 3", "16 3 4 3", "3 6"];
const styleOf = (run) => ({ class: `line run-${run % 10}`, "stroke-dasharray": DASHES[run % DASHES.length] || "none" });

function rounded(value) {
  const size = Math.abs(value);
  if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
  return String(Number(value.toPrecision(3)));
}

// About `count` round numbers within [low, high].
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-9; value += step) {
    found.push(Number(value.toPrecision(12)));
  }
  return found;
}

// Axes around a plane; gives the plane's SVG and what turns values into places on it.
function plane(width, height, x, y) {
  const left = 58, right = 20, top = 10, bottom = 40;
  const across = (value) => left + ((value - x.low) / (x.high - x.low || 1)) * (width - left - right);
  const up = (value) => height - bottom - ((value - y.low) / (y.high - y.low || 1)) * (height - top - bottom);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, "aria-hidden": "true" });
  for (const value of ticks(y.low, y.high, 5)) {
    svg.append(
      draw("line", { class: "grid", x1: left, x2: width - right, y1: up(value), y2: up(value) }),
      draw("text", { x: left - 6, y: up(value) + 4, "text-anchor": "end" }, rounded(value)),
    );
  }
  for (const value of ticks(x.low, x.high, Math.max(4, Math.floor(width / 80)))) {
    svg.append(
      draw("line", { class: "axis", x1: across(value), x2: across(value), y1: height - bottom, y2: height - bottom + 4 }),
      draw("text", { x: across(value), y: height - bottom + 17, "text-anchor": "middle" }, rounded(value)),
    );
  }
  const middle = (top + height - bottom) / 2;
  svg.append(
    draw("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    draw("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, x.name),
    draw("text", { x: 14, y: middle, "text-anchor": "middle", transform: `rotate(-90 14 ${middle})` }, y.name),
  );
  return { svg, across, up, left, right: width - right, top, bottom: height - bottom };
}

// A box that draws itself anew whenever its width changes.
function sized(box, drawn) {
  let width = 0;
  new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now && now !== width) drawn((width = now));
  }).observe(box);
}

// Values at a place under the pointer, or at one reached by the arrow keys; `read` gives where it lies and lines of text.
function readable(chart, read, steps) {
  const tip = make("div", { class: "tip", role: "status", hidden: "" });
  chart.append(tip);
  let at = null;
  const show = (share) => {
    at = share;
    const found = share === null ? null : read(share);
    tip.hidden = !found;
    if (!found) return;
    tip.replaceChildren(...found.lines);
    const left = found.x < chart.clientWidth / 2;
    tip.style.left = left ? `${found.x + 24}px` : "auto";
    tip.style.right = left ? "auto" : `${chart.clientWidth - found.x}px`;
    tip.style.top = "3rem";
  };
  const point = (event) => {
    const svg = chart.querySelector("svg");
    if (svg) show((event.clientX - svg.getBoundingClientRect().left) / svg.clientWidth);
  };
  chart.addEventListener("pointermove", point);
  chart.addEventListener("pointerdown", point);
  chart.addEventListener("pointerleave", () => show(null));
  chart.addEventListener("focusout", () => show(null));
  chart.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") show(null);
    if (!move) return;
    event.preventDefault();
    show(Math.min(1, Math.max(0, (at === null ? 0.5 : at) + move / steps)));
  });
}
