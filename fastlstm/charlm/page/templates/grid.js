// The text as a grid. Only the rows in sight are in the document, so that a text of any length scrolls.

const Grid = { rows: [], shown: new Map(), columns: 0, height: 0, width: 0, value: () => 0 };

// Rows of at most `columns` characters; a newline ends its row. Each is [first, last + 1].
function breakRows(columns) {
  const rows = [];
  let first = 0;
  for (let t = 0; t < D.n; t++) {
    if (isNewline(t) || t - first + 1 === columns) {
      rows.push([first, t + 1]);
      first = t + 1;
    }
  }
  if (first < D.n) rows.push([first, D.n]);
  return rows;
}

function rowOf(t) {
  let low = 0, high = Grid.rows.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (Grid.rows[middle][0] <= t) low = middle; else high = middle - 1;
  }
  return low;
}

function layout() {
  const box = $("grid"), style = getComputedStyle(box);
  const line = parseFloat(style.getPropertyValue("--line")), width = parseFloat(style.getPropertyValue("--cell"));
  const columns = Math.max(8, Math.floor((box.clientWidth - 24) / width));
  Grid.height = S.view === "grid" ? line * (D.k + 1) + 10 : line + 2;
  if (columns !== Grid.columns) {
    Grid.columns = columns;
    Grid.rows = breakRows(columns);
  }
  $("rows").style.height = `${Grid.rows.length * Grid.height}px`;
  redraw();
}

// Everything in sight anew.
function redraw() {
  for (const row of Grid.shown.values()) row.remove();
  Grid.shown.clear();
  fill();
}

function fill() {
  const box = $("grid");
  const from = Math.max(0, Math.floor(box.scrollTop / Grid.height) - 2);
  const to = Math.min(Grid.rows.length, Math.ceil((box.scrollTop + box.clientHeight) / Grid.height) + 2);
  for (const [k, row] of Grid.shown) {
    if (k < from || k >= to) {
      row.remove();
      Grid.shown.delete(k);
    }
  }
  for (let k = from; k < to; k++) {
    if (Grid.shown.has(k)) continue;
    const row = drawRow(k);
    Grid.shown.set(k, row);
    $("rows").append(row);
  }
}

function drawRow(k) {
  const row = make("div", S.view === "grid" ? "row" : "row text");
  row.style.transform = `translateY(${k * Grid.height}px)`;
  for (let t = Grid.rows[k][0]; t < Grid.rows[k][1]; t++) row.append(drawColumn(t));
  return row;
}

// One character and, under it, what the model expects next.
function drawColumn(t) {
  const [glyph, , kind] = symbolAt(t);
  const column = make("div", t === S.at ? "col at" : "col");
  column.dataset.t = t;
  const own = make("b", kind + (D.unknown[t] ? " odd" : ""), glyph === "␣" ? "\u00a0" : glyph);
  colourIn(own, S.by === "surprise" ? chanceColour(Grid.value(t)) : cellColour(Grid.value(t)));
  column.append(own);
  if (S.view !== "grid") return column;
  for (let k = 0; k < D.k; k++) {
    const [next, , style] = D.symbols[T.top[t * D.k + k]];
    const guess = make("i", style, next);
    colourIn(guess, chanceColour(T.p[t * D.k + k]));
    column.append(guess);
  }
  return column;
}

const columnAt = (t) => Grid.shown.get(rowOf(t))?.children[t - Grid.rows[rowOf(t)][0]];

function select(t, scroll) {
  columnAt(S.at)?.classList.remove("at");
  S.at = Math.max(0, Math.min(D.n - 1, t));
  if (scroll) {
    const box = $("grid"), top = rowOf(S.at) * Grid.height;
    const above = top - box.scrollTop, below = above + Grid.height - box.clientHeight + 20;
    if (above < -Grid.height || below > Grid.height) box.scrollTop = top - 2 * Grid.height; // far off: with rows before it
    else if (above < 0) box.scrollTop = top;
    else if (below > 0) box.scrollTop += below;
    fill();
  }
  columnAt(S.at)?.classList.add("at");
  drawPanel();
}

// The arrow keys; returns whether the key was one of them.
function moveBy(event) {
  const k = rowOf(S.at), [first, end] = Grid.rows[k], page = Math.max(1, Math.floor($("grid").clientHeight / Grid.height) - 1);
  const inRow = (row) => {
    const [a, b] = Grid.rows[Math.max(0, Math.min(Grid.rows.length - 1, row))];
    return Math.min(b - 1, a + S.at - first);
  };
  const to = {
    ArrowLeft: S.at - 1, ArrowRight: S.at + 1, ArrowUp: inRow(k - 1), ArrowDown: inRow(k + 1),
    PageUp: inRow(k - page), PageDown: inRow(k + page),
    Home: event.ctrlKey ? 0 : first, End: event.ctrlKey ? D.n - 1 : end - 1,
  }[event.key];
  if (to === undefined) return false;
  S.pinned = true;
  select(to, true);
  return true;
}

async function recolour() {
  const traces = await cell(S.layer, S.unit);
  Grid.value = signal(traces, S.by);
  drawLegend();
  redraw();
  drawPanel();
}

function startGrid() {
  const box = $("grid");
  box.addEventListener("scroll", () => requestAnimationFrame(fill), { passive: true });
  const hit = (event) => event.target.closest("[data-t]");
  box.addEventListener("mouseover", (event) => {
    if (!S.pinned && hit(event)) select(Number(hit(event).dataset.t), false);
  });
  box.addEventListener("click", (event) => {
    const column = hit(event);
    S.pinned = Boolean(column) && !(S.pinned && Number(column.dataset.t) === S.at);
    if (column) select(Number(column.dataset.t), false);
  });
  new ResizeObserver(() => S.tab === "predictions" && layout()).observe(box);
}
