// Curves of several runs in one chart a metric. What is shown stands in the address, so that a link shows the same.
"use strict";
const form = document.getElementById("compare");
const overlays = document.getElementById("overlays");
const names = { step: "step", tokens: "tokens", time: "seconds since the start", flops: "training FLOPs" };
let shownCurves = null;

function wanted() {
  const given = new URLSearchParams(location.search);
  const metric = given.getAll("metric"), range = (given.get("range") ?? "").split(",").map(Number);
  return {
    run: given.getAll("run"), metric: metric.length ? metric : ["loss"], x: given.get("x") ?? "step", group: given.get("group") ?? "",
    range: range.length === 2 && range.every(Number.isFinite) ? range : null, smooth: Number(given.get("smooth") ?? 1), logx: given.get("logx") === "1", logy: given.get("logy") === "1",
  };
}

function showInForm() {
  const state = wanted();
  for (const option of form.metric.options) option.selected = state.metric.includes(option.value);
  for (const name of ["x", "group", "smooth"]) form[name].value = state[name];
  form.logx.checked = state.logx;
  form.logy.checked = state.logy;
}

// What is shown is remembered in the address; a zoom as long as the axis is the same one.
function readForm(range) {
  const query = new URLSearchParams();
  for (const run of wanted().run) query.append("run", run);
  for (const option of form.metric.selectedOptions) query.append("metric", option.value);
  for (const name of ["x", "group", "smooth"]) query.set(name, form[name].value);
  for (const name of ["logx", "logy"]) if (form[name].checked) query.set(name, "1");
  if (range) query.set("range", range.join(","));
  history.replaceState(null, "", `?${query}`);
}

function query() {
  const state = wanted(), asked = new URLSearchParams();
  for (const run of state.run) asked.append("run", run);
  for (const metric of state.metric) asked.append("metric", metric);
  asked.set("x", state.x);
  asked.set("group", state.group);
  return asked;
}

const see = (color, opacity) => color.replace("#", "").match(/../g).map((part) => parseInt(part, 16)).join(",").replace(/.*/, (rgb) => `rgba(${rgb},${opacity})`);

// A running mean over `part` hundredths of the curve.
function smoothed(values, part) {
  const half = Math.floor((values.length * part) / 200);
  if (half < 1) return values;
  const sums = [0];
  for (const value of values) sums.push(sums.at(-1) + value);
  return values.map((_, i) => {
    const low = Math.max(0, i - half), high = Math.min(values.length, i + half + 1);
    return (sums[high] - sums[low]) / (high - low);
  });
}

function traces(series, state) {
  return series.flatMap((one, i) => {
    const color = palette()[i % palette().length], label = plain(one.runs.length > 1 ? `${one.label} (mean of ${one.runs.length})` : one.label);
    const dash = ["solid", "dash", "dot", "dashdot"][Math.floor(i / palette().length) % 4];
    const y = smoothed(one.y, state.smooth), hovertemplate = `${label} %{y:.4g}<extra></extra>`;
    const mode = one.x.length < 30 ? "lines+markers" : "lines";
    const line = { x: one.x, y, name: label, mode, line: { color, width: 2, dash }, hovertemplate, legendgroup: label };
    if (one.low) {
      const band = { x: one.x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false, legendgroup: label };
      return [{ ...band, y: smoothed(one.low, state.smooth) }, { ...band, y: smoothed(one.high, state.smooth), fill: "tonexty", fillcolor: see(color, 0.18) }, line];
    }
    if (!one.own) return [line];
    const before = { ...line, x: one.x.slice(0, one.own + 1), y: y.slice(0, one.own + 1), showlegend: false, line: { color, width: 1, dash: "dash" } };
    return [before, { ...line, x: one.x.slice(one.own), y: y.slice(one.own) }];
  });
}

function summary(metric, series) {
  const last = series.map((one) => `${one.label}: last ${one.y.at(-1)?.toPrecision(4)}, lowest ${Math.min(...one.y).toPrecision(4)}`);
  return `${metric}. ${last.join("; ")}.`;
}

function drawOverlays() {
  const state = wanted();
  const figures = Object.entries(shownCurves).map(([metric, series]) => {
    const known = [...overlays.children].find((figure) => figure.dataset.metric === metric);
    const figure = known ?? figureOf(metric);
    figure.querySelector("div").setAttribute("aria-label", series.length ? summary(metric, series) : `${metric}: no run has it`);
    figure.querySelector("figcaption span").textContent = series.length ? "" : "no chosen run has it on this axis";
    return [figure, series];
  });
  overlays.replaceChildren(...figures.map(([figure]) => figure));
  for (const [figure, series] of figures) {
    const options = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: { scale: 2, filename: figure.dataset.metric.replace(/\W+/g, "_") } };
    const chart = figure.querySelector("div");
    const zoom = state.range ? { range: state.range, autorange: false } : {};
    const axes = { uirevision: `${state.x} ${state.logx}`, showlegend: true, xaxis: { type: state.logx ? "log" : "linear", title: names[state.x], ...zoom }, yaxis: { type: state.logy ? "log" : "linear" }, legend: { orientation: "h", y: -0.2, font: { size: 11, color: css("--muted") } } };
    Plotly.react(chart, traces(series, state), layout({ ...axes, margin: { l: 50, r: 12, t: 26, b: 34 } }), options);
    if (!chart.dataset.linked) chart.on("plotly_relayout", (change) => follow(chart, change));
    chart.dataset.linked = "1";
  }
}

function figureOf(metric) {
  const figure = document.createElement("figure");
  figure.className = "card chart";
  figure.dataset.metric = metric;
  figure.innerHTML = '<figcaption><h2></h2><span></span><button type="button" class="chip">Full screen</button></figcaption><div role="img"></div>';
  figure.querySelector("h2").textContent = metric.replace("eval/", "");
  figure.querySelector("button").addEventListener("click", () => (document.fullscreenElement ? document.exitFullscreen() : figure.requestFullscreen()));
  return figure;
}

let following = false;
function follow(source, change) {
  if (following) return;
  const range = change["xaxis.range[0]"] !== undefined ? { "xaxis.range": [change["xaxis.range[0]"], change["xaxis.range[1]"]] } : change["xaxis.autorange"] ? { "xaxis.autorange": true } : null;
  if (!range) return;
  readForm(range["xaxis.range"]);
  following = true;
  const others = [...overlays.querySelectorAll("figure > div")].filter((chart) => chart !== source);
  Promise.all(others.map((chart) => Plotly.relayout(chart, range))).finally(() => (following = false));
}

async function load() {
  const asked = query();
  document.getElementById("csv").href = `${form.dataset.curves}.csv?${asked}`;
  document.getElementById("json").href = `${form.dataset.curves}?${asked}`;
  try {
    const answer = await fetch(`${form.dataset.curves}?${asked}`);
    if (!answer.ok) throw new Error(answer.status);
    shownCurves = await answer.json();
    drawOverlays();
  } catch {
    overlays.textContent = "The curves could not be loaded.";
  }
}

if (form) {
  showInForm();
  form.addEventListener("change", (event) => {
    readForm(["x", "logx"].includes(event.target.name) ? null : wanted().range);
    if (["metric", "x", "group"].includes(event.target.name)) load();
    else if (shownCurves) drawOverlays();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("themechange", () => shownCurves && drawOverlays());
  addEventListener("popstate", () => { showInForm(); load(); });
  addEventListener("DOMContentLoaded", load);
}
