// The read-out of the charts: under the pointer, or with the arrow keys. Without this script everything else works.
"use strict";

for (const chart of document.querySelectorAll(".chart")) {
  const plot = chart.querySelector(".plot");
  const { lines } = JSON.parse(chart.querySelector("script").textContent);
  const cursor = element("div", "cursor"), tip = element("div", "tip");
  tip.setAttribute("role", "status");
  let place = 1;

  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    show((event.clientX - box.left) / box.width);
  });
  plot.addEventListener("pointerdown", (event) => {
    const box = plot.getBoundingClientRect();
    show((event.clientX - box.left) / box.width);
  });
  plot.addEventListener("pointerleave", hide);
  plot.addEventListener("blur", hide);
  plot.addEventListener("keydown", (event) => {
    const places = [...new Set(shown().flatMap((line) => line.x))].sort((a, b) => a - b);
    const here = places.findIndex((x) => x >= place - 1e-9);
    const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: places.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (next === undefined || !places.length) return;
    event.preventDefault();
    show(places[Math.max(0, Math.min(places.length - 1, next))]);
  });

  function shown() {
    return lines.filter((line) => !line.run || document.getElementById("run-" + line.run).checked);
  }

  function show(wanted) {
    const found = shown().map((line) => [line, nearest(line.x, wanted)]);
    if (!found.length) return hide();
    const [first, index] = found.reduce((a, b) => (distance(a) <= distance(b) ? a : b));
    place = first.x[index];
    tip.replaceChildren(element("b", "", first.at[index]));
    for (const [line, i] of found.slice(0, 12)) {
      const row = element("span", "");
      row.append(swatch(line.style), element("em", "", line.label), line.is[i]);
      if (line.at[i] !== first.at[index]) row.append(element("em", "", "(" + line.at[i] + ")"));
      tip.append(row);
    }
    cursor.style.left = 100 * place + "%";
    plot.append(cursor, tip);
    const room = plot.clientWidth, width = tip.offsetWidth, x = place * room;
    const left = x + 12 + width <= room ? x + 12 : x - 12 - width;
    tip.style.left = Math.max(Math.min(0, room - width), left) + "px";

    function distance([line, i]) {
      return Math.abs(line.x[i] - wanted);
    }
  }

  function hide() {
    cursor.remove();
    tip.remove();
  }
}

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));

function nearest(sorted, wanted) {
  let low = 0, high = sorted.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < wanted) low = middle + 1;
    else high = middle;
  }
  return low > 0 && wanted - sorted[low - 1] < sorted[low] - wanted ? low - 1 : low;
}

function element(tag, style, text = "") {
  const made = document.createElement(tag);
  made.className = style;
  made.textContent = text;
  return made;
}

function swatch(style) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 28 10");
  svg.setAttribute("class", "swatch");
  path.setAttribute("class", "line " + style);
  path.setAttribute("d", "M1 5H27");
  svg.append(path);
  return svg;
}
