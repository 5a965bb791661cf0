// One function for each page: it fills the page, and returns the function that brings it up to date.
import { address, again, get, post, records, rests } from "./api.js";
import { card, questions } from "./cards.js";
import { colour, figure, h, own, prose, visible } from "./dom.js";
import { judging } from "./judging.js";
import { asked, moment, ramp, versionsLive } from "./people.js";
import { table } from "./table.js";

async function charts(main, page, values = {}) {
  const { questions: found, words } = await questions(page);
  const own = (question) => Object.fromEntries(Object.entries(values).filter(([name]) => question.parameters.includes(name)));
  const cards = found.map((question) => card(question, words, own(question)));
  main.append(h("div", { className: "grid" }, cards.map((each) => each.element)));
  return async () => {
    for (const each of cards) await each.refresh();
  };
}

export async function overview(main) {
  const place = h("div", { ariaLive: "polite" });
  const result = h("div");
  const alerts = h("div");
  main.append(place, alerts, result);
  const refresh = await charts(main, "overview");
  get("/api/evaluations").then(
    (judged) => result.append(...judged.evaluations.map(evaluation)),
    (error) => result.append(h("p", { className: "notice" }, visible(error.message))),
  );
  const LEVELS = { good: "good", warn: "look", bad: "problem", unknown: "not known" };
  const statements = async () => {
    if (rests("overview")) return;
    const { health, state, rest } = await get("/api/overview");
    again("overview", rest, statements);
    const { limit } = health;
    place.replaceChildren(
      state ? h("p", { className: "notice" }, state) : "",
      h("p", { className: "quiet" }, `${figure(health.updates)} updates, ${figure(health.groups)} rewarded groups.`),
      h(
        "div",
        { className: "statements" },
        health.statements.map((each) =>
          h("div", { className: `statement ${each.level}` }, h("span", { className: "level" }, LEVELS[each.level]), h("b", {}, each.question), prose(each.says), " ", h("a", { href: address(each.link) }, "Show me")),
        ),
        h("div", { className: "statement" }, h("b", {}, "What limits it?"), prose(limit.says), bar(limit.shares), h("span", { className: "quiet" }, prose(limit.advice))),
      ),
    );
  };
  return async () => {
    await Promise.all([refresh(), statements(), showAlerts(alerts)]);
  };
}

// The rules that fire now, each with the question behind it. They come after the rest of the page: they cost more.
async function showAlerts(place) {
  if (rests("alerts")) return;
  try {
    const { alerts, rest } = await get("/api/alerts");
    again("alerts", rest, () => showAlerts(place));
    const firing = alerts.filter((each) => each.state === "firing"), silenced = alerts.filter((each) => each.state === "silenced");
    const watching = alerts.filter((each) => each.state !== "no data").length;
    place.replaceChildren(
      h(
        "section",
        { className: "card", ariaLabel: "Alerts" },
        h("h2", {}, "Alerts"),
        firing.map((each) => h("p", { className: `notice ${each.severity === "critical" ? "bad" : ""}` }, h("b", {}, visible(each.rule)), ": ", prose(each.says), " ", h("span", { className: "quiet" }, prose(each.hint)), " ", each.sql ? h("a", { href: address("/sql", { sql: each.sql }) }, "The rows behind it") : "")),
        h("p", { className: "quiet" }, `${firing.length ? "" : "No rule fires. "}${watching} of ${alerts.length} rules have data${silenced.length ? `, ${silenced.length} silenced` : ""}.`),
      ),
    );
  } catch (error) {
    place.replaceChildren(h("p", { className: "notice" }, visible(error.message)));
  }
}

// Held-out queries: each row against the baseline, with its interval.
function evaluation(each) {
  const interval = (found, sign) => (found && found.value !== null ? `${sign && found.value > 0 ? "+" : ""}${found.value.toFixed(3)} [${found.low.toFixed(3)}, ${found.high.toFixed(3)}]` : "–");
  const shown = each.measures.slice(0, 4);
  const columns = ["row", ...shown, ...shown.slice(0, 2).map((measure) => `${measure} against ${each.baseline}`)];
  const rows = each.runs.map((run) => [
    run.name,
    ...shown.map((measure) => interval(run.measures[measure])),
    ...shown.slice(0, 2).map((measure) => (run.name === each.baseline ? "" : interval(run.differences?.[measure]?.interval, true))),
  ]);
  return h(
    "section",
    { className: "card", ariaLabel: `Evaluation ${each.name}` },
    h("h2", {}, "Held-out queries"),
    h("p", { className: "quiet" }, `${figure(each.queries)} queries that trained nothing (${visible(each.name)}). In brackets: ${Math.round(100 * each.confidence)} % intervals by query. A difference counts if its interval excludes 0.`),
    table({ title: "Evaluation" }, { columns: each.baseline ? columns : columns.slice(0, 1 + shown.length), rows }),
    each.note ? h("p", { className: "quiet" }, own(each.note)) : "",
  );
}

function bar(shares) {
  const parts = Object.entries(shares);
  if (!parts.length) return "";
  const spans = parts.map(([name, share], number) => {
    const span = h("span", { title: `${name}: ${figure(share, "share")}` });
    span.style.flexGrow = share;
    span.style.background = colour(number);
    return span;
  });
  return h("div", { className: "bar", role: "img", ariaLabel: parts.map(([name, share]) => `${name} ${figure(share, "share")}`).join(", ") }, spans);
}

export const rewards = (main) => charts(main, "rewards");
export const learning = (main) => charts(main, "learning");
export async function live(main, here) {
  const people = versionsLive();
  main.append(people.element);
  const refresh = await charts(main, "live", { client: here.get("client") || "" });
  return async () => {
    await Promise.all([people.refresh(), refresh()]);
  };
}

export async function examples(main, here) {
  const { questions: found, words } = await questions("examples");
  const values = { step: here.get("step") || "", query: here.get("query") || "", sort: here.get("sort") || "" };
  const choices = { "": "newest first", best: "highest reward", worst: "lowest reward", spread: "largest spread", flat: "without spread" };
  main.append(
    h(
      "form",
      { className: "row", action: address("/examples").split("?")[0], role: "search" },
      h("input", { type: "hidden", name: "run", value: here.get("run") }),
      h("label", {}, "Query, or an id", h("input", { name: "query", value: values.query, maxLength: 10000 })),
      h("label", {}, "Policy version (step)", h("input", { name: "step", value: values.step, inputMode: "numeric", pattern: "-?[0-9]*", size: 8 })),
      h("label", {}, "Order", h("select", { name: "sort" }, Object.entries(choices).map(([value, text]) => h("option", { value, selected: value === values.sort }, text)))),
      h("button", { className: "first" }, "Show"),
    ),
  );
  const one = card(found[0], words, values);
  main.append(one.element);
  return one.refresh;
}

export async function example(main, here) {
  const group = await get("/api/group", { group: here.get("group") || "" });
  const { words } = await questions("rewards");
  const ordered = [...group.candidates].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity));
  main.append(
    h("p", {}, h("b", {}, own(group.query || group.query_id)), ` · version ${figure(group.step)} `, h("a", { href: address("/examples", { query: group.query_id }) }, "All groups of this query"), " · ", h("a", { href: address("/examples", { step: group.step }) }, "All groups of this version")),
    h("p", { className: "notice" }, visible(group.fate)),
    h("p", { className: "quiet" }, "Written by the weights ", h("code", {}, own(group.weights_sha256)), `, version ${figure(group.step)} of lineage `, own(group.lineage), ". The same name stands in the checkpoint's manifest."),
    h("ol", { className: "stages", ariaLabel: "Stages" }, group.stages.map((each) => h("li", {}, `${each.stage} `, h("a", { href: address("/sql", { sql: recordOf(each) }) }, h("code", {}, each.place)), each.step === null ? "" : ` version ${each.step}`, " ", h("span", { className: "quiet" }, moment(each.made_at_ms))))),
    Object.keys(group.context).length ? h("details", {}, h("summary", {}, "What the prompt was given"), h("pre", {}, own(JSON.stringify(group.context, null, 1)))) : "",
    h("div", { className: "grid" }, ordered.map((each) => candidate(each, group.raw, words.reward_parts))),
  );
  return async () => {};
}

// The record of a stage, as the ledger holds it.
function recordOf(each) {
  const [, kind, number, offset] = /^([a-z-]+)\[(\d+)\]@(\d+)$/.exec(each.place);
  return `SELECT * FROM ${kind.replaceAll("-", "_")} WHERE topic LIKE '%.${kind}' AND "partition" = ${number} AND record_offset = ${offset}`;
}

function candidate(each, raw, words) {
  const parts = { columns: ["part", "value"], rows: Object.entries(each.parts).map(([name, value]) => [words[name]?.[0] ?? name.replaceAll("_", " "), value]) };
  const lost = raw.filter((hit) => each.lost.includes(hit.document_id));
  return h(
    "section",
    { className: "card", ariaLabel: `Candidate ${each.candidate}` },
    h("h2", {}, `Candidate ${each.candidate}: reward ${figure(each.reward)}`),
    h("p", { className: "quiet" }, `${each.status}${each.valid === false ? ", wrong format" : ""} · advantage ${figure(each.advantage)} · ${figure(each.tokens)} tokens`),
    h("pre", {}, own(each.text || "(empty)")),
    each.summary ? h("p", {}, "Read as: ", own(each.summary)) : "",
    each.expansions.length ? h("p", {}, "Words: ", own(each.expansions.join(", "))) : "",
    each.error ? h("p", { className: "notice bad" }, own(each.error)) : "",
    parts.rows.length ? table({ title: "Parts of the reward" }, parts) : "",
    each.results.length || raw.length ? h("details", {}, h("summary", {}, `Results beside the raw ones: ${moves(each, lost)}`), sides(each, raw, lost)) : "",
  );
}

function moves(each, lost) {
  const count = (move) => each.results.filter((hit) => hit.move === move).length;
  return `${count("gained")} gained, ${lost.length} lost, ${count("up")} up, ${count("down")} down`;
}

function sides(each, raw, lost, clicks = {}) {
  const gone = new Set(lost.map((hit) => hit.document_id));
  const line = (hit, move, click) => h("li", { value: hit.rank }, click ? h("a", { href: "#", onclick: (event) => click(event, hit) }, own(hit.title || hit.document_id)) : own(hit.title || hit.document_id), hit.grade === null || hit.grade === undefined ? "" : h("span", { className: "grade" }, `grade ${hit.grade}`), h("span", { className: `move ${move}` }, move === "same" || move === "" ? "" : hit.was && move !== "lost" ? `${move} from ${hit.was}` : move));
  return h(
    "div",
    { className: "results" },
    h("div", {}, h("h3", {}, "Raw"), h("ol", { className: "hits" }, raw.map((hit) => line(hit, gone.has(hit.document_id) ? "lost" : "", clicks.raw)))),
    h("div", {}, h("h3", {}, "With this text"), h("ol", { className: "hits" }, each.results.map((hit) => line(hit, hit.move, clicks.helped)))),
  );
}

export async function versions(main, here) {
  const { questions: found, words } = await questions("versions");
  const by = Object.fromEntries(found.map((question) => [question.name, question]));
  const list = await get("/api/ask/versions");
  const steps = [...new Set(records(list).map((row) => row.step))].sort((a, b) => a - b);
  const from = Number(here.get("from") ?? steps[0] ?? 0), to = Number(here.get("to") ?? steps.at(-1) ?? 0);
  const apart = Math.max(Math.floor((Math.abs(to - from) + 1) / 2), 1);
  const width = Math.min(Math.max(Math.trunc(Number(here.get("width") ?? 20)) || 1, 1), apart);
  const choose = (name, value, text) => h("label", {}, text, h("select", { name }, steps.map((step) => h("option", { value: step, selected: step === value }, step))));
  if (steps.length)
    main.append(
    h("form", { className: "row", action: address("/versions").split("?")[0] }, h("input", { type: "hidden", name: "run", value: here.get("run") }), choose("from", from, "Before"), choose("to", to, "After"), h("label", {}, "Versions on each side", h("input", { name: "width", value: width, inputMode: "numeric", size: 5 })), h("button", { className: "first" }, "Compare")),
  );
  const values = { from_low: from, from_high: from + width - 1, to_low: to - width + 1, to_high: to };
  const cards = [ramp(), card(by.version_queries, words, values), heldOut(), card(by.versions, words), judging(here.get("run"))];
  main.append(h("div", { className: "grid" }, cards.map((each) => each.element)));
  return async () => {
    for (const each of cards) await each.refresh();
  };
}

// Queries that trained nothing, one by one: the policy against the baseline.
function heldOut() {
  return asked("Held-out queries, one by one", "What the policy changed on queries that trained nothing, the largest losses and gains first. A click opens the query in Search, where a running server answers it raw and helped.", "/api/evaluated", ({ evaluated }) => {
    if (!evaluated.length) return [h("p", { className: "quiet" }, prose("Nothing is measured with its values by query. `searchloop measure --json` into the run's folder keeps them; `searchloop report` shows the command."))];
    return evaluated.flatMap((each) => [
      h("p", {}, own(`${each.measure} of “${each.row}” against “${each.baseline}” (${each.name}): ${figure(each.better)} queries better, ${figure(each.worse)} worse, ${figure(each.in_all - each.better - each.worse)} the same.`)),
      table({ title: `Queries of ${each.name}`, link: "/search?query={query}" }, { columns: ["query", "before", "after", "change", "query_id"], rows: each.queries.map((one) => [one.text || one.query_id, one.before, one.after, one.change, one.query_id]), in_all: each.in_all }),
    ]);
  });
}

export async function search(main, here) {
  const place = h("div", { ariaLive: "polite" });
  const said = h("p", { className: "quiet", role: "status" });
  const click = (query_id) => async (event, hit) => {
    event.preventDefault();
    try {
      await post("/api/click", { query_id, document_id: hit.document_id });
      said.textContent = `Sent: a click on ${visible(hit.document_id)}.`;
    } catch (error) {
      said.textContent = error.message;
    }
  };
  const input = h("input", { name: "query", required: true, maxLength: 10000, size: 40, value: here.get("query") || "" });
  const form = h("form", { className: "row", role: "search" }, h("label", {}, "Query", input), h("button", { className: "first" }, "Search"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      place.replaceChildren(h("p", { className: "quiet" }, "Searching …"));
      const found = await get("/api/search", { query: input.value });
      const lost = found.raw.filter((hit) => found.lost.includes(hit.document_id));
      place.replaceChildren(
        h("p", {}, found.words.length ? ["Helped with: ", own(found.words.join(", "))] : "No version may help this query, so both lists are the same.", ` · ${found.policy}`),
        sides({ results: found.helped }, found.raw, lost, { raw: click(found.raw_query_id), helped: click(found.query_id) }),
        said,
      );
    } catch (error) {
      place.replaceChildren(h("p", { className: "notice bad", role: "alert" }, error.message));
    }
  });
  main.append(h("p", { className: "quiet" }, "The same search, raw and as people would be helped. A click on a result is sent as a feedback event."), form, place);
  return async () => {};
}

export async function sql(main, here) {
  const { questions: found } = await questions("all");
  const by = Object.fromEntries(found.map((question) => [question.name, question]));
  const chosen = by[here.get("name")];
  const given = Object.fromEntries([...here].filter(([name]) => !["run", "name", "sql"].includes(name)));
  const area = h("textarea", { name: "sql", spellcheck: false, value: here.get("sql") || (chosen ? filled(chosen, given) : "SELECT table_name FROM information_schema.tables ORDER BY 1") });
  const place = h("div", { ariaLive: "polite" });
  const select = h("select", { onchange: () => (area.value = filled(by[select.value], {})) }, found.map((question) => h("option", { value: question.name, selected: question === chosen }, `${question.page}: ${question.title}`)));
  const form = h("form", {}, h("p", {}, h("label", {}, "Saved question ", select)), h("label", {}, h("span", { className: "quiet" }, "One SELECT over the run's ledger"), area), h("p", {}, h("button", { className: "first" }, "Ask")));
  const run = async () => {
    place.replaceChildren(h("p", { className: "quiet" }, "Asking the ledger …"));
    try {
      const answer = await post("/api/sql", { run: here.get("run"), sql: area.value });
      place.replaceChildren(h("p", { className: "quiet" }, `${figure(answer.rows.length)} rows in ${figure(Math.round(answer.milliseconds))} ms`), table({ title: "Answer" }, answer));
    } catch (error) {
      place.replaceChildren(h("p", { className: "notice bad", role: "alert" }, prose(error.message)));
    }
  };
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  main.append(h("p", { className: "quiet" }, "The ledger is read-only here: one SELECT, no files, no network, within ui.seconds_max."), form, place);
  if (chosen || here.get("sql")) await run(); // A link shows its rows at once.
  return async () => {};
}

// A saved question with its values in place of the parameters, so that the text stands alone.
const EMPTY = { step: -1, query: "", sort: "", client: "", from_low: 0, from_high: 0, to_low: 0, to_high: 0 };
function filled(question, given) {
  return question.sql.replace(/\$([a-z_]+)/g, (_, name) => {
    const value = given[name] ?? EMPTY[name];
    return typeof EMPTY[name] === "number" ? String(Number.parseInt(value, 10)) : `'${String(value).replaceAll("'", "''")}'`;
  });
}
