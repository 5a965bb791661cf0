// Tables of answers: sorted by a click on a heading, with a link from each row.
import { follow } from "./api.js";
import { figure, h, own } from "./dom.js";

const SHOWN = 50;

export function table(question, answer) {
  let rows = answer.rows;
  if (!rows.length) return h("p", { className: "quiet" }, "No rows.");
  const numeric = answer.columns.map((_, at) => rows.some((row) => typeof row[at] === "number"));
  const body = h("tbody");
  let shown = SHOWN, say = () => {};
  const fill = () => {
    body.replaceChildren(
      ...rows.slice(0, shown).map((row) =>
        h("tr", {}, answer.columns.map((name, at) => h("td", { className: numeric[at] ? "number" : "" }, cell(question, answer.columns, row, at)))),
      ),
    );
    say();
  };
  let by = null, down = false;
  const sort = (at, button) => {
    down = by === at ? !down : true;
    by = at;
    rows = [...rows].sort((a, b) => (down ? -1 : 1) * compare(a[at], b[at]));
    for (const each of head.querySelectorAll("th")) each.removeAttribute("aria-sort");
    button.closest("th").setAttribute("aria-sort", down ? "descending" : "ascending");
    fill();
  };
  const head = h(
    "tr",
    {},
    answer.columns.map((name, at) => {
      const button = h("button", { type: "button", className: "plain", onclick: () => sort(at, button) }, name.replaceAll("_", " "));
      return h("th", { scope: "col", className: numeric[at] ? "number" : "" }, button);
    }),
  );
  fill();
  const cut = answer.cut ? " The answer was cut at its limit." : "";
  const more_in_all = answer.in_all > rows.length ? ` The first ${rows.length.toLocaleString("en")} of ${answer.in_all.toLocaleString("en")} in all.` : "";
  const count = h("span", { className: "quiet" });
  const more = h("button", { type: "button", onclick: () => ((shown += 4 * SHOWN), fill()) }, "Show more");
  say = () => {
    count.textContent = rows.length > shown ? `${shown} of ${rows.length.toLocaleString("en")} rows.${more_in_all}${cut} ` : `${more_in_all}${cut}`;
    more.hidden = rows.length <= shown;
  };
  say();
  return h(
    "div",
    { className: "wide-table", tabIndex: 0, role: "group", ariaLabel: `Table: ${question.title || "answer"}` },
    h("table", { className: "data" }, h("thead", {}, head), body),
    rows.length > SHOWN || cut || more_in_all ? h("p", {}, count, more) : null,
  );
}

const TIME = /^(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?Z?$/; // As the ledger has it; the CSV has all of it.

function cell(question, columns, row, at) {
  const value = row[at];
  const text = typeof value === "object" && value !== null ? own(JSON.stringify(value)) : typeof value === "string" ? own(value.replace(TIME, "$1 $2")) : figure(value);
  return at === 0 && question.link ? h("a", { href: follow(question.link, Object.fromEntries(columns.map((name, each) => [name, row[each]]))) }, text) : text;
}

function compare(a, b) {
  if (a === b) return 0;
  if (a === null || a === undefined) return -1;
  if (b === null || b === undefined) return 1;
  return a < b ? -1 : 1;
}
