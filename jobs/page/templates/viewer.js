// One image, enlarged

const viewer = byId("viewer");
const NEAR_MISSES = 5; // classes that are listed although they were not found, highest score first
let viewed = null;
let lit = null; // the class whose row is pointed at

function viewerRow(side, index) {
  const share = side.masks.get(index), found = isPresent(side, index);
  const label = element("bdi", { textContent: data.classes[index].name });
  let what = label;
  if (share !== undefined) {
    what = element("button", { type: "button", className: "chip" }, dot(index), label);
    what.dataset.class = index;
    what.setAttribute("aria-pressed", !state.hidden.has(index));
  }
  const lostTo = side.lostTo.get(index);
  const row = element("tr", { className: found ? "" : "soft" },
    element("td", {}, what, ...(lostTo ? [element("div", { className: "soft", textContent: `lost to: ${lostTo}` })] : [])),
    element("td", { className: "number", textContent: side.scores.get(index).toFixed(2) }),
    element("td", { className: "number", textContent: side.probabilities ? percent(side.probabilities.get(index)) : "" }),
    element("td", { className: "number", textContent: share === undefined ? (found ? "no mask" : "not found") : percent(share) }));
  for (const [event, value] of [["pointerenter", index], ["focusin", index], ["pointerleave", null], ["focusout", null]])
    row.addEventListener(event, () => light(value));
  return row;
}

function light(index) {
  lit = index;
  paintSides(viewed, viewer.querySelectorAll("canvas"), lit);
}

function listed(side) {
  const found = [...new Set([...side.masks.keys(), ...present(side)])];
  const others = [...side.scores.keys()].filter((index) => !found.includes(index));
  const byScore = (one, other) => side.scores.get(other) - side.scores.get(one);
  return [...found.sort(byScore), ...others.sort(byScore).slice(0, NEAR_MISSES)];
}

function refreshViewer() {
  const focused = viewer.querySelector("tr :focus")?.dataset.class;
  viewer.querySelectorAll("tbody").forEach((body, number) => {
    const side = viewed.sides[number];
    body.replaceChildren(...listed(side).map((index) => viewerRow(side, index)));
  });
  if (focused !== undefined) viewer.querySelector(`tr [data-class="${focused}"]`)?.focus();
  showMark(viewer.querySelector(".mark"), viewed);
  paintSides(viewed, viewer.querySelectorAll("canvas"), lit);
}

function view(image) {
  viewed = image;
  lit = null;
  const difference = comparing ? `; ${percent(image.difference)} of the pixels differ` : "";
  byId("viewer-name").textContent = image.image_id;
  byId("viewer-size").textContent = `${image.original.join(" × ")} pixels, shown at ${image.width} × ${image.height}${difference}`;
  viewer.querySelectorAll("img").forEach((shown, number) => {
    Object.assign(shown, { src: image.element.src, alt: image.card.querySelectorAll("img")[number].alt });
  });
  for (const layers of viewer.querySelectorAll(".layers")) layers.style.aspectRatio = `${image.width} / ${image.height}`;
  viewer.append(byId("tip"));
  if (!viewer.open) {
    viewer.showModal();
    byId("close").focus(); // pressing twice marks nothing
  }
  refreshViewer();
  Promise.all(image.sides.map(unpack)).then(() => viewed === image && refreshViewer());
}

function step(by) {
  view(shown[(shown.indexOf(viewed) + by + shown.length) % shown.length]);
}

byId("close").addEventListener("click", () => viewer.close());
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
viewer.querySelector(".mark").addEventListener("click", () => mark(viewed));
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); }); // beside it
viewer.addEventListener("close", () => {
  document.body.append(byId("tip"));
  viewed.button.focus();
});
