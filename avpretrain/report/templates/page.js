"use strict";

// Tables: a click on a heading sorts by it, a second click turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const value = (row, i) => row.cells[i].dataset.value ?? row.cells[i].textContent;
  const compare = (a, b) => {
    const [x, y] = [parseFloat(a), parseFloat(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? String(a).localeCompare(String(b)) : x - y;
  };
  headings.forEach((heading, i) => {
    heading.querySelector("button").addEventListener("click", () => {
      const ascending = heading.getAttribute("aria-sort") !== "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => (ascending ? 1 : -1) * compare(value(a, i), value(b, i)));
      table.tBodies[0].append(...rows);
    });
  });
}

// Charts: under the pointer, the value of each line is written below the chart.
const readable = (v) => {
  const size = Math.abs(v);
  const [scale, prefix] = [[1e18, "E"], [1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]
    .find(([s]) => size >= s) ?? [1, ""];
  return Number((v / scale).toPrecision(3)) + (prefix ? " " + prefix : "");
};
for (const svg of document.querySelectorAll("svg[data-range]")) {
  const [x0, x1, y0, y1] = svg.dataset.range.split(" ").map(Number);
  const [left, right, bottom, top] = svg.dataset.box.split(" ").map(Number);
  const lines = [...svg.querySelectorAll("polyline")].map((line) => ({
    label: line.dataset.label,
    points: line.getAttribute("points").split(" ").map((pair) => pair.split(",").map(Number)),
  }));
  const output = svg.parentElement.querySelector("output");
  const guide = document.createElementNS("http://www.w3.org/2000/svg", "line");
  guide.setAttribute("class", "guide");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = Math.min(right, Math.max(left, ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width));
    for (const [key, v] of [["x1", x], ["x2", x], ["y1", top], ["y2", bottom]]) guide.setAttribute(key, v);
    svg.append(guide);
    const near = (points) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    const values = lines.filter(({ points }) => points.length).map(({ label, points }) => {
      const y = near(points)[1];
      return `${label} ${readable(y0 + ((bottom - y) / (bottom - top)) * (y1 - y0))}`;
    });
    const at = readable(x0 + ((x - left) / (right - left)) * (x1 - x0));
    output.textContent = `${at} ${svg.dataset.x}: ${values.join(" · ")}`;
  });
  svg.addEventListener("pointerleave", () => {
    guide.remove();
    output.textContent = "";
  });
}

// Pictures: a click shows one in its full size, a second click as wide as the page.
for (const image of document.querySelectorAll("figure img")) {
  image.addEventListener("click", () => image.classList.toggle("full"));
}

// Reconstructions over time: the slider shows one moment.
for (const sequence of document.querySelectorAll(".sequence")) {
  const slider = sequence.querySelector("input");
  if (!slider) continue;
  slider.parentElement.hidden = false;
  const frames = [...sequence.querySelectorAll(".frame")];
  slider.addEventListener("input", () => {
    frames.forEach((frame, i) => { frame.hidden = i !== Number(slider.value); });
    sequence.querySelector("output").textContent = frames[slider.value].dataset.name;
  });
}

// Commands: copied as they stand.
for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.previousElementSibling.textContent);
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
