"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const byId = (id) => document.getElementById(id);
const ANY = "all";
const FIGURES = {
  test_accs: "test accuracy, %", val_accs: "validation accuracy, %", train_accs: "training accuracy, %",
  test_losses: "test loss", val_losses: "validation loss", train_losses: "training loss",
};
const OVER = {
  epoch: "round", up: "MB sent up", down: "MB sent down", both: "MB, up + down", seconds: "seconds of training",
};
const USUAL = { dataset: "", split: "", state: ANY, words: "", y: "test_accs", x: "epoch", log: "", differ: "", run: "", hidden: "",
  "sort-methods": "", "sort-runs": "", "sort-lines": "" };
// The state of the page is in its address, so that it outlives a reload, and can be sent to somebody.
const view = {};
const read = () => Object.assign(view, USUAL, Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
read();

content.runs.forEach((run, i) => { run.number = i; });
content.methods.forEach((method) => { method.key = `${method.dataset}, ${method.split}: ${method.label}`; });
content.methods.forEach((method) => method.runs.forEach((i) => { content.runs[i].method = method.label; }));

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text; // never HTML: names and settings are not ours
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function option(value, text = value) { return element("option", text, { value }); }

function fill(id, options, wanted) {
  const select = byId(id);
  select.replaceChildren(...options);
  select.value = wanted;
  if (select.selectedIndex < 0) select.selectedIndex = 0;
  view[id] = select.value;
}

const distinct = (values) => [...new Set(values)];

function searched(run) {
  const settings = Object.entries(run.settings).map(([name, value]) => `${name}=${value}`);
  return ` ${[run.method, run.run, run.split, run.state, ...settings].join(" ").toLowerCase()} `;
}
content.runs.forEach((run) => { run.text = searched(run); });

function hits(run) {
  // "seed=1" is a whole setting, "las" any part of a word
  const words = view.words.toLowerCase().split(/\s+/).filter(Boolean);
  // runs with all data in one place stand beside every split
  return (view.dataset === ANY || run.dataset === view.dataset) && (view.split === ANY || run.split === view.split || run.central)
    && (view.state === ANY || run.state === view.state)
    && words.every((word) => run.text.includes(word.includes("=") ? ` ${word} ` : word));
}

// ---- tables

const number = (value, digits = 3) => value === null || value === undefined ? ""
  : Math.abs(value) >= 1e4 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(digits)));

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 120) return `${Math.round(seconds)} s`;
  return seconds < 7200 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function clock(seconds) { // since 1970, as the reader's clock has it
  if (seconds === null) return "";
  return new Date(1000 * seconds).toLocaleString("en", { weekday: "short", day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false });
}

function compared(a, b) {
  if (a === b) return 0;
  const none = (value) => value === "" || value === null || value === undefined;
  if (none(a) || none(b)) return none(a) ? 1 : -1; // what is not known comes last, whichever way
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

// columns: {title, of(row): what sorts, show(row): text or node, name: a wide one}
function table(id, columns, rows) {
  const [sorted, way] = view[`sort-${id}`].split(":");
  const by = columns.findIndex((column) => column.title === sorted);
  if (by >= 0) {
    const keyed = rows.map((row) => [columns[by].of(row), row]);
    const empty = (value) => value === "" || value === null || value === undefined;
    keyed.sort(([a], [b]) => (way === "down" && !empty(a) && !empty(b) ? -1 : 1) * compared(a, b));
    rows = keyed.map(([, row]) => row);
  }
  const head = element("tr");
  columns.forEach((column, i) => {
    const cell = element("th", "", { scope: "col", "aria-sort": i !== by ? "none" : way === "down" ? "descending" : "ascending" });
    if (numeric(column, rows)) cell.className = "number";
    const button = element("button", column.title, { type: "button", "data-sort": column.title });
    button.addEventListener("click", () => {
      const down = i === by ? way !== "down" : numeric(column, rows);
      set(`sort-${id}`, `${column.title}:${down ? "down" : "up"}`);
      [...byId(id).querySelectorAll("th button")].find((other) => other.dataset.sort === column.title)?.focus();
    });
    cell.append(button);
    head.append(cell);
  });
  const lines = rows.map((row) => {
    const line = element("tr");
    if (row.run !== undefined && row.run === view.run && id === "runs") line.className = "chosen";
    for (const column of columns) {
      const shown = column.show ? column.show(row) : column.of(row) ?? "";
      const cell = element("td", shown instanceof Node ? "" : shown);
      if (shown instanceof Node) cell.append(shown);
      cell.className = column.name ? "name" : numeric(column, rows) ? "number" : "";
      line.append(cell);
    }
    return line;
  });
  const [top, body] = [element("thead"), element("tbody")];
  top.append(head);
  body.append(...lines);
  byId(id).replaceChildren(top, body);
}

function numeric(column, rows) {
  const first = rows.map(column.of).find((value) => value !== "" && value !== null && value !== undefined);
  return typeof first === "number";
}

// "65.15 ± 0.15", "63.2x", "+0.14 [...]" sort by the number that they begin with
function leading(text) {
  const found = /^[+-]?\d+(\.\d+)?/.exec(text);
  return found ? Number(found[0]) : text;
}

const PLACE = [{ title: "data", of: (row) => row.dataset }, { title: "split", of: (row) => row.split }];

// Put before a label how its line looks.
function keyed(label, look) {
  const key = element("span", MARKS[look.symbol], { class: "key", "aria-hidden": "true" });
  key.style.color = ink(look.colour);
  key.style.setProperty("--dash", look.dash === "solid" ? "solid" : look.dash === "dot" ? "dotted" : "dashed");
  label.prepend(key);
  return label;
}

function drawMethods(methods) {
  const columns = [
    { title: "method", of: (m) => m.label, name: true, show: (m) => keyed(element("span", m.label), lookOf(m)) },
    ...PLACE.filter((column) => distinct(methods.map(column.of)).length > 1),
  ];
  for (const title of Object.keys(content.methods[0]?.row ?? {})) {
    if (!methods.some((m) => m.row[title] !== "")) continue;
    columns.push({ title, of: (m) => leading(m.row[title]), show: (m) => m.row[title] });
  }
  table("methods", columns, methods);
}

function drawRuns(runs) {
  const pick = (run) => {
    const button = element("button", run.method, { type: "button", title: run.run });
    button.addEventListener("click", () => { set("run", run.run); byId("h-run").scrollIntoView(); });
    return button;
  };
  const columns = [
    { title: "method", of: (r) => r.method, show: pick, name: true },
    ...PLACE.filter((column) => distinct(runs.map(column.of)).length > 1),
    { title: "seed", of: (r) => r.seed },
    { title: "state", of: (r) => r.state },
    { title: "round", of: (r) => r.round, show: (r) => `${r.round}/${r.rounds}` },
    { title: "test accuracy, %", of: (r) => r.accuracy, show: (r) => r.accuracy === null ? "" : r.accuracy.toFixed(2) },
    { title: "MB up", of: (r) => r.up, show: (r) => number(r.up) },
    { title: "MB in all", of: (r) => r.both, show: (r) => number(r.both) },
    { title: "training", of: (r) => r.seconds, show: (r) => duration(r.seconds) },
    { title: "to go", of: (r) => r.left ?? "", show: (r) => duration(r.left) },
  ];
  if (view.differ) {
    const names = distinct(runs.flatMap((run) => Object.keys(run.settings)));
    const differing = names.filter((name) => distinct(runs.map((run) => run.settings[name])).length > 1);
    for (const name of differing.filter((name) => !["dataset", "seed"].includes(name))) {
      const size = (text) => text === undefined || text === "" || Number.isNaN(Number(text)) ? text ?? "" : Number(text);
      columns.push({ title: name, of: (r) => size(r.settings[name]), show: (r) => r.settings[name] ?? "" });
    }
  }
  table("runs", columns, runs);
}

function drawLines() {
  byId("list").hidden = !content.lines.length;
  table("lines", [
    { title: "line", of: (l) => l.number }, { title: "state", of: (l) => l.state }, { title: "end expected", of: (l) => l.end, show: (l) => clock(l.end) },
    { title: "flags", of: (l) => l.flags, name: true },
  ], content.lines);
}

// ---- figures

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const ink = (colour) => colour === "#000000" ? css("--ink") : colour;
const MARKS = { circle: "●", square: "■", "triangle-up": "▲", diamond: "◆", "triangle-down": "▼", cross: "✚", x: "✖", star: "★",
  "triangle-left": "◀", "triangle-right": "▶" };
const isHidden = (method) => hiddenOnes().includes(method.key);

function hiddenOnes() {
  try { return [JSON.parse(view.hidden || "[]")].flat(); } catch { return []; } // a spoilt address hides nothing
}

function toggle(method) {
  const others = hiddenOnes().filter((key) => key !== method.key);
  const now = isHidden(method) ? others : [...others, method.key];
  set("hidden", now.length ? JSON.stringify(now) : "");
}

// As in the figures of plotting.py, but where several datasets or splits are shown: there no two look alike.
let shown = [];
const places = (methods) => distinct(methods.filter((m) => !m.central).map((m) => `${m.dataset}, ${m.split}`));
const lookOf = (method) => content.looks[(places(shown).length > 1 ? shown.indexOf(method) : method.style) % content.looks.length];
const faint = (colour) => `rgba(${[1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16))}, 0.15)`;

function draw(id, traces, layout) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true };
  const look = { paper_bgcolor: css("--paper"), plot_bgcolor: css("--paper"), font: { color: css("--ink"), size: 13 } };
  Plotly.react(id, traces, { ...look, margin: { l: 10, r: 10, t: 10, b: 10 }, ...layout,
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } },
  { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
}

function drawCurves(methods) {
  const [traces, legend] = [[], []];
  const several = places(methods).length > 1;
  const ends = methods.flatMap((m) => m.central ? [] : m.x[view.x]).filter((x) => x > 0);
  for (const method of methods) {
    const line = method.lines[view.y];
    if (!line) continue;
    const look = lookOf(method);
    const colour = ink(look.colour);
    const visible = !isHidden(method);
    const name = method.legend + (several ? `, ${method.dataset}, ${method.split}` : "");
    const button = element("button", name, { type: "button", "aria-pressed": visible });
    button.addEventListener("click", () => {
      toggle(method);
      [...byId("legend").querySelectorAll("button")].find((other) => other.dataset.key === method.key)?.focus();
    });
    button.dataset.key = method.key;
    legend.push(element("li"));
    legend.at(-1).append(keyed(button, look));
    let [x, y] = [line.at.map((i) => method.x[view.x][i]), line.value];
    if (method.central && ["up", "down", "both"].includes(view.x)) { // nothing is sent: a line across
      x = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
      y = [line.value.at(-1), line.value.at(-1)];
    } else if (line.low) {
      const edge = { x, visible, mode: "lines", line: { width: 0 }, hoverinfo: "skip" };
      traces.push({ ...edge, y: line.low }, { ...edge, y: line.high, fill: "tonexty", fillcolor: faint(colour) });
    }
    traces.push({ x, y, visible, name: escaped(name), mode: x.length > 40 ? "lines" : "lines+markers",
      line: { color: colour, dash: look.dash, width: 2 }, marker: { symbol: look.symbol, size: 7 },
      hovertemplate: `%{y:.4g} at %{x:.5g}<extra>${escaped(name)}</extra>` });
  }
  byId("legend").replaceChildren(...legend);
  draw("curves", traces, {
    height: 420, showlegend: false,
    xaxis: { title: { text: OVER[view.x] }, type: view.log ? "log" : "linear" },
    yaxis: { title: { text: FIGURES[view.y] } },
    annotations: traces.length ? [] : [{ text: "no such figures of these runs", showarrow: false, xref: "paper", yref: "paper", x: 0.5, y: 0.5 }],
  });
}

// Plotly takes some HTML in names.
const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/%\{/g, "% {");

function drawRun(run) {
  byId("told").textContent = run ? `${run.run}: ${run.state}${run.why ? `: ${run.why}` : ""}` : "";
  byId("facts").replaceChildren();
  const split = run && run.histogram !== null ? content.splits[run.histogram] : null;
  const counts = split ? split.counts : [];
  draw("split-figure", split ? [{ type: "heatmap", z: counts[0].map((_, c) => counts.map((row) => row[c])), colorscale: "Cividis",
    hovertemplate: "client %{x}, class %{y}: %{z} samples<extra></extra>", colorbar: { title: { text: "samples" }, thickness: 12 } }] : [],
  { height: 320, title: { text: split ? escaped(`${split.title}: samples of each class`) : "the split is not known", font: { size: 14 } },
    margin: { l: 10, r: 10, t: 40, b: 10 },
    xaxis: { title: { text: split && split.clients > counts.length ? `client (the first ${counts.length} of ${split.clients})` : "client" } },
    yaxis: { title: { text: split && split.classes > counts[0].length ? `class (the first ${counts[0].length} of ${split.classes})` : "class" }, tickformat: "d", dtick: counts.length && counts[0].length > 20 ? null : 1 } });
  const sent = run ? run.traffic : [];
  const bar = (i, name, colour) => ({ type: "bar", name, x: sent.map((row) => row[0]), y: sent.map((row) => row[i]), marker: { color: colour },
    hovertemplate: `client %{x}: %{y:.4g} MB ${name}<extra></extra>` });
  draw("traffic", [bar(1, "up", "#0072B2"), bar(2, "down", "#E69F00")], { height: 320, barmode: "stack",
    title: { text: !sent.length ? "no client's bytes are known yet"
      : run.took_part > sent.length ? `Megabytes of the ${sent.length} busiest of ${run.took_part} clients` : "Megabytes of each client", font: { size: 14 } },
    margin: { l: 10, r: 10, t: 40, b: 10 }, legend: { orientation: "h", y: 1.1, x: 1, xanchor: "right" },
    xaxis: { title: { text: "client" } }, yaxis: { title: { text: "MB" } } });
  if (!run) return;
  for (const [title, facts] of [["settings", run.settings], ["at the end", run.figures], ["made with", run.machine]]) {
    const [outer, inner] = [element("div"), element("table")];
    inner.append(element("caption", title));
    for (const [name, value] of Object.entries(facts)) {
      const line = element("tr");
      const shown = typeof value === "number" && !Number.isInteger(value) ? number(value, 6) : String(value);
      line.append(element("th", name, { scope: "row" }), element("td", shown));
      inner.append(line);
    }
    outer.append(inner);
    if (Object.keys(facts).length) byId("facts").append(outer);
  }
}

// ---- the page

// Return what a client's first download counts for.
function counted(methods) {
  const kinds = distinct(methods.map((m) => m.shared).filter((shared) => shared !== null));
  if (kinds.length > 1) return " MIXED: a client's first download, the whole initial model, counts in some of these methods and not in others: their bytes cannot be compared.";
  if (!kinds.length) return "";
  return kinds[0] ? " Bytes: nobody downloads the initial model." : " Bytes: a client's first download, the whole initial model, counts.";
}

function refresh() {
  const datasets = distinct(content.runs.map((run) => run.dataset));
  fill("dataset", [...datasets, ANY].map((name) => option(name)), view.dataset || datasets[0]);
  const here = content.methods.filter((m) => view.dataset === ANY || m.dataset === view.dataset);
  const federated = here.filter((m) => !m.central);
  const splits = distinct((federated.length ? federated : here).map((m) => m.split));
  fill("split", [...splits, ANY].map((name) => option(name)), view.split || splits[0]);
  fill("state", [ANY, ...distinct(content.runs.map((run) => run.state))].map((name) => option(name)), view.state);
  fill("y", Object.entries(FIGURES).map(([name, text]) => option(name, text)), view.y);
  fill("x", Object.entries(OVER).map(([name, text]) => option(name, text)), view.x);
  if (byId("words") !== document.activeElement || !view.words) byId("words").value = view.words;
  byId("log").checked = Boolean(view.log);
  byId("differ").checked = Boolean(view.differ);
  const runs = content.runs.filter(hits);
  const chosen = new Set(runs.map((run) => run.number));
  const methods = content.methods.filter((method) => method.runs.some((i) => chosen.has(i)));
  byId("count").textContent = `${runs.length} of ${content.runs.length} runs, ${methods.length} methods`;
  const partly = methods.filter((m) => m.runs.some((i) => !chosen.has(i))).length;
  shown = methods;
  byId("band").textContent = "Lines: means over the seeds; bands: the standard deviation each way, or with two seeds their range."
    + counted(methods) + (partly ? ` ${partly} of the methods are drawn with all their runs, though not all of them are chosen.` : "");
  fill("run", runs.map((run) => option(run.run)), view.run);
  drawCurves(methods);
  drawMethods(methods);
  drawRuns(runs);
  drawRun(runs.find((run) => run.run === view.run));
  drawLines();
  const kept = Object.entries(view).filter(([name, value]) => value !== USUAL[name]);
  history.replaceState(null, "", `#${new URLSearchParams(kept)}`);
}

function set(name, value) {
  view[name] = value;
  if (name === "dataset") view.split = "";
  refresh();
}

const kinds = content.lines.map((line) => /^(not started|[a-z]+)/.exec(line.state)[0]);
const become = distinct(kinds).map((kind) => `${kinds.filter((other) => other === kind).length} ${kind}`).join(", ");
byId("about").textContent = `${content.folder}, as of ${content.made}` + (content.again ? `; read again every ${content.again} s` : "")
  + (become ? `. Experiments: ${become}` : "");
document.title = `Runs in ${content.folder}`;
for (const id of ["dataset", "split", "state", "y", "x", "run"]) byId(id).addEventListener("change", (event) => set(id, event.target.value));
for (const id of ["log", "differ"]) byId(id).addEventListener("change", (event) => set(id, event.target.checked ? "1" : ""));
let typing;
byId("words").addEventListener("input", (event) => {
  clearTimeout(typing); // many runs take their time
  typing = setTimeout(() => set("words", event.target.value), 150);
});
window.addEventListener("hashchange", () => { read(); refresh(); });
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("all").addEventListener("click", () => { Object.assign(view, { dataset: ANY, split: ANY, state: ANY, words: "", hidden: "" }); refresh(); });
byId("notes").append(...content.notes.map((note) => element("li", note)));
byId("remarks").hidden = !content.notes.length;
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
refresh();
if (content.again) {
  setInterval(() => { if (document.activeElement !== byId("words")) location.reload(); }, 1000 * content.again);
}
