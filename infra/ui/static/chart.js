// Charts of answers, drawn by uPlot. Each has its data as a table for those who do not see it.
import { follow, records } from "./api.js";
import { colour, figure, h, named, prose } from "./dom.js";
import { table } from "./table.js";

const drawn = new Set();
const STEPS = [1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7].flatMap((each) => [each, 2 * each, 5 * each]);
const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [1, 4]];

export function chart(question, answer, { height = 220, title = question.title } = {}) {
  const rows = records(answer);
  const place = h("div", { className: "chart" });
  if (!rows.length) return h("p", { className: "quiet" }, prose(question.empty || "Nothing is logged yet."));
  const shape = question.draw === "scatter" ? points(question, rows) : lines(question, rows);
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", `${title}: ${summary(shape)}`);
  const draw = () => {
    place.replaceChildren();
    const width = Math.max(place.clientWidth, 200);
    const options = plot(question, shape, width, height);
    options.hooks = question.link ? { ready: [(u) => opens(u, question, shape)] } : {};
    new uPlot(options, shape.data, place);
  };
  let width = 0;
  const watcher = new ResizeObserver(([entry]) => {
    if (Math.abs(entry.contentRect.width - width) < 2) return;
    width = entry.contentRect.width;
    draw();
  });
  watcher.observe(place);
  drawn.add({ place, draw });
  const rest = h("details", {}, h("summary", {}, "Data as a table"));
  rest.addEventListener("toggle", () => rest.open && rest.childElementCount === 1 && rest.append(table(question, answer)));
  const smoothed = shape.kinds.some((kind) => kind.behind);
  const key = [smoothed ? `thick: mean of ${question.smooth} versions, thin: each` : "", answer.in_all > rows.length ? `${rows.length.toLocaleString("en")} of ${answer.in_all.toLocaleString("en")} in all` : ""].filter(Boolean).join("; ");
  return h("div", {}, place, key && title === question.title ? h("p", { className: "key" }, key) : "", rest);
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const each of drawn) each.place.isConnected ? each.draw() : drawn.delete(each);
});

function lines(question, rows) {
  const xs = [...new Set(rows.map((row) => row[question.x]))].sort((a, b) => a - b);
  const at = new Map(xs.map((x, number) => [x, number]));
  const series = [];
  const empty = () => new Array(xs.length).fill(null);
  const [y] = question.y;
  const groups = question.series ? Map.groupBy(rows, (row) => String(row[question.series])) : new Map([[y, rows]]);
  for (const [name, members] of groups) {
    const raw = empty(), low = empty(), high = empty();
    for (const row of members) {
      raw[at.get(row[question.x])] = row[y];
      if (question.band.length) {
        low[at.get(row[question.x])] = row[question.band[0]];
        high[at.get(row[question.x])] = row[question.band[1]];
      }
    }
    series.push({ name, raw, low, high, own: raw, smooth: mean(raw, question.smooth) });
  }
  if (question.draw === "stack") {
    const sum = new Array(xs.length).fill(0);
    for (const each of series) each.raw = each.smooth = each.raw.map((value, i) => (sum[i] += value ?? 0));
  }
  const data = [xs], kinds = [];
  const add = (values, kind) => (data.push(values), kinds.push(kind));
  const shown = question.draw === "stack" ? [...series].reverse() : series;
  for (const each of shown) {
    const number = series.indexOf(each);
    if (question.band.length) {
      add(each.high, { number, edge: true, label: "upper end" });
      add(each.low, { number, edge: true, label: "lower end", band: true });
    }
    if (question.smooth > 1 && xs.length > 2 * question.smooth) {
      add(each.raw, { number, behind: true, label: `${each.name}, each` });
      add(each.smooth, { number, label: each.name, own: each.smooth });
    } else add(each.raw, { number, label: each.name, own: each.own });
  }
  return { data, kinds, rows, xs, series };
}

function points(question, rows) {
  const sorted = [...rows].sort((a, b) => a[question.x] - b[question.x]);
  const xs = sorted.map((row) => row[question.x]);
  const ys = sorted.map((row) => row[question.y[0]]);
  return { data: [xs, ys], kinds: [{ number: 0, label: question.y[0], dots: true }], rows: sorted, xs, series: [{ name: question.y[0], raw: ys }] };
}

// The mean over an odd number of points around each, as far as they exist: no value is made up beyond the ends.
export function mean(values, width) {
  const half = Math.floor(width / 2);
  return values.map((value, at) => {
    if (value === null || value === undefined) return null;
    const near = values.slice(Math.max(at - half, 0), at + half + 1).filter((each) => typeof each === "number");
    return near.reduce((a, b) => a + b, 0) / near.length;
  });
}

function plot(question, shape, width, height) {
  const time = question.x === "hour";
  const share = question.unit === "share";
  const axis = { stroke: named("quiet"), grid: { stroke: named("rule"), width: 1 }, ticks: { stroke: named("rule") }, font: "12px system-ui" };
  const whole = !time && shape.xs.every(Number.isInteger); // There is no version 2.5.
  const several = shape.series.length > 1;
  return {
    width,
    height,
    scales: { x: { time }, y: { range: (_, low, high) => (share ? [0, 1] : room(low, high, question.draw === "stack")) } },
    legend: { show: several, live: true },
    cursor: { focus: { prox: 24 }, points: { size: 7 } },
    axes: [
      { ...axis, ...(whole ? { incrs: STEPS } : {}), label: time ? "hour (UTC)" : label(question.x), labelSize: 18, labelFont: "12px system-ui", size: 36 },
      { ...axis, space: height < 200 ? 18 : 30, size: (_, labels) => 24 + 7 * Math.max(3, ...(labels ?? []).map((each) => each.length)), values: (_, ticks) => ticks.map((tick) => (share ? `${Math.round(100 * tick)} %` : short(tick))) },
    ],
    series: [
      { label: time ? "hour" : label(question.x) },
      ...shape.kinds.map((kind) => ({
        label: label(kind.label),
        class: kind.edge || kind.behind ? "behind" : "drawn",
        stroke: kind.edge ? "transparent" : colour(kind.number) + (kind.behind ? "55" : ""),
        width: kind.dots ? 0 : kind.behind ? 1 : 2,
        dash: kind.behind || kind.edge ? [] : DASHES[kind.number % 6],
        paths: kind.dots ? () => null : undefined,
        points: { show: kind.dots || shape.xs.length < 2, size: 4, fill: colour(kind.number) + "66", stroke: "transparent" },
        fill: question.draw === "stack" && kind.number === 0 ? colour(kind.number) + "55" : undefined,
        spanGaps: true,
        // A part of a stack says its own value, and a chart that nobody points at says the newest ones.
        value: (_, value, at, x) => figure(kind.own ? kind.own[x ?? kind.own.findLastIndex((each) => typeof each === "number")] : value, question.unit),
      })),
    ],
    // The parts of a stack are filled down to the next one, so each keeps its colour.
    bands: question.draw === "stack" ? shape.kinds.slice(0, -1).map((kind, at) => ({ series: [at + 1, at + 2], fill: colour(kind.number) + "55" })) : shape.kinds.flatMap((kind, at) => (kind.band ? [{ series: [at, at + 1], fill: colour(kind.number) + "2a" }] : [])),
  };
}

// Some room around the values, also around one value alone.
function room(low, high, zero) {
  if (low === null || high === null) return [0, 1];
  const pad = (high - low) * 0.08 || Math.abs(high) * 0.1 || 0.5;
  return [zero ? 0 : low - pad, high + pad];
}

// A click leads to the rows behind the nearest point.
function opens(u, question, shape) {
  u.over.style.cursor = "pointer";
  u.over.title = "Click: the rows behind this point";
  u.over.addEventListener("click", () => {
    const at = u.cursor.idx;
    if (at === null || at === undefined) return;
    const x = shape.xs[at];
    const row = question.draw === "scatter" ? shape.rows[at] : shape.rows.find((each) => each[question.x] === x);
    if (row) location.href = follow(question.link, row);
  });
}

function summary(shape) {
  const parts = shape.series.slice(0, 6).map((each) => {
    const known = (each.own ?? each.raw).filter((value) => typeof value === "number");
    return known.length ? `${label(each.name)} from ${figure(known[0])} to ${figure(known.at(-1))}` : `${label(each.name)}: nothing`;
  });
  return `${parts.join("; ")}. ${shape.xs.length} points.`;
}

const label = (name) => String(name).replaceAll("_", " ").replace(/^step$/, "policy version");
const short = (value) => (Math.abs(value) >= 10000 ? value.toExponential(0) : String(+value.toPrecision(4)));
