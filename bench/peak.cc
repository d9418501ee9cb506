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
