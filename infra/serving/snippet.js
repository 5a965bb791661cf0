/* searchloop: sends what a visitor sees and clicks. Mark a result list with data-sl-query-id, its results with
   data-sl-id, and what a visitor may do in them with data-sl-action (a link is a click without it). */
(function (me) {
  var to = me.getAttribute("data-events") || new URL("events", me.src).href;
  var app = me.getAttribute("data-application") || location.hostname, key = "sl-client", id;
  try { id = localStorage.getItem(key); } catch (e) {}
  if (!id) {
    id = Array.from(crypto.getRandomValues(new Uint8Array(12)), function (b) { return (b + 256).toString(16).slice(1); }).join("");
    try { localStorage.setItem(key, id); } catch (e) {}
  }
  var waiting = [], seen = new WeakSet();
  function send() {
    if (!waiting.length) return;
    var body = JSON.stringify(waiting.splice(0));
    fetch(to, { method: "POST", body: body, keepalive: true, headers: { "content-type": "text/plain" } }).catch(function () {});
  }
  function note(name, result) {
    var list = result.closest("[data-sl-query-id]");
    if (!list) return;
    var all = Array.from(list.querySelectorAll("[data-sl-id]"));
    waiting.push({
      application: app, action_name: name, query_id: list.getAttribute("data-sl-query-id"), client_id: id,
      timestamp: new Date().toISOString(),
      event_attributes: {
        event_id: id + "-" + Date.now().toString(36) + "-" + Math.random().toString(36).slice(2, 8),
        object: { object_id: result.getAttribute("data-sl-id") }, position: { ordinal: all.indexOf(result) + 1 }
      }
    });
  }
  addEventListener("click", function (e) {
    var on = e.target.closest && e.target.closest("a,button,[data-sl-action]"), result = on && on.closest("[data-sl-id]");
    if (result) { note(on.getAttribute("data-sl-action") || "click", result); send(); }
  }, true);
  if (me.hasAttribute("data-views") && window.IntersectionObserver) {
    var eye = new IntersectionObserver(function (all) {
      all.forEach(function (e) {
        if (e.isIntersecting && !seen.has(e.target)) { seen.add(e.target); note("view", e.target); }
      });
    }, { threshold: 0.5 });
    var look = function () { document.querySelectorAll("[data-sl-id]").forEach(function (r) { eye.observe(r); }); };
    new MutationObserver(look).observe(document.documentElement, { childList: true, subtree: true });
    look();
    setInterval(send, 2000);
  }
  addEventListener("pagehide", send);
})(document.currentScript);
