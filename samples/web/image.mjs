// A drawing as the network has learnt digits: 8 x 8, each the share of ink in 4 x 4 of 32 x 32 dots.
const SIDE = 32;

// ImageData -> Float32Array(64) in [0, 1], or null where nothing is drawn.
export function image({ data, width, height }) {
  const ink = (x, y) => data[4 * (y * width + x) + 3] > 127;
  let [left, right, top, bottom] = [width, -1, height, -1];
  for (let y = 0; y < height; ++y) {
    for (let x = 0; x < width; ++x) {
      if (!ink(x, y)) continue;
      [left, right] = [Math.min(left, x), Math.max(right, x)];
      [top, bottom] = [Math.min(top, y), Math.max(bottom, y)];
    }
  }
  if (right < 0) return null;
  // The digit fills the height, and stands in the middle.
  const step = Math.max(bottom - top + 1, right - left + 1) / SIDE;
  const [x0, y0] = [(left + right + 1 - SIDE * step) / 2, (top + bottom + 1 - SIDE * step) / 2];
  const pixels = new Float32Array(64);
  for (let y = 0; y < SIDE; ++y) {
    for (let x = 0; x < SIDE; ++x) {
      const [fromX, fromY] = [Math.floor(x0 + (x + 0.5) * step), Math.floor(y0 + (y + 0.5) * step)];
      const inside = fromX >= 0 && fromX < width && fromY >= 0 && fromY < height;
      if (inside && ink(fromX, fromY)) pixels[8 * (y >> 2) + (x >> 2)] += 1 / 16;
    }
  }
  return pixels;
}
