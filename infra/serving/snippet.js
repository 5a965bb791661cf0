/* searchloop: sends what a visitor clicks. data-sl-query-id marks a result list, data-sl-id a result in it, and
data-sl-action what a button does; data-views on this script also sends which results were seen. */
(function (me) {
  var to = me.dataset.events || new URL("events", me.src).href, waiting = [], seen = new WeakSet(), id;
  try { id = localStorage.slClient; } catch (e) {}
  if (!id) {
    id = crypto.getRandomValues(new Uint32Array(4)).join("-");
    try { localStorage.slClient = id; } catch (e) {}
  }
  function send() {
    if (waiting.length)
      fetch(to, { method: "POST", body: JSON.stringify(waiting.splice(0)), keepalive: true }).catch(function () {});
  }
  function note(name, result) {
    var list = result.closest("[data-sl-query-id]");
    if (list) waiting.push({
      application: me.dataset.application || location.hostname, action_name: name, client_id: id,
      query_id: list.dataset.slQueryId, timestamp: new Date().toISOString(),
      event_attributes: {
        event_id: id + "-" + Date.now() + "-" + Math.random(), object: { object_id: result.dataset.slId },
        position: { ordinal: [].indexOf.call(list.querySelectorAll("[data-sl-id]"), result) + 1 }
      }
    });
  }
  addEventListener("click", function (e) {
    var on = e.target.closest("a,button,[data-sl-action]"), result = on && on.closest("[data-sl-id]");
    if (result) { note(on.dataset.slAction || "click", result); send(); }
  }, true);
  if (me.dataset.views != null) {
    var eye = new IntersectionObserver(function (all) {
      all.forEach(function (e) { if (e.isIntersecting && !seen.has(e.target)) { seen.add(e.target); note("view", e.target); } });
    }, { threshold: .5 });
    setInterval(function () {
      document.querySelectorAll("[data-sl-id]").forEach(function (r) { eye.observe(r); });
      send();
    }, 1000);
  }
  addEventListener("pagehide", send);
})(document.currentScript);
