// Replaces the parts of the page that are marked data-live when the server says that something changed.
// Without this file the page works as well: load it again to see news.
(() => {
  "use strict";
  const events = document.documentElement.dataset.events;
  if (!events || !window.EventSource) return;
  const said = document.getElementById("said");
  const live = document.getElementById("live");
  let loading = false, again = false;

  const show = (text) => { if (live.textContent !== text) live.textContent = text; };

  function place(part, next) {
    const active = part.contains(document.activeElement) ? document.activeElement : null;
    const select = active && (active.id ? `#${CSS.escape(active.id)}` : active.getAttribute("href") && `a[href="${CSS.escape(active.getAttribute("href"))}"]`);
    for (const each of part.querySelectorAll("details[open][id]")) {
      next.querySelector(`#${CSS.escape(each.id)}`)?.setAttribute("open", "");
    }
    const scrolled = [...part.querySelectorAll(".scroll")].map((each) => each.scrollLeft);
    part.replaceWith(next);
    next.querySelectorAll(".scroll").forEach((each, place) => { each.scrollLeft = scrolled[place] || 0; });
    if (select) next.querySelector(select)?.focus({ preventScroll: true });
  }

  const selecting = (part) => {
    const selection = window.getSelection();
    return selection && !selection.isCollapsed && part.contains(selection.anchorNode);
  };

  let pressed = false;  // a click is under way: what it is on must stay
  document.addEventListener("pointerdown", () => { pressed = true; });
  for (const end of ["pointerup", "pointercancel"]) {
    document.addEventListener(end, () => setTimeout(() => { pressed = false; }, 50));
  }

  async function load() {
    if (loading) { again = true; return; }
    loading = true;
    try {
      const answer = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
      if (answer.redirected) location.reload();  // the session is over
      if (!answer.ok || answer.redirected) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      for (const part of document.querySelectorAll("[data-live]")) {
        const next = fresh.getElementById(part.id);
        if (next && next.innerHTML !== part.innerHTML && !selecting(part) && !pressed) place(part, document.adoptNode(next));
      }
    } catch {
      // The next news, or the timer, tries again.
    } finally {
      loading = false;
      if (again) { again = false; setTimeout(load, 500); }
    }
  }

  const source = new EventSource(events);
  let lost = 0;
  source.addEventListener("open", () => { clearTimeout(lost); lost = 0; show("Live"); load(); });
  source.addEventListener("error", () => {  // a stream ends now and then, and the browser asks for the next one
    lost ||= setTimeout(() => show("Not live: the server does not answer. The page shows what it last knew."), 6000);
  });
  source.addEventListener("change", (event) => {
    const news = JSON.parse(event.data);
    if (news.say) said.textContent = news.say;
    if (!document.hidden) load();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) load(); });
  setInterval(() => { if (!document.hidden) load(); }, 5000);
})();
