// Questions to the server. Every answer is JSON; an error has one sentence.
export const here = new URLSearchParams(location.search);
const base = document.documentElement.dataset.base ?? ""; // The pages may lie below a path of another server.

export function address(path, values = {}) {
  const given = new URLSearchParams();
  if (here.get("run")) given.set("run", here.get("run"));
  for (const [name, value] of Object.entries(values)) if (value !== "" && value !== null) given.set(name, value);
  const text = given.toString();
  return text ? `${base}${path}${path.includes("?") ? "&" : "?"}${text}` : base + path;
}

export async function get(path, values) {
  return read(await fetch(address(path, values), { headers: { accept: "application/json" } }));
}

export async function post(path, body) {
  return read(
    await fetch(base + path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
    }),
  );
}

async function read(response) {
  if (response.status === 401) throw new Error("The token is wrong or has changed: open the address that `searchloop ui` printed.");
  const body = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
  if (!response.ok) throw Object.assign(new Error(body.error || `The server answered ${response.status}.`), { status: response.status });
  return body;
}

// An answer that rests is asked for again when it has rested, and not before: the server would give the same one.
const resting = new Map();
export function again(key, rest, refresh) {
  clearTimeout(resting.get(key)?.timer);
  if (rest > 0) resting.set(key, { until: Date.now() + 1000 * rest, timer: setTimeout(refresh, 1000 * rest + 200) });
  else resting.delete(key);
}

export function rests(key) {
  return Date.now() < (resting.get(key)?.until ?? 0);
}

export function records(answer) {
  return answer.rows.map((row) => Object.fromEntries(answer.columns.map((name, at) => [name, row[at]])));
}

// A link with the values of a row in its braces; the run stays.
export function follow(link, row) {
  return address(link.replace(/\{(\w+)\}/g, (_, name) => encodeURIComponent(row[name] ?? "")));
}
