// Pointing at an image names the class there. Pressing shows the original for as long as it is pressed.

const HOLD_MS = { mouse: 150, touch: 350, pen: 350 };
let press = null;
let wasHeld = false; // the click that follows is not one

function sideAt(layers) {
  const image = viewer.contains(layers) ? viewed : images.find(({ card }) => card.contains(layers));
  return image.sides[Number(layers.dataset.side)];
}

// The class under a point of the screen: its number on the page, null for background, undefined beside the image.
function classAt(layers, x, y) {
  const side = sideAt(layers), box = layers.getBoundingClientRect();
  const scale = Math.min(box.width / side.width, box.height / side.height);
  const column = Math.floor((x - box.left - (box.width - scale * side.width) / 2) / scale);
  const row = Math.floor((y - box.top - (box.height - scale * side.height) / 2) / scale);
  if (!side.codes || column < 0 || row < 0 || column >= side.width || row >= side.height) return undefined;
  const label = side.codes[row * side.width + column] >> 1;
  return label ? side.classes[label - 1] : null;
}

function nameAt(layers, x, y) {
  const tip = byId("tip"), index = classAt(layers, x, y);
  tip.hidden = index === undefined;
  if (tip.hidden) return;
  if (index === null) tip.replaceChildren("background");
  else {
    const side = sideAt(layers);
    const facts = [`score ${side.scores.get(index).toFixed(2)}`];
    if (side.probabilities) facts.push(percent(side.probabilities.get(index)));
    if (!isDrawn(side, index)) facts.push("hidden");
    tip.replaceChildren(dot(index), element("bdi", { textContent: data.classes[index].name }), element("span", { className: "soft", textContent: facts.join(", ") }));
  }
  const { offsetWidth, offsetHeight } = tip;
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - offsetWidth - 4))}px`;
  tip.style.top = `${y + 18 + offsetHeight > innerHeight ? y - offsetHeight - 12 : y + 18}px`;
}

function release(event) {
  if (!press) return;
  clearTimeout(press.timer);
  press.layers.classList.remove("original");
  wasHeld = press.held;
  if (event.pointerType !== "mouse" && (press.held || event.type === "pointercancel")) byId("tip").hidden = true;
  press = null;
}

document.addEventListener("pointermove", (event) => {
  const layers = event.target.closest(".layers");
  if (event.pointerType !== "mouse") return;
  if (layers) nameAt(layers, event.clientX, event.clientY);
  else byId("tip").hidden = true;
});
document.addEventListener("pointerdown", (event) => {
  const layers = event.target.closest(".layers");
  byId("tip").hidden = true;
  wasHeld = false;
  if (!layers || event.button) return;
  const { clientX, clientY } = event;
  if (event.pointerType === "mouse" || viewer.contains(layers)) nameAt(layers, clientX, clientY);
  press = { layers, held: false };
  press.timer = setTimeout(() => {
    press.held = true;
    layers.classList.add("original");
    nameAt(layers, clientX, clientY);
  }, HOLD_MS[event.pointerType]);
});
for (const kind of ["pointerup", "pointercancel"]) document.addEventListener(kind, release);
document.addEventListener("contextmenu", (event) => { if (press?.held) event.preventDefault(); });
document.addEventListener("click", (event) => {
  if (wasHeld && event.target.closest(".image")) event.stopPropagation();
  wasHeld = false;
}, { capture: true });
document.addEventListener("scroll", () => { byId("tip").hidden = true; }, { passive: true });

function toggleOriginals() {
  const on = document.body.classList.toggle("original");
  for (const button of [byId("original"), viewer.querySelector(".bare")]) button.setAttribute("aria-pressed", on);
}

byId("original").addEventListener("click", toggleOriginals);
viewer.querySelector(".bare").addEventListener("click", toggleOriginals);
