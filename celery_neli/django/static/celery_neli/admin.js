"use strict";
(() => {
  // The list: select all, and how many are selected.
  const all = document.getElementById("action-toggle");
  if (all) {
    const boxes = [...document.querySelectorAll("input.action-select")];
    const counter = document.querySelector(".action-counter");
    const count = () => {
      const chosen = boxes.filter((each) => each.checked).length;
      all.checked = chosen === boxes.length;
      counter.textContent = `${chosen} of ${boxes.length} selected`;
      boxes.forEach((each) => each.closest("tr").classList.toggle("selected", each.checked));
    };
    all.hidden = counter.hidden = false;
    all.addEventListener("change", () => {
      boxes.forEach((each) => { each.checked = all.checked; });
      count();
    });
    boxes.forEach((each) => each.addEventListener("change", count));
    count();
  }

  // The form: the next slots of the schedule while it is typed.
  const form = document.getElementById("entry_form");
  if (form) {
    const place = document.getElementById("neli-preview");
    const schedule = document.getElementById("id_schedule");
    const deciding = ["name", "schedule", ...form.dataset.decide.split(" ")];
    const fields = deciding.map((each) => document.getElementById(`id_${each}`)).filter(Boolean);
    let timer = 0;
    let asked = 0;
    const element = (name, text, className = "") => {
      const made = document.createElement(name);
      made.textContent = text;
      made.className = className;
      return made;
    };
    const show = (found) => {
      place.replaceChildren();
      if (found.error) place.append(element("p", found.error, "errors"));
      const list = document.createElement("ol");
      for (const each of found.slots) {
        const item = element("li", "", each.runs ? "" : "left-out");
        item.append(element("span", each.slot));
        if (each.notes) item.append(" ", element("small", each.notes));
        list.append(item);
      }
      if (found.slots.length) place.append(list);
    };
    const ask = async () => {
      const mine = ++asked;
      const query = new URLSearchParams(fields.map((each) => [each.name, each.value]));
      if (!schedule.value.trim()) return show({ slots: [] });
      try {
        const answer = await fetch(`${form.dataset.preview}?${query}`, { credentials: "same-origin" });
        if (answer.ok && mine === asked) show(await answer.json());
      } catch {
        // The button below the form shows the slots, too.
      }
    };
    for (const each of fields) {
      each.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(ask, 300); });
    }
  }
})();
