// Runs models in onnxruntime-web, under node.
//
//   node run.mjs ORT_MODULE OPTIONS
//
// ORT_MODULE: ort.node.min.mjs of the package; OPTIONS: JSON for InferenceSession.create. Each line of
// standard input is JSON, ["MODEL", "INPUTS", "OUTPUTS"]: files, the latter two as
// custom_ops/cross/tensor_file.h documents them. Each is answered by a line: "", or what went wrong.
import { readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { decode, encode } from "./tensors.mjs";

const [, , module, options] = process.argv;
console.log = console.error;
const { default: ort } = await import(module);

async function run(model, inputs, outputs) {
  const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(model)), JSON.parse(options));
  try {
    const results = await session.run(decode(new Uint8Array(readFileSync(inputs)), ort));
    writeFileSync(outputs, encode(session.outputNames, results));
  } finally {
    await session.release();
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  let complaint = "";
  try {
    await run(...JSON.parse(line));
  } catch (error) {
    complaint = String(error.message).slice(0, 500);
  }
  process.stdout.write(`${JSON.stringify(complaint)}\n`);
}
