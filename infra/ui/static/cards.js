// Cards: one saved question each, with its chart or table, its data and its SQL.
import { address, again, get, records, rests } from "./api.js";
import { chart } from "./chart.js";
import { figure, h, prose } from "./dom.js";
import { table } from "./table.js";

export async function questions(page) {
  return get(`/api/page/${page}`);
}

export function card(question, words, values = {}) {
  const body = h("div", {}, h("p", { className: "quiet" }, "Asking the ledger …"));
  const wide = ["table", "multiples", "stack"].includes(question.draw);
  const element = h(
    "section",
    { className: `card${wide ? " wide" : ""}`, ariaLabel: question.title },
    h("h2", {}, question.title),
    h("p", { className: "quiet" }, prose(question.says)),
    body,
    h(
      "footer",
      {},
      h("a", { href: address(`/api/ask/${question.name}.csv`, values), download: "" }, "Data (CSV)"),
      h("a", { href: address("/sql", { name: question.name, ...values }) }, "SQL"),
    ),
  );
  const refresh = async () => {
    if (rests(question.name)) return;
    try {
      const answer = await get(`/api/ask/${question.name}`, values);
      again(question.name, answer.rest, refresh);
      const text = JSON.stringify(answer.rows);
      if (text === element.seen) return;
      element.seen = text;
      const cut = answer.cut && question.draw !== "table" ? h("p", { className: "notice" }, "The answer was cut at its limit (ui.rows_max): what is drawn is not all.") : "";
      body.replaceChildren(cut, show(question, answer, words[question.name] || {}));
    } catch (error) {
      body.replaceChildren(h("p", { className: "notice bad", role: "alert" }, error.message));
    }
  };
  return { element, refresh, question };
}

function show(question, answer, words) {
  if (question.draw === "table") return answer.rows.length ? table(question, answer) : h("p", { className: "quiet" }, prose(question.empty || "No rows."));
  if (question.draw !== "multiples") return chart(question, answer);
  const rows = records(answer);
  if (!rows.length) return h("p", { className: "quiet" }, "Nothing is logged yet.");
  const kinds = [...new Set(rows.map((row) => row[question.series]))];
  const at = answer.columns.indexOf(question.series), y = answer.columns.indexOf(question.y[0]);
  const ordered = [...Object.keys(words).filter((kind) => kinds.includes(kind)), ...kinds.filter((kind) => !words[kind])];
  const charts = [], constant = [];
  for (const kind of ordered) {
    const [title, says] = words[kind] || [String(kind).replaceAll("_", " "), ""];
    const part = { ...answer, rows: answer.rows.filter((row) => row[at] === kind) };
    const values = new Set(part.rows.map((row) => row[y]));
    if (values.size === 1) constant.push(`${title} ${figure([...values][0])}`);
    else charts.push(h("div", {}, h("h3", {}, title), h("p", { className: "quiet" }, says), chart({ ...question, series: "", link: "" }, part, { height: 150, title })));
  }
  return h(
    "div",
    {},
    h("div", { className: "grid small" }, charts),
    constant.length ? h("p", { className: "quiet" }, `The same in all of the run: ${constant.join("; ")}.`) : "",
  );
}
