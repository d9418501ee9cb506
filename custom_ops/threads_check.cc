// A program for ThreadSanitizer: eight threads run the parts of each operation of one plan, and
// every round must give the bits of the first. Not part of any library.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "roast_kernel.h"

namespace {

constexpr int kThreads = 8, kRounds = 10;
constexpr size_t kRows = 30, kIds = 900, kSums = 5;
constexpr int64_t kMemory = 4096;

struct Case {
  const char* name;
  int64_t out, in, transposed, tile_r, tile_c, sign;
};

constexpr Case kCases[] = {
    {"panels, staged gather", 300, 1024, 1, 32, 32, 1},
    {"drawn signs, transposed", 257, 1024, 1, 16, 16, 2},
    {"drawn signs, turned panels", 300, 520, 0, 1, 32, 2},
    {"small tiles", 200, 300, 0, 8, 8, 1},
};

// The flat list of docs/mapping.md section 5.
std::vector<int64_t> fields_of(const Case& c) {
  constexpr int64_t kPrime = 2038074743;
  const int64_t range = (kMemory - c.tile_r * c.tile_c) / 16 + 1;
  std::vector<int64_t> f = {1, 0, c.sign, kMemory, c.out, c.in, c.transposed, c.tile_r, c.tile_c};
  const std::vector<int64_t> hash = {kPrime, 964393935, 1043130727, 0, 5}, none = {1, 0, 0, 0, 0};
  const auto add = [&](const std::vector<int64_t>& more) {
    f.insert(f.end(), more.begin(), more.end());
  };
  add({0, 0});
  add(hash);
  add(none);
  add({range, 16, 0});
  add(c.sign == 1 ? hash : none);
  add({c.sign == 2 ? 7 : 0, c.sign == 2 ? 3 : 0, 2, c.out, c.in});
  return f;
}

template <class Part>
void on_threads(size_t parts, const Part& part) {
  std::atomic<size_t> next{0};
  std::vector<std::thread> threads;
  for (int k = 0; k < kThreads; ++k) {
    threads.emplace_back([&] {
      for (size_t n; (n = next++) < parts;) part(n);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

// Everything that a round computes, one after the other.
std::vector<float> round_of(const Case& c, const roast_plan* plan) {
  const size_t out = static_cast<size_t>(c.out), in = static_cast<size_t>(c.in), numel = out * in;
  std::vector<float> memory(kMemory), x(kRows * in, 0.25f);
  std::vector<float> weight(numel), y(kRows * out), rows(kIds * in), sums(kSums * kMemory);
  for (size_t k = 0; k < memory.size(); ++k) memory[k] = static_cast<float>(k) * 0.01f - 20.0f;
  std::vector<int64_t> ids(kIds);
  for (size_t k = 0; k < kIds; ++k) ids[k] = static_cast<int64_t>(k * 37 % out);
  std::vector<char> scratch(roast_linear_scratch_bytes(plan, ROAST_FLOAT32, kRows) + 64);
  void* aligned = scratch.data();
  size_t space = scratch.size();
  std::align(64, space - 63, aligned, space);

  on_threads(roast_gather_parts(plan), [&](size_t k) {
    roast_gather_part(plan, memory.data(), ROAST_FLOAT32, nullptr, k, weight.data());
  });
  on_threads(kSums, [&](size_t k) {
    roast_scatter_part(plan, weight.data(), k, kSums, sums.data() + k * kMemory);
  });
  on_threads(roast_linear_pack_parts(plan, ROAST_FLOAT32, kRows), [&](size_t k) {
    roast_linear_pack_part(plan, ROAST_FLOAT32, x.data(), kRows, aligned, k);
  });
  on_threads(roast_linear_parts(plan, ROAST_FLOAT32, kRows), [&](size_t k) {
    roast_linear_part(plan, memory.data(), ROAST_FLOAT32, x.data(), kRows, nullptr, aligned, k,
                      y.data());
  });
  on_threads(roast_embedding_parts(c.in, kIds), [&](size_t k) {
    roast_embedding_part(plan, memory.data(), ROAST_FLOAT32, c.in, ids.data(), kIds, k,
                         rows.data());
  });
  for (const auto* more : {&y, &rows, &sums}) {
    weight.insert(weight.end(), more->begin(), more->end());
  }
  return weight;
}

bool same_in_every_round(const Case& c) {
  const std::vector<int64_t> fields = fields_of(c);
  std::vector<int64_t> storage(roast_plan_bytes() / 8 + 1);
  roast_plan* plan = reinterpret_cast<roast_plan*>(storage.data());
  char why[256];
  if (roast_plan_init(plan, fields.data(), fields.size(), 0.5f, why, sizeof why) != 0) {
    printf("%s: %s\n", c.name, why);
    return false;
  }
  std::vector<uint32_t> table(roast_plan_table_bytes(plan) / sizeof(uint32_t) + 1);
  if (roast_plan_table_bytes(plan) > 0) roast_plan_attach_table(plan, table.data());
  const std::vector<float> first = round_of(c, plan);
  for (int round = 1; round < kRounds; ++round) {
    const std::vector<float> again = round_of(c, plan);
    if (memcmp(first.data(), again.data(), first.size() * sizeof(float)) != 0) {
      printf("%s: round %d differs\n", c.name, round);
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  bool good = true;
  // Plans that are made at the same time choose the instruction set at the same time.
  on_threads(kThreads, [&](size_t) {
    std::vector<int64_t> storage(roast_plan_bytes() / 8 + 1);
    const std::vector<int64_t> fields = fields_of(kCases[0]);
    roast_plan_init(reinterpret_cast<roast_plan*>(storage.data()), fields.data(), fields.size(),
                    0.5f, nullptr, 0);
  });
  for (const Case& c : kCases) good = same_in_every_round(c) && good;
  puts(good ? "the same bits in every round" : "FAILED");
  return good ? 0 : 1;
}
