// Loads the model with the settings that roast-export wrote beside it, and runs it on what is drawn.
import * as ort from "./ort/ort.wasm.bundle.min.mjs";
import { image } from "./image.mjs";

// More threads need a page that is served with cross-origin isolation.
ort.env.wasm.numThreads = 1;

const element = (id) => document.getElementById(id);
const pad = element("pad").getContext("2d", { willReadFrequently: true });
const kib = (bytes) => `${Math.round(bytes / 1024)} KiB`;

async function load() {
  const settings = await (await fetch("digits.json")).json();
  const model = new Uint8Array(await (await fetch(settings.model)).arrayBuffer());
  const start = performance.now();
  const session = await ort.InferenceSession.create(model, settings.options);
  element("load").textContent = `${(performance.now() - start).toFixed(0)} ms`;
  element("size").textContent = kib(model.length);
  element("dense").textContent = kib(settings.dense_bytes);
  return session;
}

function show(pixels, scores) {
  const highest = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - highest));
  const sum = powers.reduce((a, b) => a + b);
  element("answer").textContent = scores.indexOf(highest);
  element("bars").innerHTML = powers
    .map((power, digit) => [digit, (100 * power) / sum])
    .map(([digit, p]) => `<span>${digit}</span><div class="bar"><i style="width:${p}%"></i></div><span>${p.toFixed(1)} %</span>`)
    .join("");
  const seen = element("seen").getContext("2d");
  pixels.forEach((value, k) => {
    seen.fillStyle = `rgb(22 32 44 / ${value})`;
    seen.clearRect((k % 8) * 12, Math.floor(k / 8) * 12, 12, 12);
    seen.fillRect((k % 8) * 12, Math.floor(k / 8) * 12, 12, 12);
  });
}

async function recognise() {
  const session = await loading;
  const pixels = image(pad.getImageData(0, 0, 300, 300));
  if (pixels === null) return;
  const start = performance.now();
  const feeds = { [session.inputNames[0]]: new ort.Tensor("float32", pixels, [1, 64]) };
  const results = await session.run(feeds);
  element("run").textContent = `${(performance.now() - start).toFixed(1)} ms`;
  show(pixels, Array.from(results[session.outputNames[0]].data));
}

function clear() {
  pad.clearRect(0, 0, 300, 300);
  element("seen").getContext("2d").clearRect(0, 0, 96, 96);
  element("answer").textContent = element("bars").textContent = "";
}

pad.lineWidth = 26;
pad.lineCap = pad.lineJoin = "round";
pad.strokeStyle = "#16202c";
pad.canvas.addEventListener("pointerdown", (event) => {
  pad.canvas.setPointerCapture(event.pointerId);
  pad.beginPath();
  pad.moveTo(event.offsetX, event.offsetY);
});
pad.canvas.addEventListener("pointermove", (event) => {
  if (event.buttons === 0) return;
  pad.lineTo(event.offsetX, event.offsetY);
  pad.stroke();
});
pad.canvas.addEventListener("pointerup", recognise);
element("clear").addEventListener("click", clear);

const loading = load();
loading.catch((error) => (element("load").textContent = error.message));
