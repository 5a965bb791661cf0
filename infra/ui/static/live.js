// What happens in the run, as it happens. The browser itself comes back after a lost connection, with the last cursor.
import { address } from "./api.js";

const KINDS = ["rewards", "updates", "dev-scores", "dead-letters", "impression-outcomes", "decisions"];
const PAUSE = 1000;

export function listen(status, changed) {
  const source = new EventSource(address("/api/stream"));
  const counts = {};
  let state = { live: false, state: "" }, timer = null;
  const say = () => {
    status.dataset.state = state.live ? "live" : "idle";
    const news = Object.entries(counts).map(([kind, count]) => `${count} ${kind.replaceAll("-", " ")}`).join(", ");
    status.textContent = state.state || (state.live ? `live${news ? `: ${news}` : ""}` : "not running");
  };
  source.addEventListener("state", (event) => {
    state = JSON.parse(event.data);
    say();
    changed();
  });
  for (const kind of KINDS) {
    source.addEventListener(kind, (event) => {
      counts[kind] = (counts[kind] || 0) + JSON.parse(event.data).rows.length;
      say();
      document.dispatchEvent(new CustomEvent("news", { detail: { kind, rows: JSON.parse(event.data).rows } }));
      timer ??= setTimeout(() => {
        timer = null;
        changed();
      }, PAUSE);
    });
  }
  source.onerror = () => {
    status.dataset.state = "lost";
    status.textContent = "connection lost, trying again";
  };
  addEventListener("pagehide", () => source.close());
  return source;
}
