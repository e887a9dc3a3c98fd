"use strict";
const fleet = JSON.parse(document.getElementById("fleet").textContent);
const byId = id => document.getElementById(id);
const PAGE = 100, STATES = ["done", "failed", "waiting"];
const si = (count, unit) => {
  for (const [size, prefix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]])
    if (Math.abs(count) >= 0.9995 * size) return (count / size).toPrecision(3) + " " + prefix + unit;
  return count + " " + unit;
};
const percent = share => (100 * share).toFixed(2) + " %";
const pair = (two, shown) => two && shown(two[0]) + " \u2192 " + shown(two[1]);
// A cell: network, target, goal, state, bytes, MACs, ms, accuracy, gates, seconds, error, purified.
const [NET, TARGET, GOAL, STATE, BYTES, MACS, MS, ACC, GATES, SECONDS, ERROR, PURIFIED] = [...Array(12).keys()];
const network = cell => fleet.networks[cell[NET]];
const measured = number => number === null ? "no number" : +number.toPrecision(6);
const gate = one => `${one[0]} ${one[3] ? "passed" : "failed"}: ${measured(one[2])}, asked ${measured(one[1])}`;
const gain = two => two ? two[0] / two[1] : null;
const COLUMNS = [
  ["network", cell => network(cell)[0], "name"],
  ["target", cell => fleet.targets[cell[TARGET]]],
  ["goal", cell => fleet.goals[cell[GOAL]]],
  ["state", cell => STATES[cell[STATE]], "state"],
  ["verdict", cell => network(cell)[1] || "", "verdict"],
  ["model.onnx", cell => pair(cell[BYTES], n => si(n, "B")), "number", cell => gain(cell[BYTES])],
  ["MACs", cell => pair(cell[MACS], n => si(n, "")), "number", cell => gain(cell[MACS])],
  ["latency p50", cell => pair(cell[MS], n => n.toPrecision(3) + " ms"), "number", cell => gain(cell[MS])],
  ["accuracy", cell => pair(cell[ACC], percent), "number", cell => cell[ACC] && cell[ACC][1]],
  ["gates", cell => (cell[GATES] || []).map(gate).join("; "), "reason"],
  ["seconds", cell => cell[SECONDS] === null ? "" : cell[SECONDS].toFixed(1), "number", cell => cell[SECONDS]],
];
const FIRST_NUMBER = 5, NUMBERS = 4; // columns that a failed cell has nothing for: its reason stands there
const words = cell => COLUMNS.slice(0, 5).map(column => column[1](cell)).concat(network(cell)[2], cell[ERROR] ? cell[ERROR][1] : "").join(" ").toLowerCase();
let texts = null, order = 0, falling = false, page = 0, shown = [], whole = false;

function element(tag, text, kind) {
  const made = document.createElement(tag);
  if (text !== undefined && text !== null) made.textContent = text;
  if (kind) made.className = kind;
  return made;
}
function filled(cell, [title, value, kind]) {
  const text = value(cell), made = element("td", null, kind);
  if (title === "network" && cell[STATE] === 0) {
    const link = element("a", text);
    link.href = ["bundles", text, fleet.targets[cell[TARGET]], fleet.goals[cell[GOAL]], "report.html"].map(encodeURIComponent).join("/");
    made.append(link);
  } else if (kind === "verdict") {
    const own = network(cell);
    if (own[3]) {
      const picture = element("img");
      picture.src = own[3];
      picture.alt = "trigger of " + own[2];
      made.append(picture);
    }
    if (text) made.append(element("span", own[2] ? `${text}: ${own[2]}` : text, text === "suspected" ? "alarm" : ""));
    if (own[1] && cell[PURIFIED]) made.append(element("span", ", purified", "muted"));
  } else if (kind === "state") made.append(element("span", text, ["good", "alarm", "muted"][cell[STATE]]));
  else made.textContent = text || "";
  made.dataset.title = title; // which a narrow page puts before it
  return made;
}
function filledRow(cell) {
  const made = COLUMNS.map(column => filled(cell, column));
  if (cell[ERROR]) {
    const reason = element("td", `exit code ${cell[ERROR][0]}: ${cell[ERROR][1]}`, "reason");
    reason.colSpan = NUMBERS;
    reason.dataset.title = "reason";
    made.splice(FIRST_NUMBER, NUMBERS, reason);
  }
  return made;
}
function draw() {
  const body = byId("rows"), pages = Math.max(1, Math.ceil(shown.length / PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  const drawn = whole ? shown : shown.slice(page * PAGE, (page + 1) * PAGE);
  body.replaceChildren(...drawn.map(index => {
    const cell = fleet.cells[index], row = element("tr", null, STATES[cell[STATE]]);
    row.append(...filledRow(cell));
    return row;
  }));
  byId("place").textContent = `${shown.length} of ${fleet.cells.length} cells` + (whole ? "" : `, page ${page + 1} of ${pages}`);
  byId("back").disabled = page === 0;
  byId("next").disabled = page === pages - 1;
}
function choose() {
  const find = byId("find").value.trim().toLowerCase();
  const asked = ["state", "verdict", "target", "goal"].map(id => byId(id).value);
  if (find && !texts) texts = fleet.cells.map(words);
  shown = [];
  fleet.cells.forEach((cell, index) => {
    const own = [STATES[cell[STATE]], network(cell)[1] || "none", fleet.targets[cell[TARGET]], fleet.goals[cell[GOAL]]];
    if (asked.every((value, place) => !value || value === own[place]) && (!find || texts[index].includes(find))) shown.push(index);
  });
  sort();
}
function sort() {
  if (order) {
    const column = COLUMNS[Math.abs(order) - 1], value = column[3] || column[1], sign = falling ? -1 : 1;
    const keys = new Map(shown.map(index => [index, value(fleet.cells[index])]));
    const empty = key => key === null || key === undefined || key === "";
    shown.sort((one, other) => {
      const [left, right] = [keys.get(one), keys.get(other)];
      if (empty(left) || empty(right)) return empty(left) - empty(right) || one - other;
      const way = typeof left === "number" ? left - right : left < right ? -1 : left > right ? 1 : 0;
      return sign * way || one - other;
    });
  }
  draw();
}
function options(id, values) {
  byId(id).append(new Option("all", ""), ...values.map(value => new Option(value, value)));
  byId(id).addEventListener("change", () => { page = 0; choose(); });
}
COLUMNS.forEach(([title, , kind], index) => {
  const head = element("th", null, kind === "number" ? "number" : ""), button = element("button", title);
  button.type = "button";
  button.addEventListener("click", () => {
    falling = order === index + 1 && !falling;
    order = index + 1;
    page = 0;
    for (const one of byId("head").children) one.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    sort();
  });
  head.append(button);
  byId("head").append(head);
});
options("state", STATES);
options("verdict", ["suspected", "not found", "none"]);
options("target", fleet.targets);
options("goal", fleet.goals);
byId("find").addEventListener("input", () => { page = 0; choose(); });
document.querySelector("form").addEventListener("submit", event => event.preventDefault());
byId("back").addEventListener("click", () => { page -= 1; draw(); });
byId("next").addEventListener("click", () => { page += 1; draw(); });
// Paper has no pages to turn to: all rows that were found are printed.
addEventListener("beforeprint", () => { whole = true; draw(); });
addEventListener("afterprint", () => { whole = false; draw(); });
const counts = fleet.counts;
byId("title").textContent = `${counts.cells} cells of ${fleet.networks.length} networks`;
byId("summary").textContent = `${counts.done} done, ${counts.failed} failed, ${counts.waiting} waiting. Engine ${fleet.engine}, edgeclean ${fleet.edgeclean}. A verdict "not found" says that the searches found no trigger, and no more.`;
choose();
