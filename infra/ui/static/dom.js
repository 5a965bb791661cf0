// Elements from values. Text from the ledger goes in as text and never as markup.
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list" && name !== "form") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((each) => each !== null && each !== undefined && each !== false));
  return element;
}

export const own = (text) => h("bdi", {}, visible(text));

// Our own sentences, in which `searchloop verify` is a command.
export function prose(text) {
  const parts = visible(text).split("`");
  return parts.length % 2 ? parts.map((part, at) => (at % 2 ? h("code", {}, part) : part)) : parts.join("`");
}

// Control and direction characters could make a text look like another one.
export function visible(text) {
  return String(text).replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}]/gu, (c) => (c === "\n" || c === "\u200d" ? c : " "));
}

export function figure(value, unit = "") {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value !== "number") return visible(value);
  if (unit === "share") return `${(100 * value).toFixed(1)} %`;
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1000 ? value.toFixed(0) : size >= 0.001 || size === 0 ? value.toFixed(3) : value.toExponential(2);
}

export const colour = (number) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--c${number % 6}`).trim();
export const named = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
