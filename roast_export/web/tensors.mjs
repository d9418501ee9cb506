// Named tensors as bytes and back: the words of custom_ops/cross/ort_run.c.

const TYPES = {
  1: ["float32", Float32Array],
  2: ["uint8", Uint8Array],
  3: ["int8", Int8Array],
  6: ["int32", Int32Array],
  7: ["int64", BigInt64Array],
  9: ["bool", Uint8Array],
  11: ["float64", Float64Array],
};
const NUMBERS = Object.fromEntries(Object.entries(TYPES).map(([number, [name]]) => [name, BigInt(number)]));

const padded = (bytes) => Math.ceil(bytes / 8) * 8;

// Uint8Array -> {name: ort.Tensor}
export function decode(data, ort) {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  let place = 0;
  const word = () => Number(view.getBigInt64((place += 8) - 8, true));
  const bytes = (n) => data.slice(place, (place += padded(n)) - padded(n) + n);
  const tensors = {};
  for (let count = word(); count > 0; --count) {
    const [nameBytes, kind, rank, size] = [word(), word(), word(), word()];
    const dims = Array.from({ length: rank }, word);
    const name = new TextDecoder().decode(bytes(nameBytes));
    const [type, Values] = TYPES[kind];
    tensors[name] = new ort.Tensor(type, new Values(bytes(size).buffer), dims);
  }
  return tensors;
}

// {name: ort.Tensor} -> Uint8Array, in the order of names
export function encode(names, tensors) {
  const chunks = [];
  const words = (...values) => chunks.push(new Uint8Array(new BigInt64Array(values.map(BigInt)).buffer));
  const bytes = (values) => {
    const block = new Uint8Array(padded(values.length));
    block.set(values);
    chunks.push(block);
  };
  words(names.length);
  for (const name of names) {
    const { type, dims, data } = tensors[name];
    const text = new TextEncoder().encode(name);
    words(text.length, NUMBERS[type], dims.length, data.byteLength, ...dims);
    bytes(text);
    bytes(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  const data = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let place = 0;
  for (const chunk of chunks) {
    data.set(chunk, place);
    place += chunk.length;
  }
  return data;
}
