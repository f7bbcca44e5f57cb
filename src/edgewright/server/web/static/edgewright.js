// Charts from tables, and times that stay true. Without it every page still says all that it has to say.
"use strict";
(() => {
  const drawn = new Map();

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function read(table) {
    const heads = [...table.tHead.rows[0].cells].map((cell) => cell.textContent.trim());
    const columns = heads.map(() => []);
    for (const row of table.tBodies[0].rows) {
      [...row.cells].forEach((cell, at) => columns[at].push(Number(cell.querySelector("data").value)));
    }
    return { heads, columns };
  }

  function draw(figure) {
    const table = document.getElementById(figure.dataset.chart);
    if (!table || !window.uPlot) return;
    drawn.get(figure)?.destroy();
    const { heads, columns } = read(table);
    const strokes = ["--accent", "--bad", "--warn"].map(colour);
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { stroke: colour("--rule"), width: 1 } };
    const series = heads.slice(1).map((label, at) => ({
      label, stroke: strokes[at % strokes.length], width: 2, dash: at ? [4 + 4 * at, 4] : undefined,
      fill: at ? undefined : strokes[0] + "22", points: { show: false },
    }));
    const options = {
      width: figure.clientWidth, height: 220, tzDate: (s) => uPlot.tzDate(new Date(s * 1000), "Etc/UTC"),
      axes: [axis, { ...axis, size: 60 }], series: [{ label: heads[0], value: "{YYYY}-{MM}-{DD} {HH}:{mm}" }, ...series],
      scales: { y: { range: (_, low, high) => [0, Math.max(1, high * 1.1)] } }, cursor: { drag: { x: false, y: false } },
    };
    drawn.set(figure, new uPlot(options, columns, figure));
  }

  const drawAll = () => document.querySelectorAll("figure[data-chart]").forEach(draw);

  function ago(seconds) {
    const size = Math.abs(seconds);
    if (size < 2) return "now";
    for (const [step, unit] of [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]) {
      if (size >= 2 * step) {
        const length = `${Math.round(size / step)} ${unit}`;
        return seconds > 0 ? `${length} ago` : `in ${length}`;
      }
    }
  }

  // The server's clock counts, not this browser's: how far they are apart is known from when the page came.
  const offset = Number(document.documentElement.dataset.nowS || Date.now() / 1000) - Date.now() / 1000;

  function tick() {
    for (const time of document.querySelectorAll("time[datetime]")) {
      const shown = time.querySelector("[data-ago]");
      if (shown) shown.textContent = ago(Date.now() / 1000 + offset - Date.parse(time.dateTime) / 1000);
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    drawAll();
    setInterval(tick, 30000);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
    new ResizeObserver((seen) => seen.forEach(({ target, contentRect }) => {
      const chart = drawn.get(target);
      if (chart && chart.width !== Math.floor(contentRect.width)) chart.setSize({ width: Math.floor(contentRect.width), height: 220 });
    })).observe(document.querySelector("figure[data-chart]") ?? document.body);
  });
})();
