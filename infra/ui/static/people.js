// What people get and do: a version's ramp, versions with intervals that hold at any time, comparisons, and drift.
import { address, again, get, rests } from "./api.js";
import { chart } from "./chart.js";
import { figure, h, own, visible } from "./dom.js";
import { table } from "./table.js";

export const version = (name) => (name === "" ? "raw results" : name);
export const percent = (value) => (value === null ? "?" : `${(100 * value).toFixed(1)} %`);
const signed = (value, show) => (value === null ? "?" : `${value > 0 ? "+" : ""}${show(value)}`);

// A card that asks one address, and draws what it answers.
export function asked(title, says, path, draw) {
  const body = h("div", {}, h("p", { className: "quiet" }, "Asking the ledger …"));
  const element = h("section", { className: "card wide", ariaLabel: title }, h("h2", {}, title), h("p", { className: "quiet" }, says), body);
  const refresh = async () => {
    if (rests(path)) return;
    try {
      const answer = await get(path);
      again(path, answer.rest, refresh);
      const text = JSON.stringify({ ...answer, rest: 0 });
      if (text !== element.seen) body.replaceChildren(...draw(answer));
      element.seen = text;
    } catch (error) {
      body.replaceChildren(h("p", { className: "notice bad", role: "alert" }, visible(error.message)));
    }
  };
  return { element, refresh };
}

const SAID = { ramping: "is on its ramp", held: "is held", serves: "serves everybody", "rolled back": "was rolled back", explored: "is shown to a few, to learn more", refused: "was refused" };

export function ramp() {
  return asked("Way to people", "The version that was decided on last, by the decisions in this run's log.", "/api/ramp", ({ ramp: found }) => {
    if (!found) return [h("p", { className: "quiet" }, "No version is on its way to people in this run. Begin with ", h("code", {}, "searchloop promote"), ".")];
    const { seen, last } = found;
    const lines = [
      ["Share of the searches", percent(found.share)],
      ["Stage", found.stage ? `${found.stage} of ${found.stages.length}` : "none"],
      ["Since", moment(found.since_ms)],
      ["Searches so far", seen ? `${figure(seen.treated)} with it, ${figure(seen.others)} without` : "–"],
      ["Worth of a search, against the others", seen ? interval(seen.difference, seen.low, seen.high, (value) => signed(value, (each) => each.toFixed(3))) : "–"],
      ["Last decision", `${last.kind}, by ${last.by === "rule" ? "the rules" : "a person"}, ${moment(last.at_ms)}`],
    ];
    return [
      h("p", {}, h("b", {}, own(found.version)), ` ${SAID[found.status] || found.status}.`),
      steps(found),
      h("dl", { className: "facts" }, lines.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, own(value))))),
      h("p", {}, "Reason: ", own(last.reason)),
      found.waits ? h("p", { className: "quiet" }, "Now: ", own(found.waits)) : "",
    ];
  });
}

function steps(found) {
  const now = found.status === "serves" ? found.stages.length : found.stage;
  return h("ol", { className: "stages", ariaLabel: "Stages of the ramp" }, found.stages.map((share, at) => h("li", { className: at + 1 === now ? "now" : "", ariaCurrent: at + 1 === now ? "step" : null }, percent(share).replace(".0 ", " "))));
}

export function versionsLive() {
  return asked("Versions in front of people", "Final outcomes of people, no bots. The intervals hold at 95 % however often you look, and take one person's searches as one. Versions are not offered to the same queries: what a version causes is told by its ramp and by searchloop compare.", "/api/people", ({ people: found }) => [
    found.arms.length ? arms(found.arms) : h("p", { className: "quiet" }, "No final outcome yet. ", h("code", {}, "searchloop listen"), " joins what people did."),
    h("h3", {}, "Interleaved comparisons"),
    found.duels.length ? duels(found.duels) : h("p", { className: "quiet" }, "No list is interleaved (serve.interleave)."),
    h("h3", {}, "Drift of the feedback"),
    ...found.drift.map(drift),
  ]);
}

function interval(value, low, high, show) {
  return low === null || high === null ? `${show(value)} (too few to tell)` : `${show(value)} [${show(low)}, ${show(high)}]`;
}

function arms(found) {
  const rate = (value) => percent(value), number = (value) => signed(value, (each) => each.toFixed(3)), plain = (value) => (value === null ? "?" : value.toFixed(3));
  const rows = found.map((arm) => [
    version(arm.version),
    arm.searches,
    arm.clients,
    interval(arm.click_rate.value, arm.click_rate.low, arm.click_rate.high, rate),
    arm.click_gain ? interval(arm.click_gain.value, arm.click_gain.low, arm.click_gain.high, (value) => signed(value, percent)) : "",
    interval(arm.worth.value, arm.worth.low, arm.worth.high, plain),
    arm.worth_gain ? interval(arm.worth_gain.value, arm.worth_gain.low, arm.worth_gain.high, number) : "",
  ]);
  return h("div", {}, whiskers(found.map((arm) => ({ name: version(arm.version), ...arm.click_rate })), "Searches with a click"), table({ title: "Versions in front of people" }, { columns: ["version", "searches", "clients", "searches with a click", "against raw", "worth of a search", "worth against raw"], rows }));
}

// A dot with its interval for each row, on one scale.
export function whiskers(rows, title) {
  const known = rows.filter((row) => row.low !== null && row.high !== null);
  if (!known.length) return "";
  const most = Math.min(Math.max(...known.map((row) => row.high)) * 1.1, 1), place = (value) => `${(100 * Math.min(value, most)) / most}%`;
  const line = (row) => {
    const bar = h("i", {}), dot = h("b", {});
    bar.style.left = place(row.low);
    bar.style.width = place(row.high - row.low);
    dot.style.left = place(row.value);
    return h("li", {}, h("span", {}, own(row.name)), h("div", { className: "whisker", role: "img", ariaLabel: `${title}, ${visible(row.name)}: ${percent(row.value)}, from ${percent(row.low)} to ${percent(row.high)}` }, bar, dot), h("span", { className: "quiet" }, percent(row.value)));
  };
  return h("ul", { className: "whiskers", ariaLabel: title }, known.map(line));
}

function duels(found) {
  const rows = found.map((duel) => [
    version(duel.one),
    version(duel.other),
    duel.wins,
    duel.losses,
    duel.ties,
    interval(duel.mean, duel.low, duel.high, (value) => signed(value, (each) => each.toFixed(3))),
    duel.low > 0 ? version(duel.one) : duel.high < 0 ? version(duel.other) : "not known yet",
  ]);
  return table({ title: "Interleaved comparisons" }, { columns: ["one", "other", "wins of one", "losses", "ties", "mean of wins less losses", "people prefer"], rows });
}

const FIGURES = { click_ranks: "Clicks by rank", click_rate: "Searches with a click" };
const reason = (line) => line.says.replace(`${line.figure}: `, "");
function drift(line) {
  const title = `${FIGURES[line.figure] || line.figure} against the first day`;
  if (!line.points.length) return h("p", { className: "quiet" }, `${title}: not known yet (${visible(reason(line))}).`);
  const rows = line.points.flatMap(([at, value]) => [[Math.floor(at / 1000), "index", value], [Math.floor(at / 1000), "limit", line.limit]]);
  const newest = line.points.at(-1)[1];
  return h(
    "div",
    {},
    h("h4", {}, title),
    h("p", { className: "quiet" }, `Stability index (PSI) of the newest day: ${figure(newest)}; the alert “${visible(line.rule)}” fires above ${line.limit}. 0 means no change.${line.says ? ` Now not known: ${visible(reason(line))}.` : ""}`),
    chart({ draw: "lines", title, x: "hour", series: "what", y: ["psi"], band: [], unit: "index", smooth: 1 }, { columns: ["hour", "what", "psi"], rows }, { height: 160 }),
    h("p", {}, h("a", { href: address("/", {}) }, "Alerts")),
  );
}

export function moment(milliseconds) {
  const at = new Date(milliseconds);
  return Number.isNaN(at.getTime()) ? `${milliseconds} ms` : at.toISOString().slice(0, 19).replace("T", " ");
}
