// Two histograms a run: pairs filled under a solid line, all others under a dashed one.
function spreadChart(spread, top) {
  const unit = spread.bounded ? "similarity in units of the range" : "similarity, from the least to the most that occurs";
  const ends = `${rounded(spread.low)} to ${rounded(spread.high)}`;
  const summary =
    `Mean ${rounded(spread.own_mean)} with the own name and ${rounded(spread.others_mean)} with others; the own name is ` +
    `above ${rounded(100 * spread.above)} % of the others.`;
  const label = `Similarities of ${data.runs[spread.run]}. ${summary} Arrow keys read the histograms.`;
  const canvas = make("div", { tabindex: "0", role: "img", "aria-label": label });
  const chart = make("figure", { class: "chart" },
    make("h3", {}, data.runs[spread.run]),
    make("p", {}, `${spread.topology}; the range is ${ends}`), canvas, make("p", {}, summary));
  const bins = spread.own.length;
  let area = null, width = 0;
  sized(canvas, (now) => {
    width = now;
    area = plane(now, 210, { low: 0, high: 1, name: unit }, { low: 0, high: 100 * top * 1.05, name: "% of pairs" });
    for (const kind of ["others", "own"]) {
      const steps = spread[kind].map((share, i) => {
        const y = area.up(100 * share).toFixed(1);
        return `L${area.across(i / bins).toFixed(1)} ${y}L${area.across((i + 1) / bins).toFixed(1)} ${y}`;
      });
      area.svg.append(draw("path", { class: kind, d: `M${area.left} ${area.bottom}${steps.join("")}L${area.right} ${area.bottom}Z` }));
    }
    canvas.replaceChildren(area.svg);
  });
  readable(chart, (share) => {
    const x = Math.min(area.right - 1, Math.max(area.left, share * width));
    const bin = Math.floor(((x - area.left) / (area.right - area.left)) * bins);
    const percent = (kind) => `${rounded(100 * spread[kind][bin])} %`;
    return { x, lines: [
      make("p", { class: "muted" }, `${rounded(bin / bins)} to ${rounded((bin + 1) / bins)}`),
      make("p", {}, `own name (solid): ${percent("own")}`), make("p", {}, `other names (dashed): ${percent("others")}`),
    ] };
  }, bins);
  return chart;
}

const spreads = document.getElementById("spreads");
if (spreads) {
  const top = Math.max(...data.spreads.flatMap((spread) => [...spread.own, ...spread.others]));
  spreads.append(...data.spreads.map((spread) => spreadChart(spread, top)));
}
