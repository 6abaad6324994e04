// Keys, and the start

function moveFocus(by) {
  const at = shown.findIndex(({ card }) => card.contains(document.activeElement));
  shown[Math.max(0, Math.min(shown.length - 1, at + by))]?.button.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input:not([type=checkbox]), select")) return;
  const focused = viewer.open ? viewed : images.find(({ card }) => card.contains(document.activeElement));
  const actions = {
    o: toggleOriginals,
    m: focused && (() => mark(focused)),
    ArrowLeft: viewer.open ? () => step(-1) : focused && (() => moveFocus(-1)),
    ArrowRight: viewer.open ? () => step(1) : focused && (() => moveFocus(1)),
    q: !viewer.open && (() => byId("query").focus()),
    "/": !viewer.open && (() => byId("search").focus()),
  };
  const action = actions[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

byId("query").value = byId("search").value = ""; // which browsers keep over a reload
byId("only-marked").checked = false;
byId("strength").dispatchEvent(new Event("input"));
suggest();
readQuery();
asLabelled();
for (const { card } of images) watcher.observe(card);
(async () => { for (const { sides } of images) await Promise.all(sides.map(unpack)); })(); // before anyone prints the page
