// What is known of the chosen character: the model's exact probabilities, its surprise, and the chosen cell's gates.

function tile([glyph, name, kind]) {
  const element = make("bdi", `tile ${kind}`, glyph);
  element.title = name;
  return element;
}

function drawPanel() {
  const t = S.at, last = t + 1 >= D.n;
  drawWhere(t);
  const rows = [];
  let rest = 1;
  for (let k = 0; k < D.k; k++) {
    const id = T.top[t * D.k + k], p = T.p[t * D.k + k];
    rest -= p;
    rows.push(nextRow(D.symbols[id], p, !last && !D.unknown[t + 1] && T.ids[t + 1] === id));
  }
  if (D.symbols.length > D.k) rows.push(nextRow(["…", "all others", "more"], Math.max(0, rest), false));
  $("next").replaceChildren(...rows);
  const nats = (value) => (value < 0 ? "not predicted" : `${number(value)} nats · ${number(value / Math.LN2)} bits`);
  list($("facts"), [
    ["entropy", nats(T.entropy[t]), "entropy"],
    ["surprise here", nats(T.surprise[t]), "surprise"],
    ["surprise next", last ? "end of the text" : nats(T.surprise[t + 1]), "surprise-next"],
  ]);
  drawCellValues(t);
  const [glyph, name] = D.symbols[T.top[t * D.k]];
  if (document.activeElement === $("grid")) {
    $("status").textContent = `${symbolAt(t)[1] || symbolAt(t)[0]}; next most likely ${name || glyph}, ${probability(T.p[t * D.k])}`;
  }
}

function drawWhere(t) {
  const around = make("div", "around");
  for (let s = Math.max(0, t - 14); s < Math.min(D.n, t + 8); s++) {
    const part = tile(symbolAt(s));
    if (part.textContent === "␣") part.textContent = "\u00a0";
    if (s === t) part.classList.add("here");
    if (s > t) part.classList.add("later");
    around.append(part);
  }
  const name = make("p", "", `character ${t.toLocaleString("en")} · ${symbolAt(t)[1]}`);
  if (D.unknown[t]) name.textContent += " · the model never saw it";
  $("where").replaceChildren(around, name);
}

function nextRow(symbol, p, came) {
  const bar = make("span", "fill");
  bar.style.width = `${100 * p}%`;
  bar.style.background = chanceColour(Math.max(0.12, p)).back;
  const row = make("li", came ? "came" : "", null, tile(symbol), make("span", "track", null, bar), make("output", "", probability(p)));
  row.dataset.p = p;
  row.title = came ? `${symbol[1]}: this is what came` : symbol[1];
  return row;
}

function list(element, rows) {
  element.replaceChildren(...rows.flatMap(([name, value, id]) => {
    const dd = make("dd", "", value);
    if (id) dd.id = id;
    return [make("dt", "", name), dd];
  }));
}

async function drawCellValues(t) {
  const { layer, unit } = S, traces = await cell(layer, unit);
  if (S.layer !== layer || S.unit !== unit || S.at !== t) return; // something else was chosen meanwhile
  $("cell-name").textContent = `Cell ${key(layer, unit)}`;
  const row = rowOfCell(layer, unit), score = D.found?.score[layer][unit];
  const label = row ? `${D.found.passes[layer][unit] ? "tells" : "closest to"} ${row.label}: ${shownScore(row, score)}` : "";
  $("cell-label").textContent = label + (S.by === "tanh" && traces.flat ? " · tanh(c) hardly moves: colour by c" : "");
  if (!traces.tanh) {
    list($("cell-values"), [["", "left out to keep the page small"]]);
    $("gates").replaceChildren();
    return;
  }
  const values = [["tanh(c)", number(traces.tanh[t], 2), "cell-tanh"]];
  if (traces.c) values.unshift(["c", number(traces.c(t), 2), "cell-c"]), values.push(["h", number(traces.h(t), 2), "cell-h"]);
  list($("cell-values"), values);
  $("gates").replaceChildren(...(traces.gates ? Object.entries(traces.gates).map((g) => gateBar(g, t)) : [make("p", "fine", "gates left out to keep the page small")]));
}

const GATES = { i: "input", f: "forget", g: "candidate", o: "output" };

function gateBar([name, value], t) {
  const v = value(t), fill = make("span", "fill"), signed = name === "g";
  fill.style.left = `${signed ? 50 + 50 * Math.min(0, v) : 0}%`;
  fill.style.width = `${signed ? 50 * Math.abs(v) : 100 * v}%`;
  if (signed) fill.style.background = cellColour(v).back;
  const track = make("span", signed ? "track middle" : "track", null, fill);
  const shut = !signed && (v < 0.1 || v > 0.9);
  const line = make("div", "gate", null, make("span", "", `${name} ${GATES[name]}`), track, make("output", shut ? "full" : "", number(v, 2)));
  line.title = shut ? (v < 0.1 ? "saturated: shut" : "saturated: open") : "";
  return line;
}
