// Distributions of scores, over all labelled images of the run

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
  histogram("found", found, name, colour, data.runs[0].thresholds[index]);
  histogram("others", others, name, "var(--grey)", data.runs[0].thresholds[index]);
  byId("scores-table").tBodies[0].replaceChildren(...found.map((count, bin) => element("tr", {},
    element("th", { scope: "row", textContent: range(bin) }),
    element("td", { className: "number", textContent: count.toLocaleString("en") }),
    element("td", { className: "number", textContent: others[bin].toLocaleString("en") }))));
}

byId("scores-class").addEventListener("change", showScores);
showScores();
