// Curves of all runs over each other; the legend hides and shows runs in every chart.
const legend = document.getElementById("legend");
const hiddenRuns = new Set();
const redraws = [];

function legendButton(name, run) {
  const line = draw("svg", { viewBox: "0 0 36 10", "aria-hidden": "true" },
    draw("line", { x1: 0, x2: 36, y1: 5, y2: 5, ...styleOf(run) }));
  const button = make("button", { type: "button", "aria-pressed": "true" }, line, make("span", {}, name));
  button.addEventListener("click", () => {
    if (!hiddenRuns.delete(run)) hiddenRuns.add(run);
    button.setAttribute("aria-pressed", String(!hiddenRuns.has(run)));
    for (const redraw of redraws) redraw();
  });
  return button;
}

// The path of a line, broken where there is no number.
function pathOf(line, across, up) {
  let path = "", pen = "M";
  line.x.forEach((x, i) => {
    if (line.y[i] === null) return (pen = "M");
    path += `${pen}${across(x).toFixed(1)} ${up(line.y[i]).toFixed(1)}`;
    pen = "L";
  });
  return path;
}

const nearest = (line, x) =>
  line.x.reduce((best, _, i) => (Math.abs(line.x[i] - x) < Math.abs(line.x[best] - x) ? i : best), 0);

function curveChart(curve) {
  const label = `${curve.title} (${curve.unit}) over steps; arrow keys read its values`;
  const canvas = make("div", { tabindex: "0", role: "img", "aria-label": label });
  const chart = make("figure", { class: "chart" }, make("h3", {}, curve.title), canvas);
  const visible = () => curve.lines.filter((line) => !hiddenRuns.has(line.run));
  let width = 0, area = null, cursor = null;
  const redraw = () => {
    if (!width) return;
    const values = visible().flatMap((line) => line.y.filter((y) => y !== null));
    const low = values.length ? Math.min(...values) : 0, high = values.length ? Math.max(...values) : 1;
    const last = Math.max(1, ...curve.lines.flatMap((line) => line.x));
    const room = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
    area = plane(width, 250, { low: 0, high: last, name: "step" }, { low: low - room, high: high + room, name: curve.unit });
    for (const line of visible()) {
      area.svg.append(draw("path", { d: pathOf(line, area.across, area.up), "data-line": line.run, ...styleOf(line.run) }));
    }
    cursor = draw("line", { class: "cursor", y1: area.top, y2: area.bottom, visibility: "hidden" });
    area.svg.append(cursor);
    area.step = (x) => ((x - area.left) / (area.right - area.left)) * last;
    canvas.replaceChildren(area.svg);
  };
  redraws.push(redraw);
  sized(canvas, (now) => { width = now; redraw(); });
  readable(chart, (share) => {
    const x = Math.min(area.right, Math.max(area.left, share * width));
    const lines = visible();
    if (!lines.length) return null;
    const step = area.step(x);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const texts = lines.map((line) => {
      const i = nearest(line, step);
      const swatch = make("span", { class: "swatch" });
      swatch.style.background = `var(--run-${line.run % 10})`;
      const value = line.y[i] === null ? "no number" : rounded(line.y[i]);
      return make("p", {}, swatch, `${data.runs[line.run]}: ${value}`);
    });
    const at = lines[0].x[nearest(lines[0], step)];
    return { x, lines: [make("p", { class: "muted" }, `step ${rounded(at)}`), ...texts] };
  }, 40);
  chart.addEventListener("pointerleave", () => cursor && cursor.setAttribute("visibility", "hidden"));
  return chart;
}

if (legend) {
  legend.append(...data.runs.map(legendButton));
  document.getElementById("curves").append(...data.curves.map(curveChart));
}
