const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function dot(index, hollow = false) {
  const made = element("span", { className: hollow ? "dot hollow" : "dot" });
  made.style.setProperty("--colour", data.classes[index].colour);
  return made;
}

function percent(share) {
  return share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}
