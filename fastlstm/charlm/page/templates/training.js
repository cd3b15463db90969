// The run that made the model: its loss curves, and the samples it kept, one at a time under a slider.

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw || 1));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= raw) || power;
  const first = Math.ceil(low / step - 1e-9) * step;
  return Array.from({ length: Math.floor((high - first) / step + 1e-9) + 1 }, (_, k) => Number((first + k * step).toPrecision(6)));
}

function drawLoss() {
  const run = D.training;
  if (!run) {
    $("loss").replaceChildren(make("p", "", "This model has no log beside it: visualize the folder of a run to see how it was trained."));
    $("growth-head").hidden = true;
    return;
  }
  const all = [...run.train, ...run.val];
  if (!all.length) return;
  const curves = [["train", run.train], ["val", run.val]].filter(([, points]) => points.length);
  const label = (name, points) => `${name} ${points[points.length - 1][1].toFixed(3)}`;
  const W = 860, H = 300, left = 48, bottom = 34, right = 16 + 8 * Math.max(...curves.map((curve) => label(...curve).length)); // 8: a wide digit
  const most = Math.max(...all.map((p) => p[0])), least = Math.min(...all.map((p) => p[0]));
  const sorted = run.train.map((p) => p[1]).sort((a, b) => b - a); // the first steps from nothing would flatten the rest
  const high = Math.max(...run.val.map((p) => p[1]), sorted[Math.floor(sorted.length / 25)] ?? 0), low = Math.min(...all.map((p) => p[1]));
  const floor = low - 0.08 * (high - low || 1);
  const x = (v) => left + ((v - least) / (most - least || 1)) * (W - left - right);
  const y = (v) => 10 + ((high - Math.min(v, high)) / (high - floor || 1)) * (H - bottom - 10);
  const chart = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Loss in nats a character over iterations" });
  for (const v of ticks(floor, high, 5)) {
    chart.append(svg("path", { class: "guide", d: `M${left} ${y(v)}H${W - right}` }), svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, String(v)));
  }
  for (const v of ticks(least, most, 8)) chart.append(svg("text", { x: x(v), y: H - bottom + 20, "text-anchor": "middle" }, v.toLocaleString("en")));
  for (const [name, points] of curves) {
    chart.append(svg("polyline", { class: name, points: points.map((p) => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(" ") }));
    const end = points[points.length - 1];
    const nudge = name === "val" ? -7 : 13;
    chart.append(svg("text", { class: name, x: x(end[0]) + 6, y: y(end[1]) + nudge }, label(name, points)));
    if (name === "val") for (const p of points) chart.append(svg("circle", { class: name, cx: x(p[0]), cy: y(p[1]), r: 2.5 }, svg("title", {}, `iteration ${p[0]}: ${p[1].toFixed(4)} nats`)));
  }
  $("loss").replaceChildren(chart, make("p", "fine", "nats a character, by iteration"));
}

function drawGrowth() {
  const samples = D.training ? D.training.samples : [];
  if (!samples.length) {
    $("growth").replaceChildren(make("p", "fine", D.training ? "The run kept no samples (train with --sample-every N)." : ""));
    return;
  }
  const slider = make("input"), head = make("p", "big"), facts = make("p", "fine"), text = make("pre");
  Object.assign(slider, { type: "range", min: 0, max: samples.length - 1, value: samples.length - 1, id: "sample" });
  slider.setAttribute("aria-label", "Sample");
  const draw = () => {
    const sample = samples[Number(slider.value)];
    head.textContent = `iteration ${sample.iteration.toLocaleString("en")} · epoch ${sample.epoch.toFixed(2)}`;
    facts.textContent = Object.entries(sample.facts).map(([k, v]) => `${k} ${v}`).join(" · ");
    text.textContent = sample.text;
    slider.setAttribute("aria-valuetext", head.textContent);
  };
  slider.addEventListener("input", draw);
  draw();
  $("growth").replaceChildren(slider, head, facts, text);
}
