"use strict";
/* Accuracy over cost, and learning curves. Plotly is loaded when a plot comes near: tables are there first. */
const plots = (() => {
  const { data, el, load, fixed, simpleTable } = kdbench;
  const bundle = document.currentScript.dataset.plotly;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const redraw = new Set();
  dark.addEventListener("change", () => redraw.forEach((draw) => draw()));
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  // Plotly reads a little HTML in texts; names of methods are none.
  const plain = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const short = (text, size) => (text.length > size ? `${text.slice(0, size - 1)}\u2026` : text);
  const LIGHT = ["#0b5cad", "#b34700", "#1a7a4c", "#8a3ab0", "#a3251c", "#5c6470", "#00758a", "#7a6000"];
  const DARK = ["#7db7f4", "#ffab70", "#7fd1a0", "#d2a8ff", "#ff9a90", "#b3bcc7", "#66d0e0", "#e3c55c"];
  const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];

  function near(element, callback) {
    const watch = new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting)) { watch.disconnect(); callback(); }
    }, { rootMargin: "600px" });
    watch.observe(element);
  }

  function layout(more) {
    const axis = { gridcolor: colour("line"), zeroline: false, linecolor: colour("line"), automargin: true };
    return {
      font: { family: "system-ui, sans-serif", size: 12.5, color: colour("dim") },
      paper_bgcolor: colour("bg"), plot_bgcolor: colour("bg"), showlegend: false, hovermode: "closest",
      margin: { l: 60, r: 20, t: 30, b: 60 }, hoverlabel: { bgcolor: colour("panel"), bordercolor: colour("line"), font: { color: colour("fg") } },
      ...more, xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
    };
  }
  // Plotly would offer to send the plot to its company's servers.
  const CONFIG = { responsive: true, displaylogo: false, showSendToCloud: false, modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] };

  function fill(select, options) {
    const before = select.value;
    select.replaceChildren(...options.map(([value, text]) => el("option", { value }, text)));
    if (options.some(([value]) => String(value) === before)) select.value = before;
  }

  function numbersOf(id, make) {
    const box = document.getElementById(id);
    const update = () => { if (box.open) box.querySelector(".scroll").replaceChildren(make()); };
    box.addEventListener("toggle", update);
    return update;
  }

  /* The same rules as kdbench.leaderboard.plots: frontier() and usual_range(). */
  function frontier(points, better) {
    const sign = better === "high" ? -1 : 1;
    const best = new Set();
    let top = -Infinity;
    let at = null;
    for (const p of [...points].sort((a, b) => sign * (a.x - b.x) || b.y - a.y)) {
      if (p.y > top || (p.y === top && p.x === at)) { best.add(p); top = p.y; at = p.x; }
    }
    return best;
  }
  function usualRange(values) {
    const found = [...values].sort((a, b) => a - b);
    if (found.length < 4) return [found[0], found[found.length - 1]];
    const quantile = (share) => {
      const place = Math.min(Math.max(share * (found.length + 1) - 1, 0), found.length - 1);
      const low = Math.floor(place);
      return found[low] + (place - low) * ((found[low + 1] ?? found[low]) - found[low]);
    };
    const [low, high] = [quantile(0.25), quantile(0.75)];
    const reach = 2.5 * Math.max(high - low, 1e-9);
    const kept = found.filter((v) => v >= low - reach && v <= high + reach);
    return [kept[0], kept[kept.length - 1]];
  }

  /* Round numbers 1, 2, 5 of each decade, written out. */
  function logAxis(least, most) {
    const tickvals = [];
    for (let e = Math.floor(Math.log10(least)) - 1; e <= Math.log10(most) + 1; e += 1) tickvals.push(...[1, 2, 5].map((m) => m * 10 ** e));
    return { type: "log", tickvals, ticktext: tickvals.map((v) => (v >= 1e6 ? `${v / 1e6} M` : v >= 1e4 ? `${v / 1e3} k` : String(Number(v.toPrecision(3))))) };
  }

  function pareto() {
    const canvas = document.getElementById("pareto");
    const [table, axisBox] = ["pareto-table", "pareto-axis"].map((id) => document.getElementById(id));
    fill(table, data.sections.map((s, n) => [n, `${s.t}, ${s.d}`, s]).filter(([, , s]) => s.p));
    const pointsOf = (axis) => data.sections[Number(table.value)].p
      .filter((p) => p[1][axis] !== null)
      .map(([row, xs, y, low, high, base]) => ({ name: data.rows[row].v, x: xs[axis], y, low, high, base }));
    const axes = () => fill(axisBox, data.axes.map((a, n) => [n, a.title]).filter(([n]) => pointsOf(n).length > 1));
    const current = () => {
      const axis = data.axes[Number(axisBox.value)];
      const points = pointsOf(Number(axisBox.value));
      return { axis, points, best: frontier(points, axis.better) };
    };
    const numbers = numbersOf("pareto-data", () => {
      const { axis, points, best } = current();
      return simpleTable([["Method"], [axis.title, true], ["Top-1, %", true], ["95 % interval", true], ["Frontier"]],
        points.map((p) => [p.name, String(p.x), fixed(p.y), p.low === null ? kdbench.DASH : `${fixed(p.low)} to ${fixed(p.high)}`, best.has(p) ? "yes" : "no"]),
        "Numbers of the plot");
    });

    function draw() {
      const { axis, points, best } = current();
      const [bottom, top] = usualRange(points.map((p) => p.y));
      const inside = points.filter((p) => p.y >= bottom && p.y <= top);
      // room for all intervals but those that would make the rest flat
      const spread = Math.max(top - bottom, 1);
      const ends = inside.filter((p) => p.low !== null);
      const shown = ends.filter((p) => p.high - p.low <= 3 * spread);
      const margin = shown.length < ends.length || !ends.length ? 0.2 * spread : 0.04 * spread;
      const range = [
        Math.min(bottom, ...shown.map((p) => p.low)) - margin,
        Math.max(top, ...shown.map((p) => p.high)) + margin,
      ];
      const xs = inside.map((p) => p.x);
      const [least, most] = [Math.min(...xs), Math.max(...xs)];
      const log = least > 0 && most / least > 8;
      const pad = log ? 0.06 * Math.log10(most / least) : 0.06 * Math.max(most - least, most > least ? 0 : 8 * Math.abs(most), 1e-9);
      const across = log ? [Math.log10(least) - pad, Math.log10(most) + pad] : [least - pad, most + pad];
      const trace = (chosen, more) => ({
        type: "scatter", mode: "markers", x: chosen.map((p) => p.x), y: chosen.map((p) => p.y),
        text: chosen.map((p) => plain(short(p.name, 40))),
        hovertemplate: `<b>%{text}</b><br>top-1 %{y:.2f} %<br>${plain(axis.title)} %{x:.4~g}<extra></extra>`,
        error_y: {
          type: "data", symmetric: false, thickness: 1.3, width: 3, color: colour("whisker"),
          array: chosen.map((p) => (p.high === null ? 0 : p.high - p.y)), arrayminus: chosen.map((p) => (p.low === null ? 0 : p.y - p.low)),
        },
        ...more,
      });
      const others = points.filter((p) => !best.has(p) && !p.base);
      const front = [...best].sort((a, b) => a.x - b.x);
      const bases = points.filter((p) => p.base);
      const label = { mode: "markers+text", textposition: "top center", textfont: { color: colour("fg") }, cliponaxis: false };
      const traces = [
        { type: "scatter", mode: "lines", x: front.map((p) => p.x), y: front.map((p) => p.y), hoverinfo: "skip", line: { color: colour("mark"), dash: "dash", width: 1.5 } },
        trace(others, { ...(points.length <= 12 ? label : {}), marker: { symbol: "circle-open", size: 8, color: colour("dim"), line: { width: 1.6 } } }),
        trace(front.filter((p) => !p.base), { ...label, marker: { symbol: "diamond", size: 11, color: colour("mark") } }),
        trace(bases, { ...label, marker: { symbol: "square", size: 10, color: colour("fg") } }),
      ];
      Plotly.react(canvas, traces, layout({
        xaxis: { title: { text: `${plain(axis.title)} (${axis.better === "low" ? "less" : "more"} is better)` }, range: across, ...(log ? logAxis(least, most) : { type: "linear" }) },
        yaxis: { title: { text: "Top-1, %" }, range },
      }), CONFIG);
      numbers();
    }
    axes();
    table.addEventListener("change", () => { axes(); draw(); });
    axisBox.addEventListener("change", draw);
    near(canvas, () => load(bundle).then(() => { draw(); redraw.add(draw); }));
  }

  const METRICS = { test_top1: "Test top-1, %", val_top1: "Validation top-1, %", train_loss: "Training loss" };

  /* Lines with bands; `series` are {name, values: [epochs, mean, low, high, seeds], colour: number}. */
  function lines(canvas, series, title) {
    const palette = dark.matches ? DARK : LIGHT;
    const traces = [];
    const ends = [];
    if (!series.length) return Plotly.react(canvas, [], layout({}), CONFIG);
    const every = series.flatMap((s) => s.values[1]);
    const span = Math.max(Math.max(...every) - Math.min(...every), 1e-9);
    for (const { name, values: [epochs, mean, low, high, seeds], number } of series) {
      const paint = palette[number % palette.length];
      if (seeds > 1) {
        traces.push({ type: "scatter", mode: "lines", x: [...epochs, ...[...epochs].reverse()], y: [...high, ...[...low].reverse()], fill: "toself", fillcolor: `${paint}26`, line: { width: 0 }, hoverinfo: "skip", showlegend: false });
      }
      traces.push({
        type: "scatter", mode: epochs.length > 1 ? "lines" : "markers", name: plain(short(name, 40)), x: epochs, y: mean, text: low.map((v, n) => `${fixed(v)} to ${fixed(high[n])}, ${seeds} seed${seeds === 1 ? "" : "s"}`),
        hovertemplate: `<b>${plain(short(name, 40)).replaceAll("%{", "% {")}</b><br>epoch %{x}: %{y:.2f}<br>%{text}<extra></extra>`,
        line: { color: paint, width: 2, dash: DASHES[Math.floor(number / palette.length + number) % DASHES.length] }, marker: { color: paint, size: 8 },
      });
      ends.push({ x: epochs[epochs.length - 1], y: mean[mean.length - 1], name, paint });
    }
    const narrow = canvas.clientWidth < 560;
    const epochsOfAll = series.flatMap((s) => s.values[0]);
    const [first, last] = [Math.min(...epochsOfAll), Math.max(...epochsOfAll)];
    const pad = last > first ? 0.02 * (last - first) : 0.5;
    // names at the ends of the lines, pushed apart by about a line of text; below the plot where there is no room
    ends.sort((a, b) => a.y - b.y);
    let below = -Infinity;
    const pixels = 280 / span;
    const annotations = ends.map((end) => {
      const at = Math.max(end.y * pixels, below + 14);
      below = at;
      return { x: end.x, y: end.y, yshift: at - end.y * pixels, xanchor: "left", xshift: 6, showarrow: false, text: plain(short(end.name, 22)), font: { color: end.paint } };
    });
    return Plotly.react(canvas, traces, layout({
      ...(narrow ? { showlegend: true, legend: { orientation: "h", y: -0.28 }, margin: { l: 50, r: 10, t: 30, b: 60 } } : { margin: { l: 60, r: 140, t: 30, b: 60 }, annotations }),
      xaxis: { title: { text: "Epoch" }, tickformat: "d", range: [first - pad, last + pad], dtick: last <= 12 ? 1 : undefined }, yaxis: { title: { text: title } },
    }), CONFIG);
  }

  function curves(sources) {
    const canvas = document.getElementById("curves-plot");
    const [table, metric, picks] = ["curves-table", "curves-metric", "curves-rows"].map((id) => document.getElementById(id));
    fill(table, sources.map((source, n) => [n, source.t]));
    let found = {};
    const source = () => sources[Number(table.value)];
    const chosen = () => Array.from(picks.querySelectorAll("input:checked"), (box) => box.value);
    const series = () => {
      const shown = new Set(chosen());
      return source().rows.map(([row, name], number) => ({ row, name, number, values: (found[metric.value] || {})[row] }))
        .filter((one) => one.values && shown.has(one.row));
    };
    const numbers = numbersOf("curves-data", () => {
      const shown = series();
      const epochs = [...new Set(shown.flatMap((s) => s.values[0]))].sort((a, b) => a - b);
      const at = (s, epoch) => { const n = s.values[0].indexOf(epoch); return n < 0 ? kdbench.DASH : fixed(s.values[1][n]); };
      return simpleTable([["Epoch", true], ...shown.map((s) => [s.name, true])], epochs.map((e) => [e, ...shown.map((s) => at(s, e))]), "Means over seeds");
    });
    const draw = () => { lines(canvas, series(), METRICS[metric.value]); numbers(); };
    async function choose() {
      found = await load(source().src) || {};
      fill(metric, Object.entries(METRICS).filter(([name]) => found[name]));
      const rows = source().rows.filter(([row]) => Object.values(found).some((f) => f[row]));
      picks.replaceChildren(picks.firstElementChild, ...rows.map(([row, name], n) => {
        const box = el("input", { type: "checkbox", value: row });
        box.checked = n < 5 || source().base === row;
        return el("label", {}, box, short(name, 40));
      }));
      draw();
    }
    table.addEventListener("change", choose);
    metric.addEventListener("change", draw);
    picks.addEventListener("change", draw);
    near(canvas, () => load(bundle).then(choose).then(() => redraw.add(draw)));
  }

  if (document.getElementById("pareto")) pareto();
  if (document.getElementById("curves-plot")) curves(data.curves);
  return { lines, load: () => load(bundle), redraw, METRICS };
})();
