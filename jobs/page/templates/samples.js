// The cards: which are shown, in which order, and what stands below them.

const CAPTION_CLASSES = 5;
let shown = images; // in their order
let query = null; // see parseQuery
let typing = 0;
const near = new Set(); // images on the screen or close to it: only these are painted

// Numbers to order by

function closest(side) {
  let least = { margin: Infinity, index: null };
  for (const [index, value] of side.values) {
    const limit = threshold(side, index);
    if (limit === null) continue;
    const room = value >= limit ? (byProbability ? 1 - limit : limit) : limit;
    const margin = Math.min(1, Math.abs(value - limit) / Math.max(room, 1e-9));
    if (margin < least.margin) least = { margin, index };
  }
  return least;
}

function changes(image) {
  const [before, after] = image.sides.map(present);
  return { gained: after.filter((index) => !before.includes(index)), lost: before.filter((index) => !after.includes(index)) };
}

function bestScore(side) {
  if (query?.classes.length) return side.scores.get(query.classes[0]) ?? 0;
  return Math.max(0, ...present(side).map((index) => side.scores.get(index)));
}

const ORDERS = {
  highest: (image) => -Math.max(...image.sides.map(bestScore)),
  lowest: (image) => Math.max(...image.sides.map(bestScore)),
  closest: (image) => Math.min(...image.sides.map((side) => closest(side).margin)),
  difference: (image) => -image.difference,
  changes: (image) => -changes(image).gained.length - changes(image).lost.length,
};

function arranged() {
  const part = byId("search").value.trim().toLowerCase(), onlyMarked = byId("only-marked").checked;
  const kept = images.filter((image) => image.image_id.toLowerCase().includes(part) &&
    (!onlyMarked || marked.has(image.image_id)) && (!query || image.sides.some(query.holds)));
  const order = byId("order").value;
  if (order === "name") return kept.sort((one, other) => (one.image_id < other.image_id ? -1 : 1));
  const keys = new Map(kept.map((image) => [image, ORDERS[order](image)]));
  return kept.sort((one, other) => keys.get(one) - keys.get(other));
}

// What stands below an image

function factOf(image) {
  const order = byId("order").value;
  if (order === "difference") return `${percent(image.difference)} differ`;
  if (order === "changes") return `${changes(image).gained.length} gained, ${changes(image).lost.length} lost`;
  if (order === "closest") {
    const { side, index } = image.sides.map((side) => ({ side, ...closest(side) }))
      .reduce((least, next) => (next.margin < least.margin ? next : least));
    return index === null ? "" : `${data.classes[index].name}: ${valueText(side, index)}`;
  }
  const [index] = query?.classes ?? [];
  const sides = image.sides.filter((side) => side.values.has(index));
  return sides.map((side) => valueText(side, index)).join(" | ");
}

function foundItem(side, index, change) {
  const hollow = !side.masks.has(index);
  return element("li", { className: change, title: hollow ? "The rows have no mask of it" : "" },
    dot(index, hollow), element("bdi", { textContent: data.classes[index].name }),
    element("span", { className: "soft number", textContent: valueText(side, index) }));
}

function fillCaption(image) {
  const found = image.sides.map(present);
  const fact = image.card.querySelector(".fact");
  fact.textContent = factOf(image);
  fact.hidden = !fact.textContent;
  image.card.querySelectorAll(".found").forEach((list, number) => {
    const classes = found[number], other = found[1 - number];
    const items = classes.slice(0, CAPTION_CLASSES).map((index) =>
      foundItem(image.sides[number], index, other && !other.includes(index) ? "change" : ""));
    if (!classes.length) items.push(element("li", { className: "soft", textContent: "only background" }));
    if (classes.length > CAPTION_CLASSES)
      items.push(element("li", { className: "soft", textContent: `and ${classes.length - CAPTION_CLASSES} more` }));
    list.replaceChildren(...items);
  });
}

function refresh(image) {
  fillCaption(image);
  showMark(image.card.querySelector(".mark"), image);
  image.card.classList.toggle("marked", marked.has(image.image_id));
  paintSides(image);
}

// The legend

const legend = data.classes.map(({ name }, index) => {
  const chip = element("button", { type: "button", className: "chip", title: `Show or hide ${name}` }, dot(index), element("bdi", { textContent: name }));
  const count = element("button", { type: "button", className: "of-class" });
  chip.dataset.class = index;
  count.addEventListener("click", () => setQuery(inQuery(index)));
  return { chip, count, row: element("li", {}, chip, count), hasMask: images.some(({ sides }) => sides.some(({ masks }) => masks.has(index))) };
});
byId("legend").append(...legend.map(({ row }) => row));

function fillLegend() {
  const counts = data.runs.map((_, number) => {
    const of = new Map();
    for (const { sides } of images) for (const index of present(sides[number])) of.set(index, (of.get(index) ?? 0) + 1);
    return of;
  });
  legend.forEach(({ chip, count, row, hasMask }, index) => {
    const found = counts.map((of) => of.get(index) ?? 0);
    row.hidden = !hasMask && !found.some(Boolean);
    chip.setAttribute("aria-pressed", !state.hidden.has(index));
    count.textContent = found.join(" | ");
    count.title = `${data.classes[index].name}: found in ${found.join(" and ")} of the ${images.length} images on this page. Press to see only these.`;
  });
}

// Update the page, at most once a frame

let requested = 0;

function update() {
  requested ||= requestAnimationFrame(updateNow);
}

function updateNow() {
  requested = 0;
  const next = arranged(), kept = new Set(next);
  for (const image of images) image.card.hidden = !kept.has(image);
  if (next.some((image, at) => image !== shown[at]) || next.length !== shown.length)
    byId("samples").append(...next.map((image) => image.card));
  shown = next;
  fillLegend();
  byId("count").textContent = shown.length === images.length ? `${images.length} images` : `${shown.length} of ${images.length} images`;
  byId("order-note").textContent = byId("order").value === "closest" ? "Images with a class close to the threshold of presence come first." : "";
  byId("download").disabled = byId("clear-marks").disabled = !marked.size;
  byId("download").textContent = marked.size ? `Download marks (${marked.size})` : "Download marks";
  for (const image of near) refresh(image);
  if (viewer.open) refreshViewer();
}

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const image = images.find(({ card }) => card === target);
    if (!isIntersecting) {
      near.delete(image);
      clearCanvases(image);
    } else {
      near.add(image);
      Promise.all(image.sides.map(unpack)).then(() => near.has(image) && refresh(image));
    }
  }
}, { rootMargin: "600px" });

function clearCanvases(image) {
  for (const { canvas } of image.sides) canvas.width = canvas.height = 0; // gives the memory back
}

window.addEventListener("beforeprint", () => images.forEach(refresh));
window.addEventListener("afterprint", () => images.filter((image) => !near.has(image)).forEach(clearCanvases));

// Controls

function setQuery(text) {
  byId("query").value = text;
  readQuery();
  byId("query").scrollIntoView({ block: "nearest" });
}

function suggest() {
  byId("suggestions").replaceChildren(...suggestions(byId("query").value).map((value) => element("option", { value })));
}

function readQuery() {
  const text = byId("query").value, problem = byId("query-error");
  clearTimeout(typing);
  problem.hidden = true;
  try {
    query = text.trim() ? parseQuery(text) : null;
  } catch (error) {
    if (!(error instanceof QueryError)) throw error;
    problem.textContent = error.message;
    problem.hidden = false;
    query = null;
  }
  byId("query").setAttribute("aria-invalid", !problem.hidden);
  update();
}

function showSettings() {
  const { presence, area } = state;
  const value = byProbability ? `${Math.round(100 * byId("presence").value)} %` : Number(byId("presence").value).toFixed(2);
  byId("presence-value").textContent = presence === null ? `${value}, as labelled` : value;
  byId("area-value").textContent = area ? percent(area) : "any";
  byId("strength-value").textContent = `${byId("strength").value} %`;
  byId("as-labelled").disabled = presence === null && !area;
}

function labelledThreshold() {
  if (byProbability) return data.runs[0].presence;
  return Math.min(...data.runs[0].thresholds.map((value) => value ?? 0));
}

function asLabelled() {
  state.presence = null;
  state.area = 0;
  byId("presence").value = labelledThreshold();
  byId("area").value = 0;
  showSettings();
  update();
}

const examples = legend.map(({ hasMask }, index) => hasMask || data.classes.length < 4 ? inQuery(index) : null).filter(Boolean).slice(0, 3);
Object.assign(byId("presence"), { min: 0, max: byProbability ? 1 : 2, step: 0.01 });
byId("presence-help").textContent =
  `Leaves out classes ${byProbability ? "that are less probable" : "whose score is not above it"}. Below the threshold of the run, classes are named without a mask, because the rows have none.${
    data.runs.some((run) => run.upperBounds) ? " Scores of classes that were not found are upper bounds (--skip-absent)." : ""}`;
byId("query-numbers").textContent =
  `${examples[0]} > 0.6 compares the score, as cliper filter does${byProbability ? `; ${examples[0]} > 60 % compares the probability` : ""}.`;
byId("query").placeholder = examples.length > 2 ? `${examples[0]} and not (${examples[1]} or ${examples[2]})` : examples.join(" and ");
byId("presence").addEventListener("input", (event) => {
  state.presence = Number(event.target.value);
  showSettings();
  update();
});
byId("area").addEventListener("input", (event) => {
  state.area = (event.target.value / 100) ** 2 / 4; // fine steps for small masks, up to a quarter of the image
  showSettings();
  update();
});
byId("strength").addEventListener("input", (event) => {
  document.documentElement.style.setProperty("--strength", event.target.value / 100);
  showSettings();
});
byId("only-differences")?.addEventListener("change", (event) => {
  state.onlyDifferences = event.target.checked;
  update();
});
byId("as-labelled").addEventListener("click", asLabelled);
byId("show-all").addEventListener("click", () => { state.hidden.clear(); update(); });
byId("hide-all").addEventListener("click", () => { data.classes.forEach((_, index) => state.hidden.add(index)); update(); });
byId("query").addEventListener("input", () => {
  clearTimeout(typing);
  suggest();
  typing = setTimeout(readQuery, 300); // half of a word is no mistake
});
byId("query").addEventListener("change", readQuery);
for (const id of ["search", "order", "only-marked"]) byId(id).addEventListener("input", update);
for (const image of images) {
  image.button.addEventListener("click", () => view(image));
  image.card.querySelector(".mark").addEventListener("click", () => mark(image));
}
document.addEventListener("click", (event) => {
  const chip = event.target.closest(".chip");
  if (!chip) return;
  const index = Number(chip.dataset.class);
  if (!state.hidden.delete(index)) state.hidden.add(index);
  update();
});
if (matchMedia("(max-width: 999px)").matches) byId("settings").open = false;
