// The figures of a run and of a study, drawn by plotly from the numbers that the server sends.
"use strict";

// seaborn's colour-blind palette, as in the project's printed figures; lighter on a dark page.
const LIGHT = ["#0173b2", "#c26a00", "#029e73", "#a83279", "#8a5a2b", "#56788f"];
const DARK = ["#5cb3ec", "#f0a43a", "#38c79a", "#e38bc5", "#d2a679", "#a7c1d3"];
// Checkpoints, early to late: one hue, ending where it stands out most.
const SHADES = { light: [[168, 205, 217], [8, 52, 101]], dark: [[52, 84, 109], [164, 221, 255]] };
let lastCurves = null, lastStudy = null;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const palette = () => (isDark() ? DARK : LIGHT);
// plotly reads tags in names; a name from a file is text.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function shade(i, count) {
  const [from, to] = SHADES[isDark() ? "dark" : "light"];
  const t = count > 1 ? i / (count - 1) : 1;
  return `rgb(${from.map((value, k) => Math.round(value + t * (to[k] - value))).join(",")})`;
}

function layout(extra = {}) {
  const axis = {
    gridcolor: css("--grid"), linecolor: css("--line"), zeroline: false, ticks: "", automargin: true,
    tickfont: { color: css("--muted"), size: 11 }, title: { font: { color: css("--muted"), size: 11 }, standoff: 6 },
  };
  const { xaxis, yaxis, ...rest } = extra;
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 44, r: 12, t: 6, b: 34 },
    font: { family: css("--font"), color: css("--text"), size: 12 }, hovermode: "x unified", showlegend: false,
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--text"), size: 12 } },
    legend: { font: { size: 11, color: css("--muted") }, bgcolor: "rgba(0,0,0,0)", orientation: "h", x: 1, xanchor: "right", y: 1.02, yanchor: "bottom" },
    uirevision: "kept",
    xaxis: { ...axis, ...xaxis, title: { ...axis.title, text: xaxis?.title ?? "step" } },
    yaxis: { ...axis, ...yaxis, title: { ...axis.title, text: yaxis?.title ?? "" } },
    ...rest,
  };
}

// A chart as a sentence, for who cannot see it.
function inWords(name, traces) {
  const shown = traces.filter((trace) => trace.hoverinfo !== "skip" && trace.y.length);
  const last = shown.map((trace) => `${trace.name ?? ""} ${Number(trace.y.at(-1)).toPrecision(4)} at ${trace.x.at(-1)}`);
  return `${name.replaceAll("_", " ")}: ${last.slice(0, 12).join("; ")}`;
}

function draw(name, traces, extra) {
  const figure = document.querySelector(`[data-chart="${name}"]`);
  if (!figure) return;
  figure.classList.toggle("none", traces.length === 0);
  if (traces.length === 0) return;
  figure.lastElementChild.setAttribute("role", "img");
  figure.lastElementChild.setAttribute("aria-label", inWords(name, traces));
  Plotly.react(figure.lastElementChild, traces, layout(extra), { displayModeBar: false, responsive: true });
}

// A running mean over about a fiftieth of the curve, narrower at its ends.
function smooth(values) {
  const half = Math.floor(values.length / 100);
  if (half < 1) return values;
  const sums = [0];
  for (const value of values) sums.push(sums[sums.length - 1] + value);
  return values.map((_, i) => {
    const low = Math.max(0, i - half), high = Math.min(values.length, i + half + 1);
    return (sums[high] - sums[low]) / (high - low);
  });
}

// A line of few points shows them: one alone would be invisible.
const modeOf = (x) => (x.length < 4 ? "lines+markers" : "lines");

function line(curve, name, color, format) {
  const common = { x: curve.step, name, mode: modeOf(curve.step) };
  return [
    { ...common, y: curve.value, line: { color, width: 1 }, opacity: 0.3, hovertemplate: `${name} %{y:${format}}<extra></extra>` },
    { ...common, y: smooth(curve.value), line: { color, width: 2 }, hoverinfo: "skip" },
  ];
}

// Restarts and rollbacks, as thin vertical lines in every figure over steps.
function marks(curves) {
  return curves.marks.map((mark) => ({
    type: "line", xref: "x", yref: "paper", x0: mark.step, x1: mark.step, y0: 0, y1: 1,
    line: { color: css(mark.kind === "rollback" ? "--crashed" : "--waiting"), width: 1.2, dash: "dot" },
  }));
}

function overSteps(name, curves, series, format, extra = {}) {
  const there = series.filter(([key]) => curves[key]);
  const traces = there.flatMap(([key, label], i) => line(curves[key], label, palette()[i % palette().length], format));
  if (there.length > 1) traces.forEach((trace, i) => (trace.showlegend = i % 2 === 1));
  draw(name, traces, { shapes: marks(curves), showlegend: there.length > 1, ...extra });
}

function drawRun(curves) {
  lastCurves = curves;
  const parts = [["loss_text", "text"], ["loss_recall", "recall"]].filter(([key]) => curves[key]);
  overSteps("loss", curves, parts.length ? parts : [["loss", "loss"]], ".4f", { yaxis: { rangemode: "tozero" } });
  overSteps("bits_per_byte", curves, [["bits_per_byte", "bits per byte"]], ".4f");
  overSteps("grad_norm", curves, [["grad_norm", "gradient norm"]], ".4g", { yaxis: { rangemode: "tozero" } });
  overSteps("learning_rate", curves, [["learning_rate", "learning rate"]], ".3g", { yaxis: { rangemode: "tozero", tickformat: ".1e" } });
  overSteps("tokens_per_second", curves, [["tokens_per_second", "tokens/s"]], ",.0f", { yaxis: { rangemode: "tozero" } });
  overSteps("memory_gib", curves, [["memory_gib", "GiB"]], ".3f", { yaxis: { rangemode: "tozero" } });
  overSteps("gate_mean", curves, [["gate_mean", "gate mean"]], ".3f", { yaxis: { rangemode: "tozero" } });
  overSteps("data_stall_seconds", curves, [["data_stall_seconds", "seconds"]], ".4f", { yaxis: { rangemode: "tozero" } });
  overSteps("mfu", curves, [["mfu", "MFU"]], ".1%", { yaxis: { rangemode: "tozero", tickformat: ".0%" } });
  const share = { yaxis: { range: [0, 1.03], tickformat: ".0%" } };
  overSteps("goodput", curves, [["goodput", "goodput"]], ".1%", share);
  const machine = [["gpu_percent", "GPU"], ["gpu_memory_percent", "its memory"], ["cpu_percent", "processors"], ["host_memory_percent", "memory"]];
  overSteps("machine", curves, machine, ".0f", { yaxis: { range: [0, 103], ticksuffix: "%" } });
  const sources = named(curves, "loss_by_source/");
  overSteps("sources", curves, sources.length > 1 ? sources : [], ".4f");
  drawHealth(curves);
  document.getElementById("marks").hidden = curves.marks.length === 0;
  drawHeldout(curves);
  drawRecall(curves);
}

// Curves whose names begin so, each with the rest of its name as text.
const named = (curves, begin) => Object.keys(curves).filter((key) => key.startsWith(begin)).map((key) => [key, plain(key.slice(begin.length))]);

function drawHealth(curves) {
  const measures = [...new Set(named(curves, "health/").map(([key]) => key.split("/")[1]))];
  const measure = choose("measure", measures, measures.includes("mean_gate") ? "mean_gate" : measures[0], () => drawHealth(lastCurves));
  const layers = named(curves, `health/${measure}/`), colors = layers.map((_, i) => shade(i, layers.length));
  const traces = layers.map(([key, layer], i) => ({
    x: curves[key].step, y: curves[key].value, mode: modeOf(curves[key].step), name: `layer ${layer}`, line: { color: colors[i], width: 2 },
    hovertemplate: `layer ${layer} %{y:.4g}<extra></extra>`,
  }));
  draw("health", traces, { shapes: marks(curves), showlegend: layers.length <= 8 });
}

// The value of a select that offers `values`; it stays what a reader chose.
function choose(id, values, first, changed) {
  const select = document.getElementById(id);
  if (select.dataset.values !== values.join("\n")) {
    const chosen = values.includes(select.value) ? select.value : first;
    select.replaceChildren(...values.map((value) => new Option(value, value)));
    if (chosen !== undefined) select.value = chosen;
    select.dataset.values = values.join("\n");
    select.hidden = values.length < 2;
    select.onchange = changed;
  }
  return select.value;
}

function drawHeldout(curves) {
  const heldout = curves.heldout;
  if (!heldout) return draw("heldout", []);
  const ends = [Math.min(...heldout.step), Math.max(...heldout.step)];
  if (ends[0] === ends[1]) { ends[0] *= 0.9; ends[1] *= 1.1; }
  const baseline = (value, name, dash) => ({
    x: ends, y: [value, value], name: `${name} ${value.toFixed(2)}`, mode: "lines", line: { color: css("--muted"), width: 1.3, dash }, hoverinfo: "skip",
  });
  const traces = [{
    x: heldout.step, y: heldout.value, name: "model", mode: "lines+markers", line: { color: palette()[0], width: 2 }, marker: { size: 7 },
    hovertemplate: "%{y:.4f} bits per byte<extra></extra>",
  }];
  if (heldout.unigram != null) traces.push(baseline(heldout.unigram, "unigram", "dash"));
  if (heldout.gzip != null) traces.push(baseline(heldout.gzip, "gzip -9", "dot"));
  draw("heldout", traces, { showlegend: true, yaxis: { rangemode: "tozero" } });
}

function drawRecall(curves) {
  const charts = curves.recall, labels = charts.map((one) => one.label);
  const label = choose("label", labels, labels[0], () => drawRecall(lastCurves));
  const task = charts.find((one) => one.label === label) ?? charts[0];
  if (!task) return draw("recall", []);
  const all = task.checkpoints;
  const named = new Set([0, 0.25, 0.5, 0.75, 1].map((part) => Math.round(part * (all.length - 1))));
  const traces = all.map((checkpoint, i) => {
    const points = checkpoint.points, color = shade(i, all.length);
    return {
      x: points.map((p) => p.length), y: points.map((p) => p.accuracy), mode: "lines+markers", name: `step ${checkpoint.step.toLocaleString("en")}`,
      line: { color, width: 2 }, marker: { size: 6, color }, showlegend: named.has(i),
      error_y: { type: "data", symmetric: false, array: points.map((p) => p.high - p.accuracy), arrayminus: points.map((p) => p.accuracy - p.low), color, thickness: 1.2, width: 4 },
      customdata: points.map((p) => [p.low, p.high, p.queries]),
      hovertemplate: "%{y:.1%} (%{customdata[0]:.1%} to %{customdata[1]:.1%}, %{customdata[2]:,} queries)",
    };
  });
  const lengths = [...new Set(all.flatMap((one) => one.points.map((p) => p.length)))].sort((a, b) => a - b);
  const chance = all[0].points[0].chance;
  traces.push({ x: [lengths[0], lengths.at(-1)], y: [chance, chance], mode: "lines", name: `chance ${(100 * chance).toFixed(1)}%`, line: { color: css("--muted"), width: 1.3, dash: "dash" }, hoverinfo: "skip" });
  draw("recall", traces, {
    showlegend: true, legend: { font: { size: 11, color: css("--muted") }, bgcolor: "rgba(0,0,0,0)", x: 1.02, y: 1, traceorder: "reversed" },
    xaxis: { type: "log", dtick: 0.30103, tickvals: lengths, ticktext: lengths.map((n) => n.toLocaleString("en")), title: "length of the sequence (tokens)" },
    yaxis: { range: [-0.03, 1.04], tickformat: ".0%" },
  });
}

function drawStudy(curves) {
  lastStudy = curves;
  drawStudyRuns(curves.runs ?? []);
  const symbols = ["circle", "square", "diamond", "triangle-up", "x", "star"];
  const traces = Object.entries(curves.families ?? {}).map(([family, cells], i) => ({
    x: cells.flops, y: cells.loss, text: cells.name.map(plain), name: plain(family), mode: "markers",
    marker: { color: palette()[i % palette().length], symbol: symbols[i % symbols.length], size: 9 },
    hovertemplate: "%{text}<br>%{y:.4f} at %{x:.3g} FLOPs<extra></extra>",
  }));
  draw("study", traces, { showlegend: true, hovermode: "closest", xaxis: { type: "log", dtick: "D2", tickformat: ".0e", title: "training FLOPs" }, yaxis: { title: "loss" } });
}

// The training of a study's runs: a trunk thick, a cell from where it branches, in the colour of its place in the plan.
function drawStudyRuns(runs) {
  const traces = runs.map((run, i) => {
    const color = palette()[i % palette().length], name = plain(run.name), begin = Math.max(0, run.own - 1);
    return {
      x: run.x.slice(begin), y: smooth(run.y.slice(begin)), name, mode: "lines", line: { color, width: run.trunk ? 3 : 1.5 },
      hovertemplate: `${name} %{y:.4f}<extra></extra>`,
    };
  });
  draw("study_runs", traces, { showlegend: runs.length <= 12, hovermode: "closest", xaxis: { title: "tokens" } });
}

addEventListener("themechange", () => {
  if (lastCurves) drawRun(lastCurves);
  if (lastStudy) drawStudy(lastStudy);
});
