/* Sorting, filtering and showing what the page's data says. Knows the ids of the template. Text becomes text nodes and
   nothing else: no markup is ever made of data. */
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = (id) => document.getElementById(id);
  const SYMBOLS = { gain: "▲", loss: "▼", open: "○", none: "·" };

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
      else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== ""));
    return element;
  }

  /* Long names may break after the signs that join their words. */
  const soft = (text) => text.split(/(?<=[_+/])/).flatMap((part, index) => (index ? [document.createElement("wbr"), part] : [part]));

  const place = (column, row) => (column.index ? column.index[row] : 0);
  const read = (column, row) => column.values[place(column, row)];

  /* Theme */
  const themes = ["auto", "light", "dark"];
  let theme = "auto";
  function setTheme(name) {
    theme = name;
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    at("theme").textContent = `Theme: ${name}`;
    try { localStorage.setItem("aft-report-theme", name); } catch { /* a page in a sandbox keeps nothing */ }
  }
  try { theme = localStorage.getItem("aft-report-theme") || "auto"; } catch { /* as above */ }
  setTheme(themes.includes(theme) ? theme : "auto");
  at("theme").hidden = false;
  at("theme").addEventListener("click", () => setTheme(themes[(themes.indexOf(theme) + 1) % 3]));

  /* A window for what is behind a row or a cell */
  const dialog = at("detail");
  function show(title, ...content) {
    at("detail-title").textContent = title;
    at("detail-body").replaceChildren(...content);
    dialog.showModal();
    dialog.scrollTop = 0;
  }
  at("detail-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

  /* The leaderboard */
  const board = data.board;
  const count = board ? board.count : 0;
  const state = { key: board && board.compared ? "p_holm" : "p", down: false, page: 0, size: 100 };
  let order = [];

  function chip(outcome, words) {
    return make("span", { class: `chip ${outcome}` }, make("span", { "aria-hidden": "true" }, SYMBOLS[outcome]), make("span", {}, words));
  }

  function span(row) {
    const [low, middle, high] = board.spans[row];
    const picture = at("span").content.firstElementChild.cloneNode(true);
    const reach = picture.querySelector(".reach");
    reach.setAttribute("x1", low);
    reach.setAttribute("x2", high);
    picture.querySelector("circle").setAttribute("cx", middle);
    return picture;
  }

  let details = null; // of all rows, read when the first of them is asked for
  function detailsOf(row) {
    details ||= JSON.parse(at("details").textContent);
    const list = make("dl", { class: "facts" });
    for (const [name, column] of Object.entries(details)) {
      const value = read(column, row);
      if (value !== "") list.append(make("dt", {}, name), make("dd", {}, value));
    }
    return list;
  }

  const title = (row) => `${read(board.shown.booster, row)} on ${read(board.shown.task, row)}`;

  /* The change, and its interval below it. */
  function changed(text) {
    const [, change, interval] = text.match(/^(.*?) (\[.*)$/) || [null, text, ""];
    return [make("b", {}, change), " ", make("small", {}, interval)];
  }

  /* What columns tell that narrow screens leave out. */
  function further(row, columns) {
    const told = { model: "", metric: "", strength: "strength ", seed: "seed " };
    const texts = columns.filter((column) => column.key in told).map((column) => [told[column.key], read(board.shown[column.key], row)]);
    return texts.filter(([, text]) => text).map((parts) => `, ${parts.join("")}`).join("");
  }

  function line(row, columns) {
    const outcome = read(board.outcomes, row);
    const cells = columns.map((column) => {
      const text = read(board.shown[column.key], row);
      const names = [`c-${column.key}`, column.number ? "number" : "", column.wide ? "wide" : ""];
      const cell = make("td", { class: names.filter(Boolean).join(" ") });
      if (column.key === "outcome") cell.append(chip(outcome, text));
      else if (column.key === "booster") cell.append(make("button", { class: "link", type: "button" }, ...soft(text)));
      else if (column.key === "change") cell.append(...changed(text));
      else if (column.key === "task") cell.append(...soft(text), make("span", { class: "more" }, further(row, columns)));
      else if (column.key.startsWith("p")) cell.append(make("span", { class: "label" }, `${column.title} = `), text);
      else cell.append(...soft(text));
      return cell;
    });
    cells.splice(columns.findIndex((column) => column.key === "change") + 1, 0, make("td", { class: "c-picture" }, span(row)));
    return make("tr", { class: outcome, "data-row": row }, ...cells);
  }

  function ranks(column) {
    const sorted = column.values.map((value, index) => [value, index]).sort((a, b) => collator.compare(a[0], b[0]));
    const ranked = new Array(sorted.length);
    sorted.forEach(([, index], rank) => { ranked[index] = rank; });
    return Array.from({ length: count }, (_, row) => ranked[place(column, row)]);
  }
  const collator = new Intl.Collator("en", { numeric: true });
  const known = new Map();
  function valuesOf(key) {
    if (!known.has(key)) known.set(key, board.by[key] || ranks(board.shown[key]));
    return known.get(key);
  }

  function sorted(rows) {
    const values = valuesOf(state.key);
    const sign = state.down ? -1 : 1;
    return rows.sort((a, b) => {
      const one = values[a], other = values[b];
      if (one === null || other === null) return (one === null) - (other === null) || a - b; // nothing comes last
      return sign * (one - other) || a - b;
    });
  }

  const choices = ["model", "booster", "task", "metric"];
  function filtered() {
    const words = at("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = choices.filter((name) => at(`by-${name}`).value !== "").map((name) => [board.shown[name], Number(at(`by-${name}`).value)]);
    const outcome = at("by-outcome").value;
    const texts = words.length ? choices.map((name) => [board.shown[name], board.shown[name].values.map((value) => value.toLowerCase())]) : [];
    const fits = [];
    for (let row = 0; row < count; row += 1) {
      const said = read(board.outcomes, row);
      if (outcome === "compared" ? said === "none" : outcome !== "" && said !== outcome) continue;
      if (!wanted.every(([column, value]) => place(column, row) === value)) continue;
      if (words.length) {
        const text = texts.map(([column, values]) => values[place(column, row)]).join(" ");
        if (!words.every((word) => text.includes(word))) continue;
      }
      fits.push(row);
    }
    return fits;
  }

  function draw() {
    const first = state.page * state.size;
    const shown = order.slice(first, first + state.size);
    at("rows").tBodies[0].replaceChildren(...shown.map((row) => line(row, board.columns)));
    const range = order.length ? `${(first + 1).toLocaleString("en")} to ${(first + shown.length).toLocaleString("en")} of ` : "";
    at("status").textContent = `${range}${order.length.toLocaleString("en")} rows`;
    at("previous").disabled = state.page === 0;
    at("next").disabled = first + state.size >= order.length;
    for (const head of at("rows").tHead.querySelectorAll("th[data-key]")) {
      if (head.dataset.key === state.key) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }

  function update() {
    order = sorted(filtered());
    state.page = 0;
    draw();
  }

  function fill(select, column) {
    const used = column.values.map((value, index) => [value, index]).sort((a, b) => collator.compare(a[0], b[0]));
    select.append(...used.map(([value, index]) => make("option", { value: index }, value)));
    if (used.length < 2) select.hidden = true;
  }

  if (board) {
    choices.forEach((name) => fill(at(`by-${name}`), board.shown[name]));
    at("by-outcome").value = board.compared ? "compared" : "";
    for (const name of [...choices, "outcome"]) at(`by-${name}`).addEventListener("change", update);
    at("search").addEventListener("input", update);
    at("clear").addEventListener("click", () => {
      at("search").value = "";
      for (const name of [...choices, "outcome"]) at(`by-${name}`).value = "";
      update();
    });
    at("rows").tHead.addEventListener("click", (event) => {
      const head = event.target.closest("th[data-key]");
      if (!head) return;
      const large = ["n", "change", "baseline", "steered"].includes(head.dataset.key); // of these the largest come first
      state.down = state.key === head.dataset.key ? !state.down : large;
      state.key = head.dataset.key;
      update();
    });
    at("rows").tBodies[0].addEventListener("click", (event) => {
      const found = event.target.closest("tr");
      if (!found || (getSelection() && String(getSelection()))) return; // text that is being selected
      const row = Number(found.dataset.row);
      show(title(row), chip(read(board.outcomes, row), read(board.shown.outcome, row)), detailsOf(row));
    });
    at("previous").addEventListener("click", () => { state.page -= 1; draw(); });
    at("next").addEventListener("click", () => { state.page += 1; draw(); });
    at("board-controls").hidden = at("board-pager").hidden = false;
    update();
  }

  /* Heat maps: the rows behind a cell, and arrows that lead from cell to cell */
  function behind(button) {
    const rows = button.dataset.rows.split(" ").map(Number);
    const differs = (key) => new Set(rows.map((row) => read(board.shown[key], row))).size > 1;
    const keys = ["outcome", "metric", "seed", "strength", "n", "baseline", "steered", "change", "p", "p_holm"];
    const columns = keys.map((key) => board.columns.find((column) => column.key === key))
      .filter((column) => column && (!["seed", "strength"].includes(column.key) || differs(column.key)))
      .map((column) => ({ ...column, wide: false }));
    const heads = columns.map((column) => make("th", { class: column.number ? "number" : null, scope: "col" }, column.title));
    heads.splice(columns.findIndex((column) => column.key === "change") + 1, 0, make("th", {}));
    const table = make("table", { class: "behind" }, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows.map((row) => line(row, columns))));
    const more = rows.map((row) => make("details", {}, make("summary", {}, `All columns: ${[read(board.shown.metric, row), read(board.shown.seed, row)].filter(Boolean).join(", seed ")}`), detailsOf(row)));
    const filter = make("button", { type: "button", onclick: () => {
      at("clear").click();
      at("by-booster").value = place(board.shown.booster, rows[0]);
      at("by-task").value = place(board.shown.task, rows[0]);
      update();
      dialog.close();
      at("leaderboard").scrollIntoView();
    } }, "Show in the leaderboard");
    const cell = button.closest("td");
    const column = button.closest("table").tHead.rows[0].cells[cell.cellIndex];
    show(`Trained on ${cell.parentElement.cells[0].textContent}, evaluated on ${column.querySelector("span").textContent}`, make("div", { class: "scroll" }, table), make("div", {}, filter), ...more);
  }
  for (const map of document.querySelectorAll(".heat")) {
    map.addEventListener("click", (event) => {
      const button = event.target.closest("button[data-rows]");
      if (button) behind(button);
    });
    map.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      const cell = event.target.closest("td");
      if (!step || !cell) return;
      const next = map.rows[cell.parentElement.rowIndex + step[0]]?.cells[cell.cellIndex + step[1]]?.querySelector("button");
      if (next) { event.preventDefault(); next.focus(); }
    });
  }

  /* Documents that were gained and lost */
  const documents = data.documents;
  const PAGE = 20;
  let shownDocuments = PAGE;
  const number = (value) => (typeof value === "number" ? (Math.abs(value) >= 1000 ? value.toFixed(1) : value.toFixed(2)) : "");

  function choiceTable(found) {
    const best = (key) => found.choices.reduce((top, choice, index) => ((choice[key] ?? -Infinity) > (found.choices[top][key] ?? -Infinity) ? index : top), 0);
    const [first, last] = [best("before"), best("after")];
    const lines = found.choices.map((choice, index) => {
      const marks = [choice.right ? "✓ correct" : "", index === first ? "likeliest before" : "", index === last ? "likeliest after" : ""];
      const change = typeof choice.before === "number" && typeof choice.after === "number" ? choice.after - choice.before : null;
      return make("tr", { class: choice.right ? "right" : null },
        make("td", {}, make("div", { class: "text" }, choice.text.trim()), make("small", {}, marks.filter(Boolean).join(", "))),
        make("td", { class: "number" }, number(choice.before)), make("td", { class: "number" }, number(choice.after)),
        make("td", { class: "number" }, change === null ? "" : (change > 0 ? "+" : "") + number(change)));
    });
    const heads = ["choice", "before", "after", "change"].map((text, index) => make("th", { scope: "col", class: index ? "number" : null }, text));
    return make("div", { class: "scroll" }, make("table", {}, make("caption", { class: "muted" }, "Loglikelihood of each choice, without and with the booster"), make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...lines)));
  }

  function documentCard(found, comparison) {
    const outcome = found.gained ? "gain" : "loss";
    const head = make("header", {}, chip(outcome, found.gained ? "gained" : "lost"), make("span", {}, `document ${found.id}`), make("span", {}, `${comparison.metric}: ${number(found.before)} → ${number(found.after)}`));
    const parts = [head];
    if (found.prompt) parts.push(make("div", { class: "text" }, found.prompt));
    if (found.choices) parts.push(choiceTable(found));
    else {
      const beside = [["before", found.texts[0]], ["after", found.texts[1]]];
      if (found.target && found.target !== found.prompt) beside.unshift(["target", found.target]);
      parts.push(make("div", { class: "beside" }, ...beside.map(([name, text]) => make("div", {}, make("small", {}, name), make("div", { class: "text" }, text)))));
    }
    return make("article", { class: `panel document ${outcome}` }, ...parts);
  }

  function drawDocuments() {
    const comparison = documents[Number(at("comparison").value)];
    const side = at("side").value;
    const words = at("document-search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = comparison.documents.filter((found) => {
      if (side !== "" && (side === "gain") !== found.gained) return false;
      if (!words.length) return true;
      const text = [found.prompt, ...(found.choices || []).map((choice) => choice.text), ...(found.texts || []), found.target || ""].join(" ").toLowerCase();
      return words.every((word) => text.includes(word));
    });
    at("documents-list").replaceChildren(...fits.slice(0, shownDocuments).map((found) => documentCard(found, comparison)));
    const omitted = comparison.gained + comparison.lost - comparison.documents.length;
    const left = omitted ? ` (${omitted.toLocaleString("en")} further ones are not in this file)` : "";
    at("documents-status").textContent = `${comparison.gained.toLocaleString("en")} gained, ${comparison.lost.toLocaleString("en")} lost${left}; ${Math.min(shownDocuments, fits.length)} of ${fits.length} shown`;
    at("documents-more").hidden = fits.length <= shownDocuments;
  }

  if (documents && documents.length) {
    at("comparison").append(...documents.map((each, index) => {
      const strength = each.strength === 1 ? "" : ` at strength ${each.strength}`;
      const seed = each.seed === null ? "" : `, seed ${each.seed}`;
      return make("option", { value: index }, `${each.booster}${strength}${seed} on ${each.task}: ${each.gained} gained, ${each.lost} lost`);
    }));
    const fresh = () => { shownDocuments = PAGE; drawDocuments(); };
    for (const id of ["comparison", "side"]) at(id).addEventListener("change", fresh);
    at("document-search").addEventListener("input", fresh);
    at("documents-more").addEventListener("click", () => { shownDocuments += PAGE; drawDocuments(); });
    at("document-controls").hidden = false;
    drawDocuments();
  }

  /* Commands to copy */
  for (const button of document.querySelectorAll(".command button")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const text = button.parentElement.querySelector("pre");
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch { // where the clipboard is closed, the text is at least selected
        getSelection().selectAllChildren(text);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }

  /* On paper there is nothing to open */
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((each) => { each.open = true; });
    if (board) { state.size = 500; state.page = 0; draw(); }
  });
  addEventListener("afterprint", () => {
    closed.forEach((each) => { each.open = false; });
    if (board) { state.size = 100; draw(); }
  });
  document.documentElement.dataset.ready = "true";
})();
