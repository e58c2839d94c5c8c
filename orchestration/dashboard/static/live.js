// Keeps an open page current: asks the server every few seconds for what changed, and puts the server's own HTML in place.
"use strict";
const EVERY_MS = 2000;
const byId = (id) => document.getElementById(id);

// ---- times, as "3 min ago"

function ago(seconds) {
  if (seconds < 5) return "just now";
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

function showTimes(root = document) {
  const now = Date.now() / 1000;
  for (const time of root.querySelectorAll("time[data-at]")) {
    const text = ago(now - Number(time.dataset.at));
    if (time.textContent !== text) time.textContent = text;
  }
}

// ---- asking

function showPulse(works) {
  const pulse = byId("pulse");
  pulse.hidden = false;
  pulse.classList.toggle("lost", !works);
  pulse.lastElementChild.textContent = works ? "live" : "server gone";
}

async function ask(address) {
  const answer = await fetch(address, { cache: "no-store" });
  if (answer.status === 204) return null;
  if (!answer.ok) throw new Error(answer.status);
  return answer.json();
}

function poll(step, every = EVERY_MS) {
  const again = async () => {
    if (!document.hidden) {
      try {
        await step();
        showPulse(true);
      } catch {
        showPulse(false);
      }
      showTimes();
    }
    setTimeout(again, every);
  };
  again();
}

function fromHtml(html) {
  const template = document.createElement("template");
  template.innerHTML = html.trim();
  return template.content.firstElementChild;
}

// ---- the table of runs: holds all rows; the first of the matching ones are in the page

const ORDER = ["running", "crashed", "damaged", "stopped", "waiting", "finished"];

function runsPage(table) {
  const body = table.tBodies ? table.tBodies[0] : null;
  const counts = byId("counts"), filter = byId("filter"), more = byId("more"), rest = byId("rest");
  const rows = new Map(), states = new Set();
  const given = new URLSearchParams(location.search), archived = byId("archived");
  const columns = new URLSearchParams(given.getAll("column").map((name) => ["column", name]));
  const heads = table.tHead ? [...table.tHead.querySelectorAll("[data-column]")] : [];
  const picked = new Set(given.getAll("run"));
  let version = table.dataset.version, limit = Number(table.dataset.shown);
  let column = heads.findIndex((head) => head.dataset.key === given.get("sort"));
  let descending = given.get("order") === "down";
  if (column < 0) column = null;
  for (const state of (given.get("states") ?? "").split(",").filter(Boolean)) states.add(state);
  filter.value = given.get("filter") ?? "";

  // What is shown stands in the address: a reload and a link show the same.
  const remember = () => {
    const query = new URLSearchParams(columns);
    for (const run of picked) query.append("run", run);
    if (filter.value) query.set("filter", filter.value);
    if (states.size) query.set("states", [...states].join(","));
    if (column !== null) query.set("sort", heads[column].dataset.key);
    if (column !== null && descending) query.set("order", "down");
    history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
  };

  const value = (row) => {
    const sort = row.cells[column].dataset.sort;
    if (sort === undefined) return row.dataset.name;
    return sort === "" ? null : isNaN(sort) ? sort : Number(sort);
  };
  const compare = (a, b) => {
    if (column === null)
      return ORDER.indexOf(a.dataset.state) - ORDER.indexOf(b.dataset.state) || b.dataset.updated - a.dataset.updated;
    const x = value(a), y = value(b);
    if (x === null || y === null) return (x === null) - (y === null); // missing values last
    return (x < y ? -1 : x > y ? 1 : 0) * (descending ? -1 : 1);
  };
  // `loss<2`, `learning_rate=0.001`: by the column whose name ends so.
  const holds = (row, name, sign, wanted) => {
    const head = heads.find((one) => one.dataset.key === name) ?? heads.find((one) => one.dataset.key.endsWith(name));
    const cell = head && row.cells[Number(head.dataset.column)];
    const stored = cell?.dataset.sort, number = Number(wanted);
    if (stored === undefined || stored === "") return false;
    if (isNaN(number) || isNaN(stored)) return sign === "=" && stored.toLowerCase() === wanted;
    return sign === "<" ? stored < number : sign === ">" ? stored > number : Number(stored) === number;
  };
  const matches = (row, words) => {
    if (states.size > 0 && !states.has(row.dataset.state)) return false;
    if ("archived" in row.dataset && !archived.firstElementChild.checked) return false;
    const text = row.cells[0].textContent.toLowerCase();
    return words.every((word) => {
      const parts = word.match(/^([^<>=]+)([<>=])([^<>=]+)$/);
      return parts ? holds(row, parts[1], parts[2], parts[3]) : text.includes(word);
    });
  };
  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const matching = [...rows.values()].filter((row) => matches(row, words)).sort(compare);
    const shown = matching.slice(0, limit);
    if (body.rows.length !== shown.length || shown.some((row, i) => body.rows[i] !== row)) body.replaceChildren(...shown);
    more.hidden = shown.length === matching.length;
    byId("shown").textContent = shown.length === rows.size ? "" : `${shown.length.toLocaleString("en")} of ${rows.size.toLocaleString("en")} runs shown`;
    archived.hidden = ![...rows.values()].some((row) => "archived" in row.dataset);
    for (const row of shown) row.querySelector(".pick").checked = picked.has(row.dataset.name);
    showPicked();
    for (const chip of counts.children) chip.setAttribute("aria-pressed", states.has(chip.dataset.state));
    showTimes(body);
  };
  const showPicked = () => {
    const link = byId("compare"), query = new URLSearchParams([...picked].map((name) => ["run", name]));
    link.hidden = picked.size === 0;
    link.textContent = `Compare ${picked.size}`;
    link.search = query.toString();
  };
  const reload = () => {
    remember();
    location.reload();
  };
  if (body) {
    if (column !== null) heads[column].parentElement.setAttribute("aria-sort", descending ? "descending" : "ascending");
    byId("csv").search = columns.toString();
    archived.addEventListener("change", () => show());
    body.addEventListener("change", (event) => {
      if (!event.target.matches(".pick")) return;
      if (event.target.checked) picked.add(event.target.value);
      else picked.delete(event.target.value);
      remember();
      showPicked();
    });
    const add = byId("add");
    add.column.addEventListener("focus", async () => {
      const keys = await ask(add.column.dataset.keys);
      byId("keys").replaceChildren(...keys.map((key) => new Option(key, key)));
    }, { once: true });
    add.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!add.column.value) return;
      columns.append("column", add.column.value);
      reload();
    });
    for (const chip of document.querySelectorAll("[data-drop]"))
      chip.addEventListener("click", () => {
        const kept = columns.getAll("column").filter((name) => name !== chip.dataset.drop);
        columns.delete("column");
        for (const name of kept) columns.append("column", name);
        reload();
      });
    for (const row of [...body.rows, ...(rest ? rest.content.querySelectorAll("tr") : [])]) rows.set(row.dataset.name, row);
    show();
    more.addEventListener("click", () => {
      limit *= 4;
      show();
    });
    counts.addEventListener("click", (event) => {
      const state = event.target.closest("[data-state]")?.dataset.state;
      if (!state) return;
      if (!states.delete(state)) states.add(state);
      remember();
      show();
    });
    filter.addEventListener("input", () => {
      remember();
      show();
    });
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("[data-column]");
      if (!button) return;
      const chosen = Number(button.dataset.column);
      descending = column === chosen ? !descending : chosen > 2;
      column = chosen;
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      button.parentElement.setAttribute("aria-sort", descending ? "descending" : "ascending");
      remember();
      show();
    });
  }
  poll(async () => {
    const changes = await ask(`${table.dataset.live}?since=${version}&${columns}`);
    if (changes.reload || (!body && Object.keys(changes.rows).length)) return location.reload();
    version = changes.version;
    if (!body || (!Object.keys(changes.rows).length && !changes.gone.length)) return;
    for (const [name, html] of Object.entries(changes.rows)) rows.set(name, fromHtml(html));
    for (const name of changes.gone) rows.delete(name);
    counts.innerHTML = changes.counts;
    show();
  });
}

// ---- the page of a run

function runPage(page) {
  let version = "";
  poll(async () => {
    const update = await ask(`${page.dataset.live}?since=${version}`);
    if (update === null) return;
    for (const [name, html] of Object.entries(update.parts)) {
      const part = page.querySelector(`[data-part="${name}"]`);
      // What a reader opened or closed stays so.
      const open = new Map([...part.querySelectorAll("details")].map((one, i) => [one.dataset.suite ?? i, one.open]));
      if (version !== "") part.innerHTML = html;
      if (version !== "")
        [...part.querySelectorAll("details")].forEach((one, i) => (one.open = open.get(one.dataset.suite ?? i) ?? one.open));
    }
    version = update.version;
    drawRun(update.curves);
  });
}

showTimes();
if (byId("runs")) runsPage(byId("runs"));
addEventListener("DOMContentLoaded", () => {
  if (byId("run")) runPage(byId("run"));
  const study = byId("study");
  if (study) ask(study.dataset.curves).then(drawStudy);
});
// ---- pages without events of their own: their changing parts are fetched again as the server renders them

function refreshedPage() {
  poll(async () => {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelectorAll("[data-refresh]");
    [...document.querySelectorAll("[data-refresh]")].forEach((part, i) => {
      if (fresh[i] && part.dataset.shown !== fresh[i].innerHTML) {
        part.dataset.shown = part.innerHTML = fresh[i].innerHTML;
      }
    });
  }, 5 * EVERY_MS);
}

if (document.querySelector("[data-refresh]")) refreshedPage();
else if (!byId("runs") && !byId("run")) setInterval(showTimes, EVERY_MS);
