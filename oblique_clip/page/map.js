// Small pictures where the chosen run's model sees them; one stop of the Tab key, and arrow keys from one to the next.
const mapCanvas = document.getElementById("map-canvas");

function showPicture(map, i) {
  const picture = data.pictures[map.pictures[i]];
  const right = map.right[i];
  const sign = make("span", { class: right ? "right" : "wrong" }, right ? "✓ right" : "✗ wrong");
  document.getElementById("map-picture").replaceChildren(
    make("img", { src: picture.address, alt: picture.caption }),
    make("p", { class: "name" }, picture.caption),
    make("p", { class: "muted" }, picture.source),
    make("p", {}, "taken for: ", map.predicted[i], " ", sign),
  );
}

// The nearest point within the quarter that an arrow points at.
function neighbour(map, from, [dx, dy]) {
  let best = from, least = Infinity;
  map.x.forEach((x, i) => {
    const along = (x - map.x[from]) * dx + (map.y[i] - map.y[from]) * dy;
    const aside = Math.abs((x - map.x[from]) * dy) + Math.abs((map.y[i] - map.y[from]) * dx);
    const cost = along + 2 * aside;
    if (i !== from && along > 0 && aside <= along && cost < least) [best, least] = [i, cost];
  });
  return best;
}

function drawMap(map, width) {
  const side = Math.max(12, Math.round(0.026 * width));
  const room = width - side - 8;
  const height = Math.ceil(Math.max(...map.y) * room + side + 8);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "group",
    "aria-label": `Map of ${map.x.length} pictures as ${data.runs[map.run]} sees them; arrow keys walk through it` });
  const points = map.pictures.map((number, i) => {
    const picture = data.pictures[number];
    const x = 4 + map.x[i] * room, y = 4 + map.y[i] * room;
    const verdict = map.right[i] ? "right" : "wrong";
    const label = `${picture.caption}; taken for ${map.predicted[i]}, ${verdict}`;
    return draw("g", { class: `point${map.right[i] ? " is-right" : ""}`, tabindex: i ? "-1" : "0", role: "img", "aria-label": label },
      draw("rect", { x: x - 1, y: y - 1, width: side + 2, height: side + 2, rx: 4 }),
      draw("image", { href: picture.address, x, y, width: side, height: side }));
  });
  const ring = draw("rect", { class: "ring", width: side + 4, height: side + 4, rx: 5 });
  const chosen = (i) => {
    points.forEach((point, j) => point.setAttribute("tabindex", i === j ? "0" : "-1"));
    ring.setAttribute("x", 2 + map.x[i] * room);
    ring.setAttribute("y", 2 + map.y[i] * room);
    showPicture(map, i);
  };
  points.forEach((point, i) => {
    point.addEventListener("pointerenter", () => chosen(i));
    point.addEventListener("focus", () => chosen(i));
    point.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!way) return;
      event.preventDefault();
      points[neighbour(map, i, way)].focus();
    });
  });
  // Frames are not hidden by neighbours.
  svg.append(...points.filter((_, i) => !map.right[i]), ...points.filter((_, i) => map.right[i]), ring);
  chosen(0);
  return { svg, points };
}

if (mapCanvas) {
  const field = document.getElementById("map-filter");
  const said = document.querySelector('output[for="map-filter"]');
  let width = 0, run = data.maps[0].run, drawn = null;
  const highlight = () => {
    const word = field.value.trim().toLowerCase();
    const map = data.maps.find((one) => one.run === run);
    let found = 0;
    drawn.points.forEach((point, i) => {
      const has = data.pictures[map.pictures[i]].caption.toLowerCase().includes(word);
      point.classList.toggle("faint", !has);
      found += has;
    });
    said.textContent = word ? `${found} of ${drawn.points.length} pictures` : "";
  };
  const redraw = () => {
    if (!width) return;
    drawn = drawMap(data.maps.find((one) => one.run === run), width);
    mapCanvas.replaceChildren(drawn.svg);
    highlight();
  };
  watchers.push((now) => { run = now; redraw(); });
  field.addEventListener("input", () => drawn && highlight());
  sized(mapCanvas, (now) => { width = now; redraw(); });
}
