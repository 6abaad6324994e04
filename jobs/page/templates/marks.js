// Images marked as wrong. The browser keeps them, if it keeps anything for a page from a disk.

const MARKS = `cliper marks of ${data.marksOf}`;
const marked = new Set(readMarks());

function readMarks() {
  try {
    const kept = JSON.parse(localStorage.getItem(MARKS) ?? "[]");
    return Array.isArray(kept) ? kept.filter((id) => typeof id === "string") : [];
  } catch {
    return [];
  }
}

function keepMarks() {
  try {
    localStorage.setItem(MARKS, JSON.stringify([...marked]));
  } catch {
    byId("marks-note").hidden = false;
  }
}

function mark(image) {
  if (!marked.delete(image.image_id)) marked.add(image.image_id);
  keepMarks();
  update();
}

function showMark(button, image) {
  const isMarked = marked.has(image.image_id);
  button.setAttribute("aria-pressed", isMarked);
  button.textContent = isMarked ? "Marked as wrong" : "Mark as wrong";
}

// A line of a file of ids, as schemas/image_ids.py defines it: a JSON string where the plain id would be read as
// something else. White space and line breaks are Python's.
const SPACE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const NOT_PLAIN = new RegExp(`^$|^["\\ufeff${SPACE}]|[${SPACE}]$|[\\n-\\r\\x1c-\\x1e\\x85\\u2028\\u2029]`);

function lineOf(id) {
  if (!NOT_PLAIN.test(id)) return id;
  return JSON.stringify(id).replace(/[^ -~]/g, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

function downloadMarks() {
  const text = [...marked].map((id) => `${lineOf(id)}\n`).join("");
  const address = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  element("a", { href: address, download: "marks.txt" }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

byId("download").addEventListener("click", downloadMarks);
byId("clear-marks").addEventListener("click", () => {
  if (!confirm(`Forget ${marked.size} marks?`)) return;
  marked.clear();
  keepMarks();
  update();
});
