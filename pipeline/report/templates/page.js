
"use strict";
// Reads charts off where the pointer is, or the arrow keys are, and filters the images. The page is whole without it.
for (const plot of document.querySelectorAll(".plot[data-end]")) {
  const end = Math.floor(1000 * plot.dataset.end);
  const cursor = plot.querySelector(".cursor");
  const output = plot.parentElement.querySelector("output");
  const curves = [...plot.parentElement.querySelectorAll("[data-at]")].map((item) => ({
    at: JSON.parse(item.dataset.at),
    counts: JSON.parse(item.dataset.counts),
    images: Number(item.dataset.images),
    value: item.querySelector(".value"),
  }));
  let radius = 0; // in thousandths
  const read = (wanted) => {
    radius = Math.min(Math.max(Math.round(wanted), 0), end);
    const place = (radius / 10 / plot.dataset.end).toFixed(3) + "%";
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.setAttribute("visibility", "visible");
    output.value = "At radius " + (radius / 1000).toFixed(3) + ":";
    for (const curve of curves) {
      const step = curve.at.findIndex((at) => at >= radius);
      curve.value.textContent = ((step < 0 ? 0 : curve.counts[step]) / curve.images).toFixed(3);
    }
  };
  const point = (event) => {
    const box = plot.getBoundingClientRect();
    read(1000 * plot.dataset.end * (event.clientX - box.left) / box.width);
  };
  plot.addEventListener("pointermove", point);
  plot.addEventListener("pointerdown", point);
  plot.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1, PageUp: 50, PageDown: -50 }[event.key];
    if (!steps) return;
    event.preventDefault();
    read(radius + steps * (event.shiftKey ? 10 : 1));
  });
  output.hidden = false;
  output.value = "Point at the chart, or use the arrow keys, to read values off it.";
}
const filters = document.querySelector(".filters");
if (filters) {
  const cards = [...document.querySelectorAll(".card")];
  const more = document.getElementById("more");
  const chosen = (id) => document.getElementById(id)?.value ?? "";
  const atOnce = 20;
  let most = atOnce;
  const show = () => {
    const from = chosen("radius-from"), to = chosen("radius-to");
    const fitting = cards.filter(({ dataset: { label, outcome, radius } }) =>
      ["", label].includes(chosen("of-class")) &&
      ["", outcome].includes(chosen("of-outcome")) &&
      (from === "" || Number(radius) >= Number(from)) &&
      (to === "" || Number(radius) <= Number(to)));
    const shown = new Set(fitting.slice(0, most));
    for (const card of cards) card.hidden = !shown.has(card);
    more.hidden = shown.size === fitting.length;
    document.getElementById("shown").value = shown.size + " of " + fitting.length;
  };
  filters.hidden = false;
  filters.addEventListener("input", () => { most = atOnce; show(); });
  more.addEventListener("click", () => { most += atOnce; show(); });
  show();
}
