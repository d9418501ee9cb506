// MODEL INPUT.npy... [--ops LIBRARY] [--threads N], and outputs in full precision.
#pragma once

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

struct CommandLine {
  std::string model, ops;
  std::vector<std::string> inputs;
  int threads = 0;
};

inline CommandLine parse(int argc, char** argv, const char* usage) {
  CommandLine line;
  for (int k = 1; k < argc; ++k) {
    const std::string word = argv[k];
    const bool option = word == "--ops" || word == "--threads";
    if ((option && k + 1 == argc) || (!option && word.compare(0, 2, "--") == 0)) {
      throw std::invalid_argument(usage);
    }
    if (word == "--ops") {
      line.ops = argv[++k];
    } else if (word == "--threads") {
      line.threads = std::stoi(argv[++k]);
    } else if (line.model.empty()) {
      line.model = word;
    } else {
      line.inputs.push_back(word);
    }
  }
  if (line.model.empty()) throw std::invalid_argument(usage);
  return line;
}

// "y float32[2,3]", then one value a line, with as many digits as it takes to read the same again.
inline void print_header(const char* name, const char* type, const int64_t* sizes, size_t rank) {
  std::printf("%s %s[", name, type);
  for (size_t d = 0; d < rank; ++d) std::printf(d == 0 ? "%" PRId64 : ",%" PRId64, sizes[d]);
  std::puts("]");
}

inline void print_values(const float* values, size_t n) {
  for (size_t k = 0; k < n; ++k) std::printf("%.9g\n", static_cast<double>(values[k]));
}

inline void print_values(const int64_t* values, size_t n) {
  for (size_t k = 0; k < n; ++k) std::printf("%" PRId64 "\n", values[k]);
}
