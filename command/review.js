"use strict";
// One page of suspicious labels. data.js sets `review`: run, title, classes (names), and a column
// each, worst first: index, given, suggested (class numbers), given_probability,
// suggested_probability, file ([] without files); sheets: {count, columns, rows, pixels}.
const PAGE = 48;
const $ = (id) => document.getElementById(id);
const { classes, index, given, suggested, sheets } = review;
const key = `mln_keras-review-${review.run}`;
const folder = sharedFolder(review.file);
const rowOf = new Map(index.map((number, row) => [number, row]));
let decisions = new Map(); // index -> [action, class number or null], in the order of deciding
let undone = []; // [index, decision before], the last one at the end
let shown = []; // rows that the filters let through
let page = 0;
let current = 0; // place in `shown`
let failure = "";
let saving = null; // the timer of a save that is still to come

function load() {
  try {
    const saved = JSON.parse(localStorage.getItem(key) || "{}");
    decisions = new Map(saved.decisions || []);
    undone = saved.undone || [];
  } catch (error) {
    failure = ` Decisions cannot be kept in this browser (${error.name}): export them before you close it.`;
  }
}

// Soon, and not at each key: 100,000 decisions are 2 MB.
function saveSoon() {
  saving ??= setTimeout(save, 250);
}

function save() {
  if (saving === null) return;
  clearTimeout(saving);
  saving = null;
  try {
    localStorage.setItem(key, JSON.stringify({ decisions: [...decisions], undone }));
    failure = "";
  } catch (error) {
    failure = ` The last decisions are not kept (${error.name}): export them before you close this page.`;
  }
  drawStatus();
}

function element(name, className, text = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

// The folder that all files lie below; a card is too narrow to show it, and then the name.
function sharedFolder(files) {
  const parent = (name) => name.slice(0, name.slice(0, -1).lastIndexOf("/") + 1);
  let shared = parent(files[0] || "");
  for (const file of files) while (!file.startsWith(shared)) shared = parent(shared);
  return shared;
}

function picture(row) {
  const label = `Sample ${index[row]}`;
  const { count, columns, rows, pixels } = sheets;
  if (row >= count) return element("div", "image none", `${label}: no picture`);
  const made = element("div", pixels < 112 ? "image pixels" : "image");
  const place = row % (columns * rows);
  made.setAttribute("role", "img");
  made.setAttribute("aria-label", label);
  made.style.backgroundImage = `url("sheet-${Math.floor(row / (columns * rows))}.png")`;
  made.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
  made.style.backgroundPosition =
    `${(100 * (place % columns)) / (columns - 1)}% ${(100 * Math.floor(place / columns)) / (rows - 1)}%`;
  return made;
}

function decisionText(row) {
  const [action, label] = decisions.get(index[row]) || ["", null];
  const text = { keep: "kept", drop: "dropped", relabel: `→ ${classes[label]}` }[action] || "";
  return element("div", `decision ${action}`, text);
}

function card(row, place) {
  const made = element("li", "");
  made.tabIndex = place === current ? 0 : -1;
  made.dataset.place = place;
  if (place === current) made.setAttribute("aria-current", "true");
  const [given_p, suggested_p] = [review.given_probability[row], review.suggested_probability[row]];
  made.append(
    picture(row),
    element("div", "labels", `${classes[given[row]]} → ${classes[suggested[row]]}`),
    element("div", "numbers", `${percent(given_p)} → ${percent(suggested_p)}`),
    element("div", "numbers", `index ${index[row]}`));
  if (review.file.length) {
    const file = element("div", "file", review.file[row].slice(folder.length));
    file.title = review.file[row];
    made.append(file);
  }
  made.append(decisionText(row), choices(row, place));
  return made;
}

function choices(row, place) {
  const made = element("div", "choices");
  for (const [text, action] of [["Keep", "keep"], ["Take", "take"], ["Other", "other"], ["Drop", "drop"]]) {
    const button = element("button", "", text);
    button.type = "button";
    button.tabIndex = place === current ? 0 : -1;
    button.setAttribute("aria-label", `${text} (sample ${index[row]})`);
    button.addEventListener("click", () => { current = place; act(action); });
    made.append(button);
  }
  return made;
}

function percent(p) {
  return p > 0 && p < 0.001 ? "< 0.1 %" : `${(100 * p).toFixed(1)} %`;
}

function filter() {
  const [g, s, decided] = [$("given").value, $("suggested").value, $("decided").value];
  const least = Number($("least").value) || 0;
  shown = [];
  for (let row = 0; row < index.length; row++) {
    if (g !== "" && given[row] !== Number(g)) continue;
    if (s === "other" ? suggested[row] === given[row] : s !== "" && suggested[row] !== Number(s)) continue;
    if (review.suggested_probability[row] < least) continue;
    if (decided && decisions.has(index[row]) !== (decided === "yes")) continue;
    shown.push(row);
  }
  current = 0;
  draw();
}

function draw(focus = false) {
  const pages = Math.max(1, Math.ceil(shown.length / PAGE));
  current = Math.max(0, Math.min(current, shown.length - 1));
  page = Math.floor(current / PAGE);
  const rows = shown.slice(page * PAGE, (page + 1) * PAGE);
  $("cards").replaceChildren(...rows.map((row, i) => card(row, page * PAGE + i)));
  $("empty").hidden = shown.length > 0;
  $("page").textContent = `page ${page + 1} of ${pages.toLocaleString("en")}`;
  $("previous").disabled = page === 0;
  $("next").disabled = page === pages - 1;
  $("undo").disabled = undone.length === 0;
  drawStatus();
  if (focus) $("cards").querySelector("[aria-current]")?.focus();
}

function drawStatus() {
  $("progress").max = index.length;
  $("progress").value = decisions.size;
  $("status").textContent = `${decisions.size.toLocaleString("en")} of ${index.length.toLocaleString("en")}` +
    ` decided; ${shown.length.toLocaleString("en")} match the filters.${failure}`;
}

// Makes a card the current one without drawing the others anew, as a click on it is still going on.
function mark(place) {
  current = place;
  for (const made of $("cards").children) {
    const is_it = Number(made.dataset.place) === place;
    made.toggleAttribute("aria-current", false);
    if (is_it) made.setAttribute("aria-current", "true");
    for (const one of [made, ...made.querySelectorAll("button")]) one.tabIndex = is_it ? 0 : -1;
  }
}

function decide(row, action, label) {
  const number = index[row];
  undone.push([number, decisions.get(number) || null]);
  if (undone.length > 1000) undone.shift();
  decisions.delete(number);
  decisions.set(number, [action, label]);
  saveSoon();
  if (current < shown.length - 1) current += 1;
  draw(true);
}

function act(action) {
  const row = shown[current];
  if (row === undefined) return;
  if (action === "keep") decide(row, "keep", null);
  if (action === "drop") decide(row, "drop", null);
  if (action === "take") takeClass(row, suggested[row]);
  if (action === "other") {
    $("classes").value = suggested[row];
    $("other").returnValue = "";
    $("other").showModal();
    $("classes").focus();
  }
}

function takeClass(row, label) {
  if (label === given[row]) decide(row, "keep", null);
  else decide(row, "relabel", label);
}

function undo() {
  const last = undone.pop();
  if (!last) return;
  const [number, before] = last;
  decisions.delete(number);
  if (before) decisions.set(number, before);
  saveSoon();
  const place = shown.indexOf(rowOf.get(number));
  if (place >= 0) current = place;
  draw(true);
}

function corrections() {
  const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const lines = ["index,file,given,action,label"];
  for (const [number, [action, label]] of decisions) {
    const row = rowOf.get(number);
    const named = label === null ? "" : classes[label];
    lines.push([String(number), review.file[row] || "", classes[given[row]], action, named].map(quoted).join(","));
  }
  return lines.join("\n") + "\n";
}

function exportCorrections() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([corrections()], { type: "text/csv" }));
  link.download = "corrections.csv";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function move(steps) {
  current += steps;
  draw(true);
}

function columnsShown() {
  return getComputedStyle($("cards")).gridTemplateColumns.split(" ").length;
}

function onKey(event) {
  const typing = event.target.matches("input, select") || $("other").open;
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const does = {
    k: () => act("keep"), t: () => act("take"), o: () => act("other"), d: () => act("drop"),
    u: undo, e: exportCorrections, n: () => move(PAGE), p: () => move(-PAGE),
    ArrowRight: () => move(1), ArrowLeft: () => move(-1),
    ArrowDown: () => move(columnsShown()), ArrowUp: () => move(-columnsShown()),
  }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!does) return;
  event.preventDefault();
  does();
}

function start() {
  document.title = $("title").textContent = review.title;
  const options = classes.map((name, number) => [name, number]);
  for (const [id, first] of [
    ["given", [["all", ""]]], ["suggested", [["all", ""], ["other than given", "other"]]], ["classes", []],
  ]) {
    $(id).append(...[...first, ...options].map(([text, value]) => new Option(text, value)));
  }
  for (const id of ["given", "suggested", "decided"]) $(id).addEventListener("change", filter);
  $("least").addEventListener("input", filter);
  $("undo").addEventListener("click", undo);
  $("export").addEventListener("click", exportCorrections);
  $("next").addEventListener("click", () => move(PAGE));
  $("previous").addEventListener("click", () => move(-PAGE));
  $("other").addEventListener("close", () => {
    if ($("other").returnValue && $("classes").value !== "") takeClass(shown[current], Number($("classes").value));
    else draw(true);
  });
  $("classes").addEventListener("keydown", (event) => { if (event.key === "Enter") $("other").close("ok"); });
  $("classes").addEventListener("dblclick", () => $("other").close("ok"));
  $("cards").addEventListener("focusin", (event) => mark(Number(event.target.closest("li").dataset.place)));
  document.addEventListener("keydown", onKey);
  addEventListener("pagehide", save);
  document.addEventListener("visibilitychange", save);
  load();
  filter();
}

start();
