// Judging in random order: two unnamed lists, and a choice. A choice is kept in this browser until the log has it, so
// neither a reload nor a lost connection loses it; its id is made once, so the log counts it once.
import { get, post } from "./api.js";
import { figure, h, own, prose, visible } from "./dom.js";
import { percent, version, whiskers } from "./people.js";

const KEPT = "searchloop-judging";

export function judging(run) {
  const place = h("div", { ariaLive: "polite" }), told = h("div"), tally = h("details", {}, h("summary", {}, "Judgments so far")), counts = h("div");
  tally.append(counts);
  tally.hidden = true;
  const element = h("section", { className: "card wide", ariaLabel: "Which results are better?" }, h("h2", {}, "Which results are better?"), h("p", { className: "quiet" }, "Two lists for one query: raw results, and those of the version that serves. Sides and queries come in random order. Each choice goes into the log of the server's run, and counts as no search. What was judged so far stays folded: it would tell on which side the version was."), told, place, tally);
  const kept = () => ({ waiting: [], pairs: {}, done: {}, ...JSON.parse(localStorage.getItem(KEPT)) });
  const keep = (change) => {
    const now = kept();
    change(now);
    localStorage.setItem(KEPT, JSON.stringify(now));
  };
  let queries = [], name = "", counted = 0;

  // Choices that the log does not have yet, the oldest first. One that the server refuses for good is told and dropped.
  const forget = (each) => keep((now) => (now.waiting = now.waiting.filter((one) => one.judgment !== each.judgment)));
  const send = async () => {
    let refused = "";
    for (const each of kept().waiting) {
      try {
        await post("/api/judge", each);
        forget(each);
      } catch (error) {
        if (error.status === 400) {
          forget(each);
          refused = h("p", { className: "notice bad", role: "alert" }, `${visible(error.message)} This choice does not count.`);
          continue;
        }
        told.replaceChildren(h("p", { className: "notice", role: "alert" }, `${visible(error.message)} Your choice is kept in this browser, and sent again.`));
        return;
      }
    }
    told.replaceChildren(refused);
  };
  const choose = (pair, side) => async () => {
    const ids = (list) => list.map((hit) => hit.document_id);
    keep((now) => {
      now.waiting = now.waiting.filter((one) => one.judgment !== pair.judgment);
      now.waiting.push({ judgment: pair.judgment, query: pair.query, version: pair.version, side, left: ids(pair.left), right: ids(pair.right) });
      (now.done[name] ??= []).push(pair.query);
      delete now.pairs[name];
    });
    counted += 1;
    await send();
    await next();
    place.querySelector("button")?.focus();
  };
  const list = (title, hits) => h("div", {}, h("h3", {}, title), h("ol", { className: "hits" }, hits.map((hit) => h("li", {}, own(hit.title || hit.document_id)))));
  const show = (pair) => {
    const buttons = [["left", "Left is better"], ["tie", "Both alike"], ["right", "Right is better"]];
    place.replaceChildren(
      h("p", {}, "Query: ", h("b", {}, own(pair.query))),
      h("div", { className: "row choice" }, buttons.map(([side, text]) => h("button", { type: "button", onclick: choose(pair, side) }, text))),
      h("div", { className: "results" }, list("Left", pair.left), list("Right", pair.right)),
      counted ? h("p", { className: "quiet" }, `${figure(counted)} judged in this visit.`) : "",
    );
  };
  const next = async () => {
    const now = kept();
    sessionStorage.setItem(KEPT, name);
    if (now.pairs[name]) return show(now.pairs[name]);
    const done = new Set(now.done[name] || []);
    let alike = 0;
    while (queries.length) {
      const query = queries.shift();
      if (done.has(query)) continue;
      try {
        const pair = await get("/api/pair", { query, version: name });
        if (pair.same) {
          place.replaceChildren(h("p", { className: "quiet" }, `Looking for a query with two different lists … ${(alike += 1)} were alike.`));
          continue;
        }
        keep((now) => (now.pairs[name] = pair));
        return show(pair);
      } catch (error) {
        if (error.status !== 404) {
          place.replaceChildren(h("p", { className: "notice", role: "alert" }, visible(error.message)), h("button", { type: "button", onclick: next }, "Try again"));
          queries.unshift(query);
          return;
        }
      }
    }
    place.replaceChildren(h("p", { className: "quiet" }, "No further query has two different lists for this version."));
  };
  const count = (answer) => {
    const rows = answer.judged.map((each) => ({ name: `${version(each.version)} (${figure(each.duel.wins)} for it, ${figure(each.duel.losses)} against, ${figure(each.duel.ties)} alike)`, value: each.share, low: each.low, high: each.high }));
    const of = answer.judged.find((each) => each.version === name);
    const n = of ? of.duel.wins + of.duel.losses + of.duel.ties : 0;
    const says = of ? `${percent(of.share)} [${percent(of.low)}, ${percent(of.high)}] of ${figure(n)} judgments prefer ${name}; a tie is half for each. The interval holds at 95 % however often you look.` : "No judgment of this version is in the log yet. `searchloop listen` stores them.";
    tally.hidden = false;
    counts.replaceChildren(h("p", {}, h("bdi", {}, prose(says))), whiskers(rows, "Share that prefers the version"));
  };
  // One visit begins once: news of the run come meanwhile, and must not take away what somebody is looking at.
  let begun = null;
  const begin = async (answer) => {
    name = answer.version;
    queries = answer.queries;
    await send();
    if (kept().pairs[name] || sessionStorage.getItem(KEPT) === name) return next(); // A reload goes on with a visit.
    place.replaceChildren(h("button", { type: "button", className: "first", onclick: next }, "Begin"), h("span", { className: "quiet" }, ` ${figure(queries.length)} queries; judgments go into the run ${visible(answer.run)}.`));
  };
  const refresh = async () => {
    try {
      const answer = await get("/api/judging");
      if (!answer.version) return place.replaceChildren(h("p", { className: "quiet" }, prose(answer.why || "The server has no version that helps: nothing to judge.")));
      if (begun !== answer.version) {
        begun = answer.version;
        await begin(answer);
      }
      count(answer);
    } catch (error) {
      if (!begun) place.replaceChildren(h("p", { className: "quiet" }, visible(error.message)));
    }
  };
  return { element, refresh };
}
