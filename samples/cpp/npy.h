// Reads .npy files (numpy's format, version 1 to 3): what np.save writes for an array of numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Array {
  std::string type;  // as numpy writes it: <f4, <i8, |u1
  std::vector<int64_t> shape;
  std::vector<char> bytes;
};

inline std::string quoted_after(const std::string& header, const std::string& key) {
  const size_t at = header.find("'" + key + "':");
  const size_t begin = at == std::string::npos ? at : header.find('\'', at + key.size() + 3);
  const size_t end = begin == std::string::npos ? begin : header.find('\'', begin + 1);
  if (end == std::string::npos) throw std::runtime_error("the header has no " + key);
  return header.substr(begin + 1, end - begin - 1);
}

inline std::vector<int64_t> shape_of(const std::string& header) {
  const size_t key = header.find("'shape':");
  const size_t begin = key == std::string::npos ? key : header.find('(', key);
  const size_t end = begin == std::string::npos ? begin : header.find(')', begin);
  if (end == std::string::npos) throw std::runtime_error("the header has no shape");
  std::vector<int64_t> shape;
  for (size_t at = begin + 1; at < end;) {
    const size_t comma = std::min(header.find(',', at), end);
    const std::string number = header.substr(at, comma - at);
    if (number.find_first_of("0123456789") != std::string::npos)
      shape.push_back(std::stoll(number));
    at = comma + 1;
  }
  return shape;
}

// The bytes of a shape; throws where they are not those of the file.
inline size_t checked_size(const Array& array, size_t in_file) {
  size_t size = array.type.size() > 2 ? std::stoul(array.type.substr(2)) : 0;
  for (const int64_t d : array.shape) {
    const size_t length = static_cast<size_t>(d);
    if (d < 0 || (length > 0 && size > in_file / length)) size = in_file + 1;
    size = size > in_file ? size : size * length;
  }
  if (size != in_file) throw std::runtime_error("the file is cut off, or has no plain numbers");
  return size;
}

inline Array read_npy(const std::string& path) try {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot be opened");
  const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (all.size() < 12 || all.compare(0, 6, "\x93NUMPY") != 0) {
    throw std::runtime_error("is no .npy file; write one with numpy.save");
  }
  const auto byte = [&](size_t k) {
    return static_cast<size_t>(static_cast<unsigned char>(all[k]));
  };
  const bool wide = byte(6) > 1;
  const size_t begin = wide ? 12 : 10;
  const size_t length = byte(8) | byte(9) << 8 | (wide ? byte(10) << 16 | byte(11) << 24 : 0);
  if (length > all.size() - begin) throw std::runtime_error("the header is cut off");
  const std::string header = all.substr(begin, length);
  if (header.find("'fortran_order': False") == std::string::npos) {
    throw std::runtime_error("is not in row-major order; save numpy.ascontiguousarray of it");
  }
  Array array{quoted_after(header, "descr"), shape_of(header), {}};
  array.bytes.assign(all.begin() + static_cast<std::ptrdiff_t>(begin + length), all.end());
  checked_size(array, array.bytes.size());
  return array;
} catch (const std::exception& error) {
  throw std::runtime_error(path + ": " + error.what());
}
