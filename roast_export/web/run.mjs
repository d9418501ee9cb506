// Runs a model once in onnxruntime-web, under node.
//
//   node run.mjs ORT_MODULE MODEL OPTIONS INPUTS OUTPUTS
//
// ORT_MODULE: ort.node.min.mjs of the package; OPTIONS: JSON for InferenceSession.create. INPUTS and
// OUTPUTS are the files that custom_ops/cross/ort_run.c documents.
import { readFileSync, writeFileSync } from "node:fs";
import { decode, encode } from "./tensors.mjs";

const [, , module, model, options, inputs, outputs] = process.argv;
const { default: ort } = await import(module);
try {
  const session = await ort.InferenceSession.create(new Uint8Array(readFileSync(model)), JSON.parse(options));
  const results = await session.run(decode(new Uint8Array(readFileSync(inputs)), ort));
  writeFileSync(outputs, encode(session.outputNames, results));
} catch (error) {
  // Without this, node prints the whole module, which is one line of a megabyte.
  console.error(error.message);
  process.exit(1);
}
