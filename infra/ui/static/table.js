// Tables of answers: sorted by a click on a heading, with a link from each row.
import { follow, records } from "./api.js";
import { figure, h, own } from "./dom.js";

const SHOWN = 50;

export function table(question, answer) {
  let rows = records(answer);
  if (!rows.length) return h("p", { className: "quiet" }, "No rows.");
  const numeric = answer.columns.map((name) => rows.some((row) => typeof row[name] === "number"));
  const body = h("tbody");
  let shown = SHOWN, say = () => {};
  const fill = () => {
    body.replaceChildren(
      ...rows.slice(0, shown).map((row) =>
        h("tr", {}, answer.columns.map((name, at) => h("td", { className: numeric[at] ? "number" : "" }, cell(question, row, name, at)))),
      ),
    );
    say();
  };
  let by = null, down = false;
  const sort = (name, button) => {
    down = by === name ? !down : true;
    by = name;
    rows = [...rows].sort((a, b) => (down ? -1 : 1) * compare(a[name], b[name]));
    for (const each of head.querySelectorAll("th")) each.removeAttribute("aria-sort");
    button.closest("th").setAttribute("aria-sort", down ? "descending" : "ascending");
    fill();
  };
  const head = h(
    "tr",
    {},
    answer.columns.map((name, at) => {
      const button = h("button", { type: "button", className: "plain", onclick: () => sort(name, button) }, name.replaceAll("_", " "));
      return h("th", { scope: "col", className: numeric[at] ? "number" : "" }, button);
    }),
  );
  fill();
  const cut = answer.cut ? " The answer was cut at its limit." : "";
  const count = h("span", { className: "quiet" });
  const more = h("button", { type: "button", onclick: () => ((shown += 4 * SHOWN), fill()) }, "Show more");
  say = () => {
    count.textContent = rows.length > shown ? `${shown} of ${rows.length.toLocaleString("en")} rows.${cut} ` : cut;
    more.hidden = rows.length <= shown;
  };
  say();
  return h(
    "div",
    { className: "wide-table", tabIndex: 0, role: "group", ariaLabel: `Table: ${question.title || "answer"}` },
    h("table", { className: "data" }, h("thead", {}, head), body),
    rows.length > SHOWN || cut ? h("p", {}, count, more) : null,
  );
}

function cell(question, row, name, at) {
  const value = row[name];
  const text = typeof value === "object" && value !== null ? own(JSON.stringify(value)) : typeof value === "string" ? own(value) : figure(value);
  return at === 0 && question.link ? h("a", { href: follow(question.link, row) }, text) : text;
}

function compare(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined) return -1;
  if (b === null || b === undefined) return 1;
  return a < b ? -1 : 1;
}
