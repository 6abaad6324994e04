// Images, what the runs say of them, and the painting of overlays. A side is what one run says of one image; its
// classes are numbered as on the page.

const FILL = 180, EDGE = 255; // opacity of an overlay inside and along its edge
const FAINT = 0.2; // share of it that other classes keep while one is pointed at
const comparing = data.runs.length > 1;
const byProbability = data.runs.every((run) => run.presence !== null) && // else scores decide what is present
  data.images.every(({ sides }) => sides.every(({ probabilities }) => probabilities));
const state = {
  hidden: new Set(), // classes whose overlay is off
  presence: null, // threshold on probabilities, or on scores without them; null: as labelled
  area: 0, // smallest share of the image that a mask covers
  onlyDifferences: false,
};

const images = data.images.map((image, index) => {
  const card = document.querySelectorAll(".card")[index];
  const sides = image.sides.map((side, number) => {
    const run = data.runs[number];
    const spread = (values) => new Map(values.map((value, own) => [run.classes[own], value]));
    const scores = spread(side.scores), probabilities = side.probabilities && spread(side.probabilities);
    return {
      scores, probabilities, width: image.width, height: image.height, overlay: side.overlay,
      canvas: card.querySelectorAll("canvas")[number],
      values: byProbability ? probabilities : scores,
      thresholds: byProbability ? new Map(run.classes.map((index) => [index, run.presence])) : spread(run.thresholds),
      masks: new Map(side.found.map(([own, share]) => [run.classes[own], share])),
      lostTo: new Map(Object.entries(side.lost_to).map(([own, word]) => [run.classes[own], word])),
      classes: side.overlay_classes.map((own) => run.classes[own]), // of the labels from 1
      codes: null, // twice the label, plus 1 along edges
    };
  });
  const elements = card.querySelectorAll("img");
  if (comparing) elements[1].src = elements[0].src;
  return { ...image, index, card, sides, button: card.querySelector(".image"), element: elements[0] };
});

// Which classes an image shows

function threshold(side, index) {
  return state.presence ?? side.thresholds.get(index);
}

function isPresent(side, index) {
  const share = side.masks.get(index);
  if (state.area > 0 && !(share >= state.area)) return false;
  if (state.presence === null) return share !== undefined;
  return byProbability ? side.values.get(index) >= state.presence : side.values.get(index) > state.presence;
}

function isDrawn(side, index) {
  return !state.hidden.has(index) && side.masks.has(index) && isPresent(side, index);
}

function present(side) {
  return [...side.values.keys()].filter((index) => isPresent(side, index))
    .sort((one, other) => side.scores.get(other) - side.scores.get(one));
}

function valueText(side, index) {
  return byProbability ? percent(side.values.get(index)) : side.values.get(index).toFixed(2);
}

// Painting

async function unpack(side) {
  if (side.codes) return;
  const bytes = Uint8Array.from(atob(side.overlay), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const map = new Uint8Array(await new Response(stream).arrayBuffer());
  const { width, height } = side;
  const codes = new (side.classes.length < 128 ? Uint8Array : Uint16Array)(map.length);
  for (let y = 0, at = 0; y < height; y++)
    for (let x = 0; x < width; x++, at++) {
      const label = map[at];
      const edge = (x > 0 && map[at - 1] !== label) || (x + 1 < width && map[at + 1] !== label) ||
        (y > 0 && map[at - width] !== label) || (y + 1 < height && map[at + width] !== label);
      codes[at] = 2 * label + (edge ? 1 : 0);
    }
  side.codes = codes;
}

function pixelOf(colour, opacity) {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
  return ((opacity << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

const painted = new WeakMap(); // what each canvas shows

function paint(canvas, side, other, lit = null) {
  if (!side.codes) return;
  const table = new Uint32Array(2 * side.classes.length + 2);
  side.classes.forEach((index, position) => {
    if (!isDrawn(side, index)) return;
    const strength = lit === null || lit === index ? 1 : FAINT;
    [FILL, EDGE].forEach((opacity, edge) => {
      table[2 * position + 2 + edge] = pixelOf(data.classes[index].colour, strength * opacity);
    });
  });
  const differing = state.onlyDifferences && other && other.codes;
  const what = `${table.join()} ${differing ? "differing" : ""} ${side.canvas === canvas ? "" : side.overlay.slice(0, 64)}`;
  if (painted.get(canvas) === what && canvas.width) return;
  painted.set(canvas, what);
  canvas.width = side.width;
  canvas.height = side.height;
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(side.width, side.height);
  const target = new Uint32Array(pixels.data.buffer), { codes } = side;
  for (let at = 0; at < codes.length; at++) target[at] = table[codes[at]];
  if (differing) {
    const own = [-1, ...side.classes], others = [-1, ...other.classes];
    for (let at = 0; at < codes.length; at++) if (own[codes[at] >> 1] === others[other.codes[at] >> 1]) target[at] = 0;
  }
  context.putImageData(pixels, 0, 0);
}

function paintSides(image, canvases, lit = null) {
  image.sides.forEach((side, number) => paint(canvases ? canvases[number] : side.canvas, side, image.sides[1 - number], lit));
}
