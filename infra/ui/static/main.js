// The start of every page: the run, the page's own part, and the stream that keeps it current.
import { get, here } from "./api.js";
import { h, own } from "./dom.js";
import { listen } from "./live.js";
import * as pages from "./pages.js";

const main = document.querySelector("main");

async function start() {
  const { runs } = await get("/api/runs");
  const select = document.querySelector("#run");
  if (!runs.length) {
    select.append(h("option", {}, "none yet"));
    main.append(h("p", {}, "This home has no run yet. Begin with ", h("code", {}, "searchloop demo"), " or ", h("code", {}, "searchloop train"), "."));
    return;
  }
  const run = here.get("run") || runs[0].run;
  here.set("run", run);
  if (!runs.some((each) => each.run === run)) select.append(h("option", { value: run, selected: true }, own(run)));
  select.append(
    ...runs.map((each) => h("option", { value: each.run, selected: each.run === run }, each.recipe ? `${each.run} (${each.recipe})` : each.run)),
  );
  select.addEventListener("change", () => (location.search = new URLSearchParams({ run: select.value }).toString()));
  for (const link of document.querySelectorAll("nav a")) link.search = new URLSearchParams({ run }).toString();
  const refresh = await pages[document.body.dataset.page](main, here);
  listen(document.querySelector("#live"), refresh);
}

start().catch((error) => main.append(h("p", { className: "notice bad", role: "alert" }, error.message)));
