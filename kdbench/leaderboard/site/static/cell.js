"use strict";
/* Shows the cell whose id is in the address, from the files under cells/. */
(() => {
  const { data, el, load, code, fixed, simpleTable, recordPath } = kdbench;
  const main = document.getElementById("cell");

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
      ...Object.entries(net.last || {}),
      ["top-1 at the best validation epoch", net.best_val && `${fixed(net.best_val.top1)} (epoch ${net.best_val.epoch})`],
      ["top-1 at the best test epoch (oracle)", net.best_test && `${fixed(net.best_test.top1)} (epoch ${net.best_test.epoch})`],
      ["parameters", net.params], ["multiply-accumulates", net.macs],
    ])));
  }

  function speeds(numbers, cell) {
    const made = [];
    for (const [name, sizes] of Object.entries(numbers.throughput || {})) {
      const keys = [...new Set(Object.values(sizes).flatMap((s) => Object.keys(s)))];
      made.push(part(`Inference speed: ${name}`, box("Inference speed", simpleTable([["batch size", true], ...keys.map((k) => [k, true])],
        Object.entries(sizes).map(([size, s]) => [size, ...keys.map((k) => text(s[k]))]), "Inference speed"))));
    }
    if (cell.speeds) {
      const keys = [...new Set(cell.speeds.flatMap((s) => Object.keys(s)))];
      made.push(part("Speeds", box("Speeds", simpleTable(keys.map((k) => [k, true]), cell.speeds.map((s) => keys.map((k) => text(s[k]))), "Speeds"))));
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
    const canvas = data.curves && row.t !== null ? el("div", { class: "canvas", role: "img", "aria-label": "Learning curves of this row, mean and range over its seeds" }) : null;
    const curves = canvas && part("Learning curves of its row", canvas, el("p", { class: "dim" }, "Means over the seeds of this row, bands from the lowest to the highest. Numbers: the board's page."));
    if (curves) made.push(curves);
    if (numbers.cost) made.push(part("Cost of training", pairs(Object.entries(numbers.cost))));
    made.push(...speeds(numbers, cell));
    const teachers = shared[cell.teachers];
    if (teachers.length) {
      made.push(part("Teachers", ...teachers.map((t) => pairs([["architecture", t.architecture], ["top-1", t.top1], ["source", t.source],
        ["reference", t.source === "cell" && /^[0-9a-f]{64}$/.test(t.ref) ? el("a", { href: `#${t.ref}` }, t.ref.slice(0, 12)) : t.ref]]))));
    }
    made.push(part("Environment", pairs(Object.entries(shared[cell.environment]))));
    const identity = Object.fromEntries(Object.entries(cell.identity).map(([key, n]) => [key, shared[n]]));
    made.push(part("What was asked for", tree("Identity, whose digest is the cell id", { ...identity, seed: cell.seed }), tree("Plug-ins", shared[cell.plugins])));
    made.push(part("Reproduce", code(`kdbench reproduce ${recordPath(id)}`), el("p", { class: "dim" }, "Cell ", el("code", {}, id))));
    made.push(part("Cite", code(data.cite)));
    main.replaceChildren(...made);
    if (curves) drawCurves(canvas, curves, row);
  }

  async function drawCurves(canvas, section, row) {
    const found = await load(`curves/${row.t}.js`).catch(() => undefined);
    const series = ["test_top1", "val_top1"].filter((m) => found && found[m] && found[m][row.n])
      .map((m, number) => ({ name: m === "test_top1" ? "test" : "validation", values: found[m][row.n], number }));
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
