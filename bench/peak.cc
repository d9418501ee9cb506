// What one core can do at best. Compiled for this machine when the benchmark starts.
#include <time.h>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Lanes __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / 4;
constexpr int kChains = 12;  // more than latency times pipes of today's cores

static double now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

static volatile float sink;

extern "C" int roast_bench_lanes() { return kLanes; }

// GFLOP/s of independent fused multiply-adds in registers, best of the slices that fit in
// `seconds`.
extern "C" double roast_bench_fma(double seconds) {
  Lanes a[kChains], b, c;
  for (int i = 0; i < kChains; i++)
    for (int k = 0; k < kLanes; k++) a[i][k] = i;
  for (int k = 0; k < kLanes; k++) b[k] = 0.9999999f, c[k] = 1e-9f;
  double best = 0, end = now() + seconds;
  do {
    const long n = 200000;
    double start = now();
    for (long r = 0; r < n; r++) {
#pragma GCC unroll 12
      for (int i = 0; i < kChains; i++) a[i] = a[i] * b + c;
      asm volatile("");
    }
    double speed = 2e-9 * n * kChains * kLanes / (now() - start);
    if (speed > best) best = speed;
  } while (now() < end);
  float sum = 0;
  for (int i = 0; i < kChains; i++)
    for (int k = 0; k < kLanes; k++) sum += a[i][k];
  sink = sum;
  return best;
}

#if defined(__AVX512F__)
constexpr int kTall = 12;
#else
constexpr int kTall = 6;
#endif
constexpr int kDepth = 256;

// y[kTall rows, 2 registers] += x[kDepth, kTall]^T w[kDepth, 2 registers]: as much as registers
// hold. A call, for the sums to be in registers whatever its caller keeps there.
__attribute__((noinline)) static void multiply(const float* x, const Lanes* w, Lanes* y) {
  Lanes sums[kTall][2];
#pragma GCC unroll 16
  for (int r = 0; r < kTall; r++) sums[r][0] = sums[r][1] = Lanes{};
  for (int k = 0; k < kDepth; k++, x += kTall, w += 2) {
    const Lanes left = w[0], right = w[1];
#pragma GCC unroll 16
    for (int r = 0; r < kTall; r++) {
      const Lanes a = x[r] - Lanes{};
      sums[r][0] += a * left;
      sums[r][1] += a * right;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTall; r++) {
    y[2 * r] += sums[r][0];
    y[2 * r + 1] += sums[r][1];
  }
}

// GFLOP/s of a product whose operands all lie in the first cache level, packed as the multipliers
// want them; best of the slices that fit in `seconds`.
extern "C" double roast_bench_product(double seconds) {
  float x[kDepth * kTall] = {};
  Lanes w[kDepth * 2] = {}, y[kTall * 2] = {};
  double best = 0, end = now() + seconds;
  do {
    const long n = 2000;
    double start = now();
    for (long r = 0; r < n; r++) {
      multiply(x, w, y);
      asm volatile("" ::: "memory");
    }
    double speed = 2e-9 * n * kDepth * kTall * 2 * kLanes / (now() - start);
    if (speed > best) best = speed;
  } while (now() < end);
  sink = y[0][0];
  return best;
}

// GB/s of reading `count` floats again and again, best pass; `data` aligned to 64 bytes.
extern "C" double roast_bench_read(const float* data, long count, double seconds) {
  const Lanes* p = reinterpret_cast<const Lanes*>(data);
  const long steps = count / kLanes / 8 * 8;
  Lanes s[8] = {};
  double best = 0, end = now() + seconds;
  do {
    const long passes = 1 + 4000000 / count;
    double start = now();
    for (long r = 0; r < passes; r++) {
      for (long i = 0; i < steps; i += 8) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; j++) s[j] += p[i + j];
      }
      asm volatile("" ::: "memory");
    }
    double speed = 1e-9 * passes * steps * kBytes / (now() - start);
    if (speed > best) best = speed;
  } while (now() < end);
  float sum = 0;
  for (int j = 0; j < 8; j++)
    for (int k = 0; k < kLanes; k++) sum += s[j][k];
  sink = sum;
  return best;
}
