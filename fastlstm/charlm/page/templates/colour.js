// Colours: of a cell from negative over nothing to positive, of a probability from none to certain. In the dark, nothing
// is the page's own dark. The safe scale is blue and orange, which every common kind of colour vision tells apart.

const SCALES = {
  article: {
    light: { cell: ["#2f6fed", "#ffffff", "#17a34a"], chance: ["#ffffff", "#f9b4a6", "#d7191c"] },
    dark: { cell: ["#4f8cff", "#171b22", "#2fbf62"], chance: ["#171b22", "#7d2a26", "#ff5a4d"] },
  },
  safe: {
    light: { cell: ["#1f6fb5", "#ffffff", "#d9730d"], chance: ["#ffffff", "#b9a6d9", "#3b1f74"] },
    dark: { cell: ["#56a8ee", "#171b22", "#f09a3e"], chance: ["#171b22", "#54478c", "#cbb8ff"] },
  },
};
const STEPS = 48;
const Colour = { cell: [], chance: [] };

const rgb = (hex) => [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
const linear = (v) => (v <= 10.3 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4);

// A background with the ink that reads best on it: black or white by contrast of luminance.
function paint([r, g, b]) {
  const light = 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  return { back: `rgb(${r},${g},${b})`, ink: (light + 0.05) ** 2 > 0.0525 ? "#101318" : "#f6f8fb" };
}

function ramp(stops) {
  const points = stops.map(rgb);
  return Array.from({ length: 2 * STEPS + 1 }, (_, k) => {
    const x = k / STEPS, low = Math.min(1, Math.floor(x)), part = x - low;
    return paint(points[low].map((v, i) => Math.round(v + part * (points[low + 1][i] - v))));
  });
}

const isDark = () => document.documentElement.dataset.theme === "dark";

function chooseColours() {
  const scale = SCALES[$("scale").value][isDark() ? "dark" : "light"];
  Colour.cell = ramp(scale.cell);
  Colour.chance = ramp(scale.chance);
}

const cellColour = (value) => Colour.cell[Math.round((Math.max(-1, Math.min(1, value)) + 1) * STEPS)];
const chanceColour = (p) => Colour.chance[Math.round(2 * STEPS * Math.max(0, Math.min(1, p)))];

function colourIn(element, { back, ink }) {
  element.style.background = back;
  element.style.color = ink;
}

function drawLegend() {
  const bar = (label, ends, colour, from) => {
    const strip = make("span", "strip");
    for (let k = 0; k <= 24; k++) {
      const step = make("i");
      step.style.background = colour(from + (k / 24) * (1 - from)).back;
      strip.append(step);
    }
    return make("span", "bar", null, make("b", "", label), make("span", "", ends[0]), strip, make("span", "", ends[1]));
  };
  const what = { tanh: "tanh(c)", range: "c", h: "h", surprise: "surprise" }[S.by];
  const first = S.by === "surprise"
    ? bar("surprise", ["0", "6 nats"], chanceColour, 0)
    : bar(`cell ${key(S.layer, S.unit)}, ${what}`, S.by === "range" ? ["least", "most"] : ["−1", "1"], cellColour, -1);
  const parts = S.view === "grid" ? [first, bar("probability of the next character", ["0", "1"], chanceColour, 0)] : [first];
  $("legend").replaceChildren(...parts);
}
