"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const hidden = new Set(); // classes whose overlay is off
const FILL = 150, EDGE = 255; // opacity of an overlay inside and along its edge

const images = data.images.map((image, index) => {
  const card = document.querySelectorAll(".card")[index];
  return {
    ...image, card,
    button: card.querySelector(".image"), element: card.querySelector("img"), canvas: card.querySelector("canvas"),
    scoreOf: new Map(image.found.map(([index, score]) => [index, score])),
  };
});
let shown = images; // in their order

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Overlays

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function channels(colour) {
  return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
}

function paint(canvas, image) {
  if (!image.map) return;
  const { width, height, map } = image;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const colours = [null, ...image.overlay_classes.map((index) => hidden.has(index) ? null : channels(data.classes[index].colour))];
  for (let y = 0, at = 0; y < height; y++)
    for (let x = 0; x < width; x++, at++) {
      const label = map[at], colour = colours[label];
      if (!colour) continue;
      const edge = (x > 0 && map[at - 1] !== label) || (x + 1 < width && map[at + 1] !== label) ||
        (y > 0 && map[at - width] !== label) || (y + 1 < height && map[at + width] !== label);
      [pixels.data[4 * at], pixels.data[4 * at + 1], pixels.data[4 * at + 2]] = colour;
      pixels.data[4 * at + 3] = edge ? EDGE : FILL;
    }
  context.putImageData(pixels, 0, 0);
}

function repaint() {
  for (const chip of document.querySelectorAll(".chip"))
    chip.setAttribute("aria-pressed", !hidden.has(Number(chip.dataset.class)));
  for (const image of images) paint(image.canvas, image);
  if (viewer.open) paint(viewer.querySelector("canvas"), viewed);
}

document.addEventListener("click", (event) => {
  const chip = event.target.closest(".chip");
  if (!chip) return;
  const index = Number(chip.dataset.class);
  if (!hidden.delete(index)) hidden.add(index);
  repaint();
});

// Samples

function arrange() {
  const chosen = byId("class").value === "" ? null : Number(byId("class").value);
  const direction = Number(byId("order").value);
  const score = (image) => chosen === null ? Math.max(0, ...image.scoreOf.values()) : image.scoreOf.get(chosen);
  shown = images.filter((image) => chosen === null || image.scoreOf.has(chosen))
    .sort((one, other) => direction * (score(one) - score(other)));
  for (const image of images) {
    image.card.hidden = !shown.includes(image);
    image.card.querySelector(".chosen").textContent = chosen !== null && !image.card.hidden ? score(image).toFixed(2) : "";
  }
  byId("samples").append(...shown.map((image) => image.card));
  byId("count").textContent = chosen === null ? `${shown.length} images` : `${shown.length} of ${images.length} images`;
}

// One image, enlarged

const viewer = byId("viewer");
let viewed = null;

function scoreRow([index, score, share, lostTo]) {
  const { name, colour } = data.classes[index];
  const label = element("bdi", { textContent: name });
  let what = label;
  if (share !== null) {
    const dot = element("span", { className: "dot" });
    dot.style.setProperty("--colour", colour);
    what = element("button", { type: "button", className: "chip" }, dot, label);
    what.dataset.class = index;
    what.setAttribute("aria-pressed", !hidden.has(index));
  }
  return element("tr", { className: share === null ? "soft" : "" },
    element("td", {}, what, ...(lostTo ? [element("div", { className: "soft", textContent: `lost to: ${lostTo}` })] : [])),
    element("td", { className: "number", textContent: score.toFixed(2) }),
    element("td", { className: "number", textContent: viewed.probabilities ? percent(viewed.probabilities[index]) : "" }),
    element("td", { className: "number", textContent: share === null ? "not found" : percent(share) }));
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function view(image) {
  viewed = image;
  byId("viewer-name").textContent = image.image_id;
  byId("viewer-size").textContent = `${image.original.join(" × ")} pixels; shown at ${image.width} × ${image.height}`;
  Object.assign(viewer.querySelector("img"), { src: image.element.src, alt: image.element.alt });
  viewer.querySelector("tbody").replaceChildren(...[...image.found, ...image.near_misses].map(scoreRow));
  if (!viewer.open) viewer.showModal();
  paint(viewer.querySelector("canvas"), image);
}

function step(by) {
  view(shown[(shown.indexOf(viewed) + by + shown.length) % shown.length]);
}

byId("close").addEventListener("click", () => viewer.close());
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); }); // beside it
viewer.addEventListener("close", () => viewed.button.focus());

// Scores

function range(bin) {
  const from = (bin * data.binWidth).toFixed(2);
  return bin === data.histograms[0][0].length - 1 ? `${from} and more` : `${from} to ${((bin + 1) * data.binWidth).toFixed(2)}`;
}

function histogram(id, counts, name, colour, threshold) {
  const most = Math.max(1, ...counts), total = counts.reduce((sum, count) => sum + count, 0);
  const bars = counts.map((count, bin) => {
    const bar = element("i", { title: `${range(bin)}: ${count.toLocaleString("en")}` });
    bar.style.height = count ? `max(2px, ${(100 * count) / most}%)` : "0";
    return bar;
  });
  if (threshold !== null) {
    const line = element("span", { className: "threshold", title: `threshold ${threshold}` });
    line.style.left = `${Math.min(100, (100 * threshold) / (data.binWidth * counts.length))}%`;
    bars.push(line);
  }
  const peak = total ? `; most often ${range(counts.indexOf(most))}` : "";
  byId(`${id}-note`).textContent = `${total.toLocaleString("en")}${peak}`;
  byId(id).replaceChildren(...bars);
  byId(id).style.setProperty("--colour", colour);
  byId(id).setAttribute("aria-label", `Scores of ${name}, ${id}: ${total.toLocaleString("en")} images${peak}`);
}

function showScores() {
  const index = Number(byId("scores-class").value);
  const { name, colour } = data.classes[index];
  const [others, found] = data.histograms[index];
  histogram("found", found, name, colour, data.thresholds[index]);
  histogram("others", others, name, "var(--grey)", data.thresholds[index]);
  byId("scores-table").tBodies[0].replaceChildren(...found.map((count, bin) => element("tr", {},
    element("th", { scope: "row", textContent: range(bin) }),
    element("td", { className: "number", textContent: count.toLocaleString("en") }),
    element("td", { className: "number", textContent: others[bin].toLocaleString("en") }))));
}

byId("scores-class").addEventListener("change", showScores);
showScores();
if (images.length) {
  for (const image of images) image.button.addEventListener("click", () => view(image));
  byId("class").addEventListener("change", arrange);
  byId("order").addEventListener("change", arrange);
  byId("strength").addEventListener("input", (event) =>
    document.documentElement.style.setProperty("--strength", event.target.value / 100));
  byId("show-all").addEventListener("click", () => { hidden.clear(); repaint(); });
  byId("hide-all").addEventListener("click", () => { data.classes.forEach((_, index) => hidden.add(index)); repaint(); });
  arrange();
  Promise.all(images.map(async (image) => { image.map = await unpack(image.overlay); })).then(repaint);
}
