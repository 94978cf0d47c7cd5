// The page: classifies what is typed, and tests itself. Works without a network once it was loaded.

import * as ort from "onnxruntime-web/wasm";
import { Classifier } from "./classifier.js";

const SHOWN = 5;
const at = (id) => document.getElementById(id);
const base = new URL("./", import.meta.url);
// without isolation from other origins, a page has one thread
ort.env.wasm.wasmPaths = new URL("vendor/", base).href;
ort.env.logLevel = "error";

try {
  const manifest = await (await fetch(new URL("manifest.json", base))).json();
  at("name").textContent = document.title = manifest.name;
  const start = performance.now();
  const classifier = await Classifier.load(base);
  const { labels, max_length: longest } = classifier.model;
  at("about").textContent = `${labels.length} labels, reads up to ${longest} tokens, runs on this device alone.`;
  at("status").textContent = `Ready in ${Math.round(performance.now() - start)} ms.`;
  for (const id of ["text", "go", "test"]) at(id).disabled = false;
  at("form").addEventListener("submit", (event) => {
    event.preventDefault();
    guarded(() => show(classifier));
  });
  at("test").addEventListener("click", () => guarded(() => test(classifier)));
  at("text").focus();
  // what a script or a test asks of the page
  globalThis.decant = classifier;
} catch (error) {
  fail(error);
}
if ("serviceWorker" in navigator && isSecureContext) {
  await navigator.serviceWorker.register(new URL("worker.js", base));
  await navigator.serviceWorker.ready;
  document.documentElement.dataset.offline = "ready";
}

async function show(classifier) {
  const start = performance.now();
  const { probabilities, right } = await classifier.classify(at("text").value);
  const took = performance.now() - start;
  const order = probabilities.map((_, place) => place).sort((a, b) => probabilities[b] - probabilities[a] || a - b);
  at("answers").replaceChildren(...order.slice(0, SHOWN).map((place) => line(classifier.model.labels[place], probabilities[place])));
  const sure = right > 0 ? `answers as sure as this one were right in at least ${percent(right)} of cases` : "not a sure answer";
  at("took").textContent = `${took.toFixed(1)} ms; ${sure}.`;
}

async function test(classifier) {
  const start = performance.now();
  const { rows, failures } = await classifier.selfTest();
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  const passed = failures.length === 0;
  at("tested").className = passed ? "ok" : "bad";
  at("tested").textContent = passed
    ? `✓ All ${rows} golden vectors answered as they should be, in ${seconds} s.`
    : `✗ ${failures.length} of ${rows} golden vectors differ: do not ship this.`;
  at("failures").replaceChildren(...failures.slice(0, 10).map((text) => element("li", text)));
}

function line(label, probability) {
  const item = element("li");
  const bar = element("div");
  bar.className = "bar";
  const fill = element("span");
  fill.style.width = `${100 * probability}%`;
  bar.append(fill);
  item.append(element("span", label), element("span", percent(probability)), bar);
  return item;
}

function element(name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

// a function, since the page is used while the lines above still wait for the worker
function percent(share) {
  return `${(100 * share).toFixed(share < 0.9995 ? 1 : 0)} %`;
}

async function guarded(work) {
  try {
    await work();
  } catch (error) {
    fail(error);
  }
}

function fail(error) {
  at("status").className = "bad";
  at("status").textContent = `✗ ${error?.message ?? error}`;
}
