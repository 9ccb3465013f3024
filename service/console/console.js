// The console. Data from the service enters the page as text (textContent), never as markup.

const $ = (id) => document.getElementById(id);
const form = $("search"), query = $("query"), plan = $("plan"), compare = $("compare");
const hitCount = $("k"), filter = $("filter"), picker = $("collection"), results = $("results");

let details = null; // GET /v1/collections/{name} of the selected collection
let running = null; // AbortController of the search in flight

function el(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  const { text, ...attributes } = options;
  for (const [name, value] of Object.entries(attributes)) if (value != null) element.setAttribute(name, value);
  if (text != null) element.textContent = text;
  element.append(...children.filter((child) => child));
  return element;
}

// ---- the service

class Failure extends Error {
  constructor(problem) {
    super(problem.detail || problem.title);
    this.problem = problem;
  }
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure({ title: "No connection", detail: "The service does not respond. Is it still running?" });
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw new Failure(body || { title: `Status ${response.status}`, detail: "The response was not JSON.", status: response.status });
}

const collectionPath = () => `/v1/collections/${encodeURIComponent(picker.value)}`;

function searchBody(planName) {
  const body = { query: query.value, k: Number(hitCount.value) || 10, plan: planName, explain: true };
  if (filter.value.trim()) {
    try {
      body.filter = JSON.parse(filter.value);
    } catch (error) {
      throw new Failure({ title: "Invalid filter", detail: `The filter is not JSON: ${error.message}` });
    }
  }
  return JSON.stringify(body);
}

function askSearch(planName, signal) {
  const headers = { "Content-Type": "application/json" };
  return ask(`${collectionPath()}/search`, { method: "POST", headers, body: searchBody(planName), signal });
}

// ---- numbers

function milliseconds(value) {
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

function score(value) {
  const size = Math.abs(value);
  return size === 0 ? "0" : size >= 100 ? value.toFixed(1) : size >= 0.001 ? value.toFixed(size >= 10 ? 2 : 3) : value.toExponential(1);
}

function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  while (value >= 1000 && unit < units.length - 1) { value /= 1000; unit += 1; }
  return `${value < 10 && unit ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

// ---- one column of results

const COLOURS = 6;
const OVERHEAD = new Set(["queue", "filter", "documents", "other"]);
const LABELS = { fuse: "fused", fuse_again: "fused again", rescore: "rescored", blend: "blended", cur: "cross-encoder", rerank: "reranked" };
// The key of an explained stage in timings_ms.
const stageKey = ({ stage, name }) =>
  stage.startsWith("fuse") ? stage : `${stage === "retrieve_again" ? "feedback" : stage}:${name}`;

// One colour per stage on the whole page, in order of appearance.
function colourOf() {
  const seen = new Map([["encode", 0]]);
  return (key) => {
    if (OVERHEAD.has(key)) return "overhead";
    if (!seen.has(key)) seen.set(key, seen.size % COLOURS);
    return `c${seen.get(key)}`;
  };
}

function timings(answer, colour) {
  const { total, ...stages } = answer.timings_ms;
  const parts = Object.entries(stages);
  const rest = total - parts.reduce((sum, [, value]) => sum + value, 0);
  if (rest > 0) parts.push(["other", rest]);
  const bar = el("div", { class: "timing", "aria-hidden": "true" });
  const legend = el("ul", { class: "legend", "aria-label": "Time of each stage" });
  for (const [stage, value] of parts) {
    const shade = colour(stage);
    const segment = el("span", { class: shade, title: `${stage} ${milliseconds(value)}` });
    segment.style.flexGrow = String(Math.max(value, 0));
    bar.append(segment);
    legend.append(el("li", {}, el("span", { class: `swatch ${shade}` }), `${stage} ${milliseconds(value)}`));
  }
  return [bar, legend];
}

// Bars compare hits within one stage: from 0 (or the lowest score on the page, if it is negative) to the highest.
function scales(hits) {
  const ranges = new Map();
  for (const hit of hits) {
    for (const stage of hit.explanation?.stages ?? []) {
      if (stage.score == null) continue;
      const range = ranges.get(stageKey(stage)) ?? { low: 0, high: 0 };
      ranges.set(stageKey(stage), { low: Math.min(range.low, stage.score), high: Math.max(range.high, stage.score) });
    }
  }
  return (stage) => {
    const { low, high } = ranges.get(stageKey(stage));
    return high > low ? (stage.score - low) / (high - low) : 0;
  };
}

// The documents that feedback used, and the trust in them; feedback itself gives no scores.
function feedbackRow(stage) {
  const source = `${stage.method} from ${stage.documents.join(", ") || "no document"} (${stage.source} ranking)`;
  const trust = stage.trust == null ? "" : `, z = ${stage.standout}, trust ${stage.trust}`;
  return el(
    "div",
    { class: "stage feedback", title: `${stageKey(stage)}: ${source}${trust}` },
    el("span", { class: "name", text: `${stage.name} feedback` }),
    el("span", { class: "summary", text: stage.skipped ? "skipped" : `from ${stage.documents.length}` }),
    el("span", { class: "value", text: stage.trust == null ? "" : `× ${stage.trust}` }),
    el("span", { class: "position", text: stage.rank == null ? "" : `#${stage.rank}` }),
  );
}

function stageRow(stage, share, shade, last) {
  if (stage.stage === "feedback") return feedbackRow(stage);
  const again = stage.stage === "retrieve_again" ? " again" : "";
  const label = LABELS[stage.stage] ?? stage.name + again;
  const words = stage.score == null ? "not found" : `score ${score(stage.score)}, rank ${stage.rank}`;
  const weight = stage.weight == null ? "" : `, ${score(stage.weight)} × ${score(stage.value)} = ${score(stage.share)} of the fused score`;
  const fill = el("i", { class: shade });
  fill.style.width = stage.score == null ? "0" : `${Math.max(100 * share(stage), 1)}%`;
  return el(
    "div",
    { class: `stage${last ? " last" : ""}${stage.score == null ? " absent" : ""}`, title: `${stageKey(stage)}: ${words}${weight}` },
    el("span", { class: "name", text: label }),
    el("span", { class: "bar", "aria-hidden": "true" }, fill),
    el("span", { class: "value", text: stage.score == null ? "–" : score(stage.score) }),
    el("span", { class: "position", text: stage.rank == null ? "" : `#${stage.rank}` }),
  );
}

function rankChange(hit, other, otherPlan) {
  if (!other) return null;
  const before = other.get(hit.doc_id);
  if (before == null) return el("span", { class: "change only", text: "only", title: `Not among the hits of plan ${otherPlan}` });
  const moved = before - hit.rank;
  const title = `Rank ${before} with plan ${otherPlan}`;
  if (!moved) return el("span", { class: "change same", text: "=", title });
  return el("span", { class: `change ${moved > 0 ? "up" : "down"}`, text: `${moved > 0 ? "▲" : "▼"}${Math.abs(moved)}`, title });
}

function toggle(item) {
  const open = item.classList.toggle("open");
  const button = item.querySelector(".more");
  if (button) {
    button.textContent = open ? "show less" : "full text";
    button.setAttribute("aria-expanded", String(open));
  }
}

function hitItem(hit, context) {
  const change = rankChange(hit, context.other, context.otherPlan);
  const stages = hit.explanation?.stages ?? [];
  const more = el("button", { type: "button", class: "more", text: "full text", "aria-expanded": "false" });
  const about = el(
    "p",
    { class: "about" },
    el("span", { text: hit.doc_id }),
    ...Object.entries(hit.metadata).map(([name, value]) => el("span", { text: `${name}: ${typeof value === "object" ? JSON.stringify(value) : value}` })),
  );
  const text = el("p", { class: "text", text: hit.text });
  const item = el(
    "li",
    { class: `hit${change && !change.classList.contains("same") ? " moved" : ""}`, tabindex: "0", "aria-label": `Rank ${hit.rank}: ${hit.title || hit.doc_id}` },
    el("div", { class: "rank" }, String(hit.rank), change),
    el("div", {}, hit.title ? el("h3", { text: hit.title }) : null, text, about),
    el("div", { class: "stages" }, ...stages.map((stage, index) => stageRow(stage, context.share, context.colour(stageKey(stage)), index === stages.length - 1))),
  );
  more.addEventListener("click", () => toggle(item));
  item.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target === item) toggle(item);
  });
  context.afterLayout.push(() => {
    if (text.scrollHeight > text.clientHeight + 1) about.append(more);
  });
  return item;
}

function column(answer, other, colour) {
  const context = {
    colour,
    share: scales(answer.hits),
    other: other && new Map(other.hits.map((hit) => [hit.doc_id, hit.rank])),
    otherPlan: other?.plan.name,
    afterLayout: [],
  };
  const { name, ...definition } = answer.plan;
  const notes = [];
  if (answer.degraded.length) notes.push(`Skipped or cut because of the deadline: ${answer.degraded.join(", ")}.`);
  if (answer.truncated_query) notes.push("The query was longer than the encoder reads and was truncated.");
  const section = el(
    "section",
    { class: "column", "aria-label": `Hits by plan ${name}` },
    el(
      "header",
      {},
      el("h2", {}, name, el("span", { class: "time", text: milliseconds(answer.timings_ms.total) })),
      ...timings(answer, context.colour),
      ...notes.map((note) => el("p", { class: "note", text: note })),
      el("details", { class: "plan" }, el("summary", { text: "Plan" }), el("pre", { text: JSON.stringify(definition, null, 2) })),
    ),
    answer.hits.length
      ? el("ol", { class: "hits" }, ...answer.hits.map((hit) => hitItem(hit, context)))
      : el("p", { class: "card", text: "No document matches. Try another query or a less restrictive filter." }),
  );
  return { section, afterLayout: context.afterLayout };
}

// ---- states of the page

function show(children, { two = false } = {}) {
  results.classList.toggle("two", two);
  results.replaceChildren(...children);
}

function failureCard(failure) {
  const { title, detail, code, request_id: id, errors } = failure.problem ?? { title: "The page failed", detail: String(failure) };
  const reference = [code, id && `request ${id}`].filter(Boolean).join(" · ");
  return el(
    "div",
    { class: "card failure", role: "alert" },
    el("h2", { text: title }),
    el("p", { text: detail }),
    errors?.length > 1 && el("ul", {}, ...errors.map((fault) => el("li", {}, el("code", { text: fault.pointer || "/" }), ` ${fault.detail}`))),
    reference && el("p", { class: "reference", text: reference }),
  );
}

function showStart() {
  const examples = details?.examples ?? [];
  const buttons = examples.map((example) => {
    const button = el("button", { type: "button", text: example });
    button.addEventListener("click", () => {
      query.value = example;
      search();
    });
    return el("li", {}, button);
  });
  const size = details && `${details.documents.toLocaleString("en")} documents`;
  show([
    el(
      "div",
      { class: "card welcome" },
      el("p", { text: details ? `Search ${size} of ${details.name}. Every hit shows its score in each stage of the plan.` : "Loading…" }),
      buttons.length ? el("ul", { class: "examples", "aria-label": "Example queries" }, ...buttons) : null,
    ),
  ]);
}

function announce(answers) {
  $("status").textContent = answers.map((a) => `${a.plan.name}: ${a.hits.length} hits in ${milliseconds(a.timings_ms.total)}`).join("; ");
}

// ---- searching

async function search({ remember = true } = {}) {
  running?.abort();
  if (!query.value.trim()) {
    if (remember) saveState();
    showStart();
    return;
  }
  if (remember) saveState();
  const controller = (running = new AbortController());
  results.setAttribute("aria-busy", "true");
  try {
    const answers = [];
    // Sequentially: concurrent searches would wait for each other, which would distort their timings.
    for (const name of [plan.value, compare.value].filter(Boolean)) answers.push(await askSearch(name, controller.signal));
    const colour = colourOf();
    const columns = answers.map((answer, index) => column(answer, answers[1 - index], colour));
    show(columns.map((c) => c.section), { two: columns.length === 2 });
    for (const { afterLayout } of columns) afterLayout.forEach((step) => step());
    announce(answers);
  } catch (error) {
    if (error.name === "AbortError") return;
    show([failureCard(error)]);
  } finally {
    if (running === controller) results.removeAttribute("aria-busy");
  }
}

function saveState() {
  const state = new URLSearchParams();
  if (query.value) state.set("q", query.value);
  state.set("collection", picker.value);
  state.set("plan", plan.value);
  if (compare.value) state.set("compare", compare.value);
  if (hitCount.value !== "10") state.set("k", hitCount.value);
  if (filter.value.trim()) state.set("filter", filter.value.trim());
  if (location.search !== `?${state}`) history.pushState(null, "", `?${state}`);
  document.title = query.value ? `${query.value} – Chamfer` : "Chamfer";
}

// ---- the collection and its plans

function fill(select, values, selected) {
  select.replaceChildren(...values.map(([value, label]) => el("option", { value, text: label })));
  if (values.some(([value]) => value === selected)) select.value = selected;
}

async function openCollection(state) {
  details = await ask(collectionPath());
  const names = Object.keys(details.plans).map((name) => [name, name]);
  fill(plan, names, state.get("plan") ?? details.default_plan);
  fill(compare, [["", "nothing"], ...names], state.get("compare") ?? "");
  const size = Object.values(details.bytes).reduce((sum, value) => sum + value, 0);
  $("facts").textContent = [
    `${details.documents.toLocaleString("en")} documents`,
    Object.keys(details.channels).join(" + "),
    details.encoder.name,
    bytes(size),
    details.snapshot,
  ].filter(Boolean).join(" · ");
}

async function restoreState() {
  const state = new URLSearchParams(location.search);
  query.value = state.get("q") ?? "";
  hitCount.value = state.get("k") ?? "10";
  filter.value = state.get("filter") ?? "";
  $("filter-box").open = Boolean(filter.value);
  if (state.get("collection")) picker.value = state.get("collection");
  await openCollection(state);
  await search({ remember: false });
}

async function start() {
  try {
    const { collections } = await ask("/v1/collections");
    const requested = new URLSearchParams(location.search).get("collection");
    fill(picker, collections.map(({ name }) => [name, name]), requested);
    const selected = collections.find(({ name }) => name === picker.value);
    if (!selected) throw new Failure({ title: "Nothing to search", detail: "This service serves no collection." });
    if (!selected.ready) {
      show([el("p", { class: "card", text: `The collection is not ready: ${selected.reason}.` })]);
      setTimeout(start, 1000);
      return;
    }
    await restoreState();
  } catch (error) {
    show([failureCard(error)]);
  }
}

async function guarded(step) {
  try {
    await step();
  } catch (error) {
    show([failureCard(error)]);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
for (const choice of [plan, compare]) choice.addEventListener("change", () => query.value.trim() && search());
picker.addEventListener("change", () => guarded(async () => {
  await openCollection(new URLSearchParams({ plan: plan.value, compare: compare.value }));
  await search();
}));
window.addEventListener("popstate", () => guarded(restoreState));

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, textarea, select");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (event.key === "Escape" && event.target !== query) {
    query.focus();
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (typing && event.target !== query) return;
    const items = [...results.querySelectorAll(".hit")];
    const at = items.indexOf(document.activeElement);
    const next = items[event.key === "ArrowDown" ? at + 1 : at - 1];
    if (next) {
      event.preventDefault();
      next.focus();
    } else if (at === 0) {
      event.preventDefault();
      query.focus();
    }
  }
});

showStart();
start();
