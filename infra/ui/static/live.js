// What happens in the run, as it happens. The browser itself comes back after a lost connection, with the last cursor.
import { address, get } from "./api.js";

const KINDS = ["rewards", "updates", "dev-scores", "dead-letters", "impression-outcomes", "decisions"];
const PAUSE = 1000;
const RETRY = 5000;

export function listen(status, changed) {
  let source = null, last = "", timer = null, retry = null;
  const counts = {};
  let state = { live: false, state: "" };
  const say = () => {
    status.dataset.state = state.live ? "live" : "idle";
    const news = Object.entries(counts).map(([kind, count]) => `${count} ${kind.replaceAll("-", " ")}`).join(", ");
    status.textContent = state.state || (state.live ? `live${news ? `: ${news}` : ""}` : "not running");
  };
  const open = () => {
    source = new EventSource(address("/api/stream", { from: last }));
    source.addEventListener("state", (event) => {
      last = event.lastEventId || last;
      state = JSON.parse(event.data);
      say();
      changed();
    });
    for (const kind of KINDS) {
      source.addEventListener(kind, (event) => {
        last = event.lastEventId;
        counts[kind] = (counts[kind] || 0) + JSON.parse(event.data).rows.length;
        say();
        timer ??= setTimeout(() => {
          timer = null;
          changed();
        }, PAUSE);
      });
    }
    source.onerror = lost;
  };
  // The browser comes back by itself from a lost connection, but not from a refusal: a new token, a run that is gone.
  const lost = async () => {
    status.dataset.state = "lost";
    status.textContent = "connection lost, trying again";
    if (source.readyState !== EventSource.CLOSED) return;
    clearTimeout(retry);
    retry = setTimeout(open, RETRY);
    await get("/api/overview").catch((error) => (status.textContent = error.message));
  };
  // A browser allows six connections to a host, so a tab that nobody looks at holds none.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source.close();
    else if (source.readyState === EventSource.CLOSED) open();
  });
  addEventListener("pagehide", () => source.close());
  open();
}
