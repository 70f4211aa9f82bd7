"use strict";
/* Sorting, filtering and the details of rows. Texts of records only ever become text nodes. */
const kdbench = (() => {
  // Control, zero-width and bidirectional characters could make a text look like another.
  const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g;
  const DASH = "\u2014";
  const holder = document.getElementById("data");
  const data = holder ? JSON.parse(holder.textContent) : {};

  function el(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (name === "class") made.className = value;
      else made.setAttribute(name, value);
    }
    for (const child of children) {
      if (child === null || child === undefined) continue;
      made.append(child instanceof Node ? child : String(child).replace(UNSEEN, ""));
    }
    return made;
  }

  const fixed = (value, digits = 2) => (value === null || value === undefined ? DASH : value.toFixed(digits));
  const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\"'\"'")}'`);
  const recordPath = (id) => quoted(data.records.replace("{id}", id));

  /* Data files are scripts that call put(): a page that was opened as a file may not fetch. */
  const waiting = new Map();
  const loaded = new Map();
  function load(address) {
    const url = new URL(address, document.baseURI).href;
    if (!loaded.has(url)) {
      loaded.set(url, new Promise((resolve, reject) => {
        const script = el("script", { src: url });
        waiting.set(url, resolve);
        script.addEventListener("load", () => resolve(undefined));
        script.addEventListener("error", () => reject(new Error(`${address}: no such file`)));
        document.head.append(script);
      }));
    }
    return loaded.get(url);
  }
  function put(value) {
    const resolve = waiting.get(document.currentScript.src);
    if (resolve) resolve(value);
  }

  function code(text) {
    const pre = el("pre", {}, text);
    const button = el("button", { type: "button", class: "copy" }, "Copy");
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(pre.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(pre);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    return el("div", { class: "code" }, pre, button);
  }

  function simpleTable(heads, rows, caption) {
    return el("table", {}, caption ? el("caption", { class: "sr" }, caption) : null,
      el("thead", {}, el("tr", {}, ...heads.map(([text, numeric]) => el("th", { scope: "col", class: numeric ? "n" : "" }, text)))),
      el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((cell, n) => el("td", { class: heads[n][1] ? "n" : "" }, cell))))));
  }

  /* Sorting */
  function sortValue(row, column, numeric) {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    if (!numeric) return text.toLowerCase();
    if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
    const value = parseFloat(text);
    return Number.isNaN(value) ? null : value;
  }

  function compare(a, b, sign) {
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (a < b ? -1 : a > b ? 1 : 0);
  }

  function sortBy(table, column) {
    const heads = Array.from(table.tHead.rows[0].cells);
    const head = heads[column];
    const numeric = head.classList.contains("n");
    const before = head.getAttribute("aria-sort");
    const first = numeric && head.textContent !== "#" && !/rank/i.test(head.textContent) ? "descending" : "ascending";
    const order = before === null ? first : before === "ascending" ? "descending" : "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const body = table.tBodies[0];
    body.querySelectorAll("button.row[aria-expanded=true]").forEach((button) => close(button.closest("tr")));
    const rows = Array.from(body.rows, (row) => [sortValue(row, column, numeric), row]);
    rows.sort((a, b) => compare(a[0], b[0], order === "ascending" ? 1 : -1));
    body.append(...rows.map((pair) => pair[1]));
  }

  /* Details of a row: seeds, published values, how to reproduce and to cite */
  function seedLine([seed, status, id, last, val, test], page) {
    const link = el("a", { href: `${page}#${id}` }, id.slice(0, 12));
    if (status === "done" && typeof last !== "string") return [seed, status, fixed(last), fixed(val), fixed(test), link];
    return [seed, el("span", { class: "bad" }, `${status}: ${last}`), DASH, DASH, DASH, link];
  }

  function details(row) {
    const one = data.rows[Number(row.dataset.row)];
    const inside = el("div", { class: "inside" });
    inside.append(el("h3", {}, "Seeds"), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Seeds of ${one.v}` },
      simpleTable([["Seed", true], ["Status"], ["Top-1", true], ["Best val", true], ["Best test", true], ["Cell"]],
        one.s.map((seed) => seedLine(seed, data.cell)), `Seeds of ${one.v}`)));
    if (one.w) inside.append(el("p", { class: "bad" }, `No mean: ${one.w}`));
    for (const [value, sd, difference, equal, source, selection, differs] of one.p || []) {
      const protocol = equal === true ? "same protocol" : equal === false ? "other protocol" : "protocol not told";
      const ours = difference === null ? "" : `, ours ${difference >= 0 ? "+" : ""}${fixed(difference)}`;
      inside.append(el("p", {}, `Published: ${fixed(value)}${sd === null ? "" : ` ± ${fixed(sd)}`}${ours} (${selection}; ${protocol}${differs.length ? `: ${differs.join("; ")}` : ""}). ${source}`));
    }
    const first = one.s.find((seed) => seed[1] === "done") || one.s[0];
    inside.append(el("h3", {}, "Reproduce"), code(`kdbench reproduce ${recordPath(first[2])}`));
    inside.append(el("h3", {}, "Cite"), code(data.cite));
    inside.append(el("p", {}, el("a", { href: one.m }, `All rows of ${one.f.method}`)));
    return el("tr", { class: "detail" }, el("td", { colspan: String(row.cells.length) }, inside));
  }

  function close(row) {
    const next = row.nextElementSibling;
    if (next && next.classList.contains("detail")) next.remove();
    const button = row.querySelector("button.row");
    if (button) button.setAttribute("aria-expanded", "false");
  }

  /* Filtering: words that a row must contain, and choices of what rows are told apart by */
  const texts = new Map();
  function textOf(row, title) {
    if (!texts.has(row)) texts.set(row, `${title} ${row.textContent}`.toLowerCase());
    return texts.get(row);
  }

  function filter() {
    const words = document.getElementById("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = Array.from(document.querySelectorAll("select[data-facet]"), (s) => [s.dataset.facet, s.value]).filter(([, v]) => v);
    let shown = 0;
    let all = 0;
    for (const section of document.querySelectorAll("section")) {
      const table = section.querySelector("table.sortable");
      if (!table || table.classList.contains("heatmap") || section.id === "ranks") continue;
      const title = section.querySelector("h2") ? section.querySelector("h2").textContent : "";
      const own = section.dataset.section === undefined ? null : data.sections[Number(section.dataset.section)];
      let visible = 0;
      for (const row of table.tBodies[0].rows) {
        if (row.classList.contains("detail")) continue;
        const facets = own ? { ...data.rows[Number(row.dataset.row)].f, ...(own.precision ? { precision: own.precision } : {}) } : null;
        const fits = facets === null || chosen.every(([name, value]) => facets[name] === value);
        row.hidden = !(fits && words.every((word) => textOf(row, title).includes(word)));
        if (row.hidden) close(row);
        visible += !row.hidden;
        if (own || !data.sections) { all += 1; shown += !row.hidden; }
      }
      section.hidden = own !== null && visible === 0;
    }
    const idle = !words.length && !chosen.length;
    document.getElementById("count").textContent = !idle ? `${shown} of ${all} rows` : data.sections ? `${all} rows` : "";
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const head = button.closest("table.sortable > thead th");
    if (head) { sortBy(head.closest("table"), head.cellIndex); return; }
    if (!button.classList.contains("row")) return;
    const row = button.closest("tr");
    if (button.getAttribute("aria-expanded") === "true") { close(row); return; }
    row.after(details(row));
    button.setAttribute("aria-expanded", "true");
  });
  const search = document.getElementById("search");
  if (search) {
    search.addEventListener("input", filter);
    document.querySelectorAll("select[data-facet]").forEach((select) => select.addEventListener("change", filter));
    const form = document.getElementById("tools");
    if (form) {
      form.addEventListener("submit", (event) => event.preventDefault());
      form.addEventListener("change", (event) => {
        if (event.target.name === "view") document.getElementById("main").dataset.view = event.target.value;
      });
      const view = form.querySelector("input[name=view]:checked");
      if (view) document.getElementById("main").dataset.view = view.value;
    }
    filter();
  }
  document.querySelectorAll("#cite .code pre").forEach((pre) => pre.parentElement.replaceWith(code(pre.textContent)));

  return { data, el, load, put, code, fixed, simpleTable, recordPath, DASH };
})();
