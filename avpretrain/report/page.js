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
    const values = lines.map(({ label, points }) => {
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
