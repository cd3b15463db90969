// Choosing a cell: the picker, the table of what was found, the gallery, and how often gates are saturated.

let galleryShown = 0;

const rowOfCell = (layer, unit) => (D.found && D.found.label[layer][unit] >= 0 ? D.found.rows[D.found.label[layer][unit]] : null);

// An effect from 0 to 1 as the score people know.
function shownScore(row, effect) {
  return row.measure === "AUC" ? `AUC ${number((1 + effect) / 2)}` : `ρ ${number(effect)}`;
}

const finds = () => (D.found ? D.found.rows.filter((row) => row.status === "found") : []);

function chooseCell(layer, unit) {
  S.layer = (layer + D.layers) % D.layers;
  S.unit = (unit + D.units) % D.units;
  $("layer").value = S.layer;
  $("unit").value = S.unit;
  const chosen = finds().findIndex((row) => row.layer === S.layer && row.unit === S.unit);
  $("found").value = chosen < 0 ? "" : String(chosen);
  for (const card of document.querySelectorAll("[data-cell]")) {
    card.classList.toggle("chosen", card.dataset.cell === key(S.layer, S.unit));
  }
  return recolour();
}

function stepCell(by) {
  const flat = S.layer * D.units + S.unit + by, all = D.layers * D.units;
  return chooseCell(Math.floor(((flat + all) % all) / D.units), ((flat + all) % all) % D.units);
}

function stepFound(by) {
  const rows = finds();
  if (!rows.length) return;
  const now = $("found").value === "" ? (by > 0 ? -1 : 0) : Number($("found").value);
  const row = rows[(now + by + rows.length) % rows.length];
  chooseCell(row.layer, row.unit);
}

function startPicker() {
  for (let k = 0; k < D.layers; k++) $("layer").append(new Option(k, k));
  $("unit").max = D.units - 1;
  $("layer").addEventListener("change", () => chooseCell(Number($("layer").value), S.unit));
  $("unit").addEventListener("change", () => {
    const unit = Math.max(0, Math.min(D.units - 1, Math.floor(Number($("unit").value)) || 0));
    chooseCell(S.layer, unit);
  });
  $("unit-back").addEventListener("click", () => stepCell(-1));
  $("unit-next").addEventListener("click", () => stepCell(1));
  $("found").append(new Option(finds().length ? "choose…" : "none", ""));
  finds().forEach((row, k) => $("found").append(new Option(`${row.label} — ${key(row.layer, row.unit)}`, k)));
  $("found").addEventListener("change", () => {
    const row = finds()[Number($("found").value)];
    if ($("found").value !== "") chooseCell(row.layer, row.unit);
  });
}

const WORDS = { found: "found", near: "nearly", none: "no cell", echo: "echo", rare: "too rare" };

function drawFindings() {
  const found = D.found;
  if (!found) {
    $("share").replaceChildren(make("p", "", "This text is too short to find cells on."));
    return;
  }
  const cells = D.layers * D.units, share = ((100 * found.passing) / cells).toFixed(1);
  const about = `AUC ≥ ${found.rule[0]} or rank correlation ≥ ${found.rule[1]} on the held-out half of ${found.characters.toLocaleString("en")} characters, above the control`;
  $("share").replaceChildren(
    make("p", "big", null, make("strong", "", `${found.passing} of ${cells.toLocaleString("en")} cells`), ` keep track of something we can name (${share} %)`),
    make("p", "fine", about),
  );
  const head = ["label", "share", "", "cell", "score, held out", "95 %", "fit", "control", "last two", "cells", "clamped: label", "others"];
  const body = make("tbody");
  for (const row of found.rows) body.append(findingRow(row));
  $("findings").replaceChildren(make("thead", "", null, make("tr", "", null, ...head.map((h) => make("th", "", h)))), body);
  $("findings-note").textContent =
    "95 %: interval of the held-out score, by block bootstrap; nearly: it reaches what is needed. Control: best score of any cell with the label shifted around the text, in 19 of 20 shifts. Last two: what the last two " +
    "characters tell; a cell no better is an echo. Clamped: rise of the loss, in nats a character, with the cell held still.";
}

function findingRow(row) {
  const has = row.layer !== null, digits = (v) => (v === null ? "–" : number(v));
  const name = make("button", "link", has ? `${row.sign < 0 ? "−" : ""}${row.state} ${key(row.layer, row.unit)}` : "–");
  name.disabled = !has;
  name.addEventListener("click", () => { show(row); });
  const score = make("td", "score", has ? `${row.measure === "AUC" ? "AUC" : "ρ"} ${digits(row.held_out)}` : "–");
  const rises = row.clamp ? [row.clamp.label_nats, row.clamp.other_nats].map((v) => (v === null ? "–" : (v < 0 ? "" : "+") + number(v))) : ["", ""];
  const span = row.low === null ? "–" : `${row.low.toFixed(2)}–${row.high.toFixed(2)}`;
  const cells = [row.fit, row.control, row.last_two].map((v) => make("td", "", digits(v)));
  return make("tr", row.status, null,
    make("td", "", row.label), make("td", "", `${(100 * row.share).toFixed(1)} %`), make("td", "word", WORDS[row.status]),
    make("td", "", null, name), score, make("td", "", span), ...cells, make("td", "", row.passing || "–"), ...rises.map((v) => make("td", "", v)));
}

// The text where the label may be seen, coloured by the row's cell.
function show(row) {
  openTab("predictions");
  S.pinned = true;
  chooseCell(row.layer, row.unit).then(() => select(row.example, true));
}

function drawGallery(more) {
  galleryShown = Math.min(D.order.length, galleryShown + more);
  const gallery = $("gallery");
  while (gallery.children.length < galleryShown) gallery.append(card(...D.order[gallery.children.length]));
  $("more").hidden = galleryShown >= D.order.length;
}

function card(layer, unit) {
  const row = rowOfCell(layer, unit), text = make("span", "sample");
  const head = make("span", "head", null, make("strong", "", key(layer, unit)),
    make("span", "", row ? row.label : "nothing we can name"), make("span", "score", row ? shownScore(row, D.found.score[layer][unit]) : ""));
  const button = make("button", "card", null, head, text);
  button.dataset.cell = key(layer, unit);
  if (D.found?.passes[layer][unit]) button.classList.add("found");
  const from = row ? row.example : 0;
  button.addEventListener("click", () => show({ layer, unit, example: from }));
  fillCard(text, layer, unit, from);
  return button;
}

async function fillCard(text, layer, unit, from) {
  const value = signal(await cell(layer, unit), S.by === "surprise" ? "tanh" : S.by);
  text.replaceChildren();
  let line = 0;
  for (let t = from; t < Math.min(D.n, from + 200) && line < 5; t++) {
    const [glyph, , kind] = symbolAt(t);
    const part = make("b", kind, glyph === "␣" ? "\u00a0" : glyph);
    colourIn(part, cellColour(value(t)));
    text.append(part);
    if (isNewline(t)) line += text.append(document.createElement("br")) || 1;
  }
}

function redrawGallery() {
  const shown = galleryShown;
  galleryShown = 0;
  $("gallery").replaceChildren();
  drawGallery(shown || 24);
}

function drawSaturation() {
  if (!D.found) return;
  const size = 190, edge = 26, charts = [];
  for (let layer = 0; layer < D.layers; layer++) {
    ["input", "forget", "output"].forEach((name, g) => {
      const [shut, open] = D.found.saturation[layer].map((side) => side[g]);
      const at = (v) => edge + v * (size - edge - 8), chart = svg("svg", { viewBox: `0 0 ${size} ${size}`, role: "img" });
      chart.setAttribute("aria-label", `${name} gate of layer ${layer}: share of time shut and open, a dot a cell`);
      chart.append(svg("path", { class: "axis", d: `M${edge} 22V${size - edge}H${size - 8}` }), svg("path", { class: "guide", d: `M${edge} 22L${size - 8} ${size - edge}` }));
      shut.forEach((x, unit) => {
        const dot = svg("circle", { cx: at(x), cy: size - edge - open[unit] * (size - edge - 22), r: 3, "data-cell": key(layer, unit) });
        dot.append(svg("title", {}, `${key(layer, unit)}: shut ${(100 * x).toFixed(0)} %, open ${(100 * open[unit]).toFixed(0)} %`));
        if (D.found.passes[layer][unit]) dot.classList.add("found");
        chart.append(dot);
      });
      chart.append(svg("text", { x: size - 8, y: size - 8, "text-anchor": "end" }, "shut →"), svg("text", { x: 4, y: 12 }, "open ↑"));
      charts.push(make("figure", "", null, make("figcaption", "", `layer ${layer}, ${name} gate`), chart));
    });
  }
  $("saturation").replaceChildren(...charts);
  $("saturation").addEventListener("click", (event) => {
    const dot = event.target.closest("[data-cell]");
    if (dot) chooseCell(...dot.dataset.cell.split(":").map(Number));
  });
}
