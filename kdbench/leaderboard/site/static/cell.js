"use strict";
/* Shows the cell whose id is in the address, from the files under cells/. */
(() => {
  const { data, el, load, code, fixed, simpleTable, recordPath } = kdbench;
  const main = document.getElementById("cell");

  // fields of records (docs/reference/records.md) in words, with their units; others are shown as they are called
  const WORDS = {
    top1: "top-1, %", top5: "top-5, %", nll: "negative log-likelihood, nats", ece: "calibration error (ECE), %",
    agreement: "agreement with the teacher, %", kl_to_teacher: "KL to the teacher, nats",
    train_s: "training, s", eval_s: "evaluation, s", log_s: "logging, s", setup_s: "set-up, s",
    train_images_per_s: "training, images/s", step_ms: "training step, ms", teacher_share: "teacher's share of a step",
    extra_params: "parameters in training only", device_hours: "device-hours", peak_memory_mb: "peak memory, MB",
    shared_s: "shared with other cells, s", gang: "cells trained in lockstep", fill_s: "filling teacher tables, s",
    cached_forwards: "teacher forwards from tables", online_forwards: "teacher forwards online", compile_s: "compilation, s",
    images_per_s: "images/s", latency_ms_p50: "latency, median, ms", latency_ms_p95: "latency, 95th percentile, ms",
    iqr_ratio: "IQR / median", batch_size: "batch size", found_by: "batch size found by", drift_percent: "drift, %",
    params: "parameters", macs: "multiply-accumulates", cpu_count: "cores of the machine", cpu: "processor", os: "system",
    device_name: "device name", device_memory_mb: "device memory, MB", compile: "compiled",
  };
  const words = (key) => (Object.hasOwn(WORDS, key) ? WORDS[key] : key.replaceAll("_", " "));
  const worded = (mapping) => Object.entries(mapping).map(([key, value]) => [words(key), value]);

  const number = (value) => (Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(6))));
  const text = (value) => {
    if (value === null || value === undefined || value === "") return kdbench.DASH;
    if (typeof value === "number") return number(value);
    return typeof value === "object" ? JSON.stringify(value) : String(value);
  };
  const pairs = (entries) => el("dl", { class: "pairs" }, ...entries
    .filter(([, value]) => value !== undefined && value !== null)
    .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value instanceof Node ? value : text(value)))));
  const part = (title, ...content) => el("section", {}, el("h2", {}, title), ...content);
  const box = (label, table) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);

  function results(numbers) {
    return Object.entries(numbers.deployables || {}).map(([name, net]) => part(`Result: ${name}`, pairs([
      ...worded(net.last || {}),
      ["top-1 at the best validation epoch, %", net.best_val && `${fixed(net.best_val.top1)} (epoch ${net.best_val.epoch})`],
      ["top-1 at the best test epoch (oracle), %", net.best_test && `${fixed(net.best_test.top1)} (epoch ${net.best_test.epoch})`],
      ["parameters", net.params], ["multiply-accumulates", net.macs],
    ])));
  }

  function speeds(numbers, cell) {
    const made = [];
    for (const [name, sizes] of Object.entries(numbers.throughput || {})) {
      const keys = [...new Set(Object.values(sizes).flatMap((s) => Object.keys(s)))];
      made.push(part(`Inference speed: ${name}`, box("Inference speed", simpleTable([["batch size", true], ...keys.map((k) => [words(k), true])],
        Object.entries(sizes).map(([size, s]) => [size, ...keys.map((k) => text(s[k]))]), "Inference speed"))));
    }
    if (cell.speeds) {
      const keys = [...new Set(cell.speeds.flatMap((s) => Object.keys(s)))];
      made.push(part("Speeds", box("Speeds", simpleTable(keys.map((k) => [words(k), true]), cell.speeds.map((s) => keys.map((k) => text(s[k]))), "Speeds"))));
    }
    return made;
  }

  function tree(title, value) {
    return el("details", {}, el("summary", {}, title), el("div", { class: "code" }, el("pre", {}, JSON.stringify(value, null, 2))));
  }

  function show(id, cell, shared) {
    const [labels, row, numbers] = [shared[cell.labels], shared[cell.row], cell.numbers];
    const name = `${labels.variant}, seed ${cell.seed}`;
    document.title = `${name} · kdbench`;
    document.getElementById("here").textContent = name;
    const networks = [labels.teacher, labels.assistant, labels.student].filter(Boolean).join(" → ");
    const tone = cell.status === "done" ? "good" : cell.status === "not_applicable" ? "plain" : "bad";
    const made = [
      el("h1", {}, name),
      el("p", { class: "lead" }, networks, ", ", labels.dataset, " "),
      el("p", {}, el("span", { class: `badge ${tone}` }, cell.status)),
      pairs([["method", el("a", { href: row.m }, labels.method)], ["recipe", labels.recipe], ["role", labels.role], ["fidelity", labels.fidelity || undefined],
        ["preset", labels.preset], ["track", labels.track], ["matrix", labels.matrix], ["protocol", cell.protocol], ["started", cell.started_at], ["finished", cell.finished_at]]),
    ];
    if (cell.error) {
      const [type, message, traceback] = cell.error;
      made.push(part("Why it did not finish", el("p", {}, el("b", {}, type), ": ", message), traceback ? code(traceback) : null));
    }
    if (cell.warnings) made.push(part("Warnings", el("ul", { class: "notes" }, ...cell.warnings.map((w) => el("li", {}, w)))));
    made.push(...results(numbers));
    const canvas = data.curves && row.t !== null ? el("div", { class: "canvas", role: "img", "aria-label": "Learning curves of this cell, and mean and range over the seeds of its row" }) : null;
    const curves = canvas && part("Learning curves", canvas, el("p", { class: "dim" }, "This seed, and the mean over the seeds of its row with a band from the lowest to the highest. Numbers: the board's page."));
    if (curves) made.push(curves);
    if (numbers.cost) made.push(part("Cost of training", pairs(worded(numbers.cost))));
    made.push(...speeds(numbers, cell));
    const teachers = shared[cell.teachers];
    if (teachers.length) {
      made.push(part("Teachers", ...teachers.map((t) => pairs([["architecture", t.architecture], ["top-1, %", t.top1], ["source", t.source],
        ["reference", t.source === "cell" && /^[0-9a-f]{64}$/.test(t.ref) ? el("a", { href: `#${t.ref}` }, t.ref.slice(0, 12)) : t.ref]]))));
    }
    made.push(part("Environment", pairs(worded(shared[cell.environment]))));
    const identity = Object.fromEntries(Object.entries(cell.identity).map(([key, n]) => [key, shared[n]]));
    made.push(part("What was asked for", tree("Identity, whose digest is the cell id", { ...identity, seed: cell.seed }), tree("Plug-ins", shared[cell.plugins])));
    made.push(part("Reproduce", code(`kdbench reproduce ${recordPath(id)}`), el("p", { class: "dim" }, "Cell ", el("code", {}, id))));
    made.push(part("Cite", code(data.cite)));
    main.replaceChildren(...made);
    if (curves) drawCurves(canvas, curves, row, ownCurves(cell, shared));
  }

  const SPLITS = [["test_top1", "test"], ["val_top1", "validation"]];
  function ownCurves(cell, shared) {
    return SPLITS.filter(([metric]) => cell.curve && cell.curve[metric]).map(([metric, name], number) => {
      const [epochs, values] = cell.curve[metric];
      return { name: `${name}, seed ${cell.seed}`, values: [shared[epochs], values, values, values, 1], number: number + 2 };
    });
  }

  async function drawCurves(canvas, section, row, own) {
    const found = await load(`curves/${row.t}.js`).catch(() => undefined);
    const of = SPLITS.map(([metric, name], number) => ({ name: `${name}, mean`, values: found && found[metric] && found[metric][row.n], number }))
      .filter((one) => one.values && (one.values[4] > 1 || !own.length));
    const series = [...of, ...own];
    if (!series.length) { section.remove(); return; }
    await plots.load();
    const draw = () => plots.lines(canvas, series, "Top-1, %");
    draw();
    plots.redraw.clear();
    plots.redraw.add(draw);
  }

  async function open() {
    const id = location.hash.slice(1);
    const missing = (why) => main.replaceChildren(el("h1", {}, "Cell"), el("p", {}, why));
    if (!/^[0-9a-f]{64}$/.test(id)) { missing("The address names no cell: cell.html#<cell id>."); return; }
    try {
      const name = id.slice(0, data.digits) || "all";
      const [shared, cells] = await Promise.all([load("cells/shared.js"), load(`cells/${name}.js`)]);
      if (Object.hasOwn(cells, id)) show(id, cells[id], shared);
      else missing("This board has no such cell.");
    } catch {
      missing("This board has no such cell.");
    }
  }

  addEventListener("hashchange", open);
  open();
})();
