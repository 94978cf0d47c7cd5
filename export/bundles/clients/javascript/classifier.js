// Classifies texts with a bundle's model on onnxruntime-web, and tests itself with the answers that the bundle brings.
//
//     import { Classifier } from "./classifier.js";
//     const classifier = await Classifier.load(new URL("./", import.meta.url));
//     const { label, confidence } = await classifier.classify("wake me at six");

import * as ort from "onnxruntime-web/wasm";
import { makeTokenizer } from "./tokenizer.js";

export class Classifier {
  /**
   * The model of a bundle.
   * @param base URL of the bundle's folder, with a slash at its end
   * @param read gives the bytes of a file of it; left out: fetched below `base`
   */
  static async load(base, read = (name) => fetchBytes(new URL(name, base))) {
    const readJson = async (name) => JSON.parse(decode(await read(name)));
    const model = await readJson("model.json");
    if (model.kind !== "decant model 1") throw new Error(`model.json: found '${model.kind}', expected 'decant model 1'`);
    const [rules, golden, bytes] = await Promise.all([readJson(model.rules), readJson("golden.json"), read(model.file)]);
    const session = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    return new Classifier(model, makeTokenizer(rules), golden, session);
  }

  constructor(model, tokenizer, golden, session) {
    Object.assign(this, { model, tokenizer, golden, session });
  }

  /** The label of a text, and how sure the model is. */
  async classify(text) {
    return answer(await this.run(this.tokenizer.encode(text)), this.model);
  }

  /** Logits for token ids. */
  async run(ids) {
    const feeds = {};
    for (const { name, dtype } of this.model.inputs) {
      const values = name === "input_ids" ? ids : ids.map(() => 1);
      feeds[name] = tensor(dtype, values);
    }
    const found = await this.session.run(feeds);
    return found[this.model.output].data;
  }

  /** Replays every golden vector; `failures` says in words what differs. */
  async selfTest() {
    const failures = [];
    for (const { outputs, answer: expected } of this.golden.ties) {
      const found = answer(outputs, this.model).index;
      if (found !== expected) failures.push(`of the level outputs ${outputs} it takes ${found}, expected ${expected}`);
    }
    for (const [number, row] of this.golden.rows.entries()) {
      const ids = this.tokenizer.encode(row.text);
      if (ids.join() !== row.ids.join()) {
        failures.push(`row ${number}: token ids ${ids}, expected ${row.ids}`);
        continue;
      }
      const outputs = await this.run(ids);
      const worst = Math.max(...row.outputs.map((value, place) => Math.abs(value - outputs[place])));
      // written so that a NaN fails
      if (!(worst <= this.golden.tolerance))
        failures.push(`row ${number}: outputs ${worst} away, at most ${this.golden.tolerance} allowed`);
      else if (row.sure && answer(outputs, this.model).label !== row.label)
        failures.push(`row ${number}: answers ${answer(outputs, this.model).label}, expected ${row.label}`);
    }
    return { rows: this.golden.rows.length, failures };
  }

  async close() {
    await this.session.release();
  }
}

/** What logits say: the largest, of two that are level the first. */
export function answer(logits, { labels, thresholds }) {
  const index = logits.reduce((best, value, place) => (value > logits[best] ? place : best), 0);
  const weights = Array.from(logits, (value) => Math.exp(value - logits[index]));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  const confidence = 1 / total;
  // of answers as sure as this one, so many were right on texts of the data
  const right = Math.max(0, ...thresholds.filter((one) => confidence >= one.confidence).map((one) => one.right));
  return { index, label: labels[index], confidence, right, probabilities: weights.map((weight) => weight / total) };
}

function tensor(dtype, values) {
  const data = dtype === "int64" ? BigInt64Array.from(values, BigInt) : Int32Array.from(values);
  return new ort.Tensor(dtype, data, [1, values.length]);
}

async function fetchBytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: status ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

const decode = (bytes) => new TextDecoder().decode(bytes);
