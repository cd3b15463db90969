// Tabs, keys, looks, and the start.

const TABS = ["predictions", "cells", "training"];

function openTab(name) {
  S.tab = name;
  for (const tab of TABS) {
    $(tab).hidden = tab !== name;
    $(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
    $(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
  }
  $("toolbar").hidden = name === "training";
  if (name === "predictions") layout();
  if (name === "cells" && !galleryShown) drawGallery(24);
}

function setView(view) {
  const t = S.at;
  S.view = view;
  $("view-grid").setAttribute("aria-pressed", String(view === "grid"));
  $("view-text").setAttribute("aria-pressed", String(view === "text"));
  openTab("predictions");
  drawLegend();
  select(t, true);
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  relook();
}

function relook() {
  chooseColours();
  recolour();
  if (galleryShown) redrawGallery();
}

const KEYS = {
  "[": () => stepCell(-1), "]": () => stepCell(1), l: () => chooseCell(S.layer + 1, S.unit), L: () => chooseCell(S.layer - 1, S.unit),
  n: () => stepFound(1), N: () => stepFound(-1), v: () => setView(S.view === "grid" ? "text" : "grid"),
  1: () => openTab("predictions"), 2: () => openTab("cells"), 3: () => openTab("training"),
  t: () => setTheme(isDark() ? "light" : "dark"), "?": () => $("help").showModal(),
  s: () => { $("scale").value = $("scale").value === "safe" ? "article" : "safe"; relook(); },
};

function onKey(event) {
  const typing = event.target.closest("input, select, dialog");
  if (typing || event.altKey || event.metaKey) return;
  const tab = event.target.closest("[role=tab]");
  if (tab && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
    const next = TABS[(TABS.indexOf(S.tab) + (event.key === "ArrowRight" ? 1 : 2)) % 3];
    openTab(next);
    $(`tab-${next}`).focus();
    return;
  }
  const free = event.target === document.body || event.target === $("grid");
  if (free && S.tab === "predictions" && moveBy(event)) event.preventDefault();
  else if (KEYS[event.key] && !event.ctrlKey) {
    event.preventDefault();
    KEYS[event.key]();
  }
}

function subtitle() {
  const trained = D.trained, parts = [`${D.layers} × ${D.units} LSTM`, `${D.symbols.length} symbols`];
  if (trained.iteration) parts.push(`${trained.iteration.toLocaleString("en")} iterations`);
  parts.push(`${D.n.toLocaleString("en")} ${D.unit}`, `${D.mean.toFixed(3)} nats each`);
  $("subtitle").textContent = parts.join(" · ");
}

async function start() {
  document.documentElement.dataset.theme = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  if (typeof DecompressionStream === "undefined") {
    $("notes").append(make("p", "note", "This browser cannot unpack the page's data; any from 2023 on can."));
    return;
  }
  for (const note of D.notes) $("notes").append(make("p", "note", note));
  subtitle();
  chooseColours();
  await loadText();
  startPicker();
  startGrid();
  for (const tab of TABS) $(`tab-${tab}`).addEventListener("click", () => openTab(tab));
  $("view-grid").addEventListener("click", () => setView("grid"));
  $("view-text").addEventListener("click", () => setView("text"));
  $("by").addEventListener("change", () => { S.by = $("by").value; recolour(); if (galleryShown) redrawGallery(); });
  $("scale").addEventListener("change", relook);
  $("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  $("help-open").addEventListener("click", () => $("help").showModal());
  $("more").addEventListener("click", () => drawGallery(24));
  document.addEventListener("keydown", onKey);
  drawFindings();
  drawSaturation();
  drawLoss();
  drawGrowth();
  openTab("predictions");
  const first = finds()[0];
  await (first ? chooseCell(first.layer, first.unit) : chooseCell(...D.order[0]));
  select(first ? first.example : 0, true);
  document.documentElement.dataset.ready = "yes";
}

start();
