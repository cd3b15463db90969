"use strict";
// The page's data and what is chosen. Arrays come packed: base64 of deflated bytes, unpacked when they are first needed.

const D = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const S = { at: 0, pinned: false, layer: 0, unit: 0, by: "tanh", view: "grid", tab: "predictions" };
const T = {}; // typed arrays of the whole text: ids, top, p, entropy, surprise

// An element with a class and text; children may follow. Text is only ever set as text.
function make(tag, kind, text, ...children) {
  const element = document.createElement(tag);
  if (kind) element.className = kind;
  if (text !== undefined && text !== null) element.textContent = text;
  element.append(...children);
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

async function unpack(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Response(stream).arrayBuffer();
}

async function loadText() {
  T.ids = new Uint32Array(await unpack(D.ids));
  T.top = new Uint32Array(await unpack(D.top));
  T.p = new Float32Array(await unpack(D.p));
  const facts = new Float32Array(await unpack(D.facts));
  T.entropy = facts.subarray(0, D.n);
  T.surprise = facts.subarray(D.n);
}

// What to draw for the character at a position, and for a symbol: [glyph, name, style].
const symbolAt = (t) => D.unknown[t] || D.symbols[T.ids[t]];
const isNewline = (t) => !D.unknown[t] && D.symbols[T.ids[t]][1] === "newline";

const loaded = new Map();
const key = (layer, unit) => `${layer}:${unit}`;

// A cell's traces: tanh (N,) from -1 to 1; c and gates {i, f, g, o} (N,), null where the page had no room for them.
async function cell(layer, unit) {
  const name = key(layer, unit);
  if (loaded.has(name)) return loaded.get(name);
  const found = { tanh: null, c: null, gates: null };
  if (D.colours[name]) found.tanh = Float32Array.from(new Int8Array(await unpack(D.colours[name])), (v) => v / 127);
  if (found.tanh) found.flat = found.tanh.reduce((most, v) => Math.max(most, v), -1) - found.tanh.reduce((least, v) => Math.min(least, v), 1) < 0.2;
  const rest = D.rest[name];
  if (rest) {
    const bytes = new Uint8Array(await unpack(rest.data)), n = D.n;
    found.scaled = Float32Array.from(bytes.subarray(0, n), (v) => v / 127.5 - 1);
    found.c = (t) => rest.low + (bytes[t] / 255) * (rest.high - rest.low);
    const gate = (k) => (t) => bytes[(k + 1) * n + t] / 31;
    found.gates = { i: gate(0), f: gate(1), g: (t) => 2 * gate(2)(t) - 1, o: gate(3) };
    found.h = (t) => found.gates.o(t) * found.tanh[t];
  }
  if (loaded.size > 400) loaded.delete(loaded.keys().next().value);
  loaded.set(name, found);
  return found;
}

// What the text is coloured by: a function of position, from -1 to 1.
function signal(traces, by) {
  if (by === "surprise") return (t) => (T.surprise[t] < 0 ? 0 : Math.min(1, T.surprise[t] / 6));
  if (by === "range" && traces.scaled) return (t) => traces.scaled[t];
  if (by === "h" && traces.h) return traces.h;
  return traces.tanh ? (t) => traces.tanh[t] : () => 0;
}

const number = (value, digits = 3) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
function probability(p) {
  return p >= 1e-4 ? p.toFixed(6) : p.toExponential(2).replace("-", "−");
}
