// For ort_op.cc: error messages, and attributes as the flat list of mapping.md section 5.
#pragma once

#include "ort_abi.h"
#include "roast_mapping.h"
#include "roast_text.h"

namespace roast_ort {

using ort_abi::Api;
using roast::Text;

// Releases a status that is answered otherwise. True if there was none.
inline bool succeeded(const Api* api, OrtStatus* status) {
  if (status != nullptr) api->ReleaseStatus(status);
  return status == nullptr;
}

constexpr size_t kMessage = 512;

// The error status of a node. RoastGather 'fc1.weight': what is wrong
class Message {
 public:
  Message(const Api* api, const char* op, const char* node) : text(buffer_, kMessage), api_(api) {
    text << op;
    if (node[0] != 0) text << " '" << node << "'";
    text << ": ";
  }
  OrtStatus* status() const { return api_->CreateStatus(ort_abi::kInvalidArgument, buffer_); }

  Text text;

 private:
  const Api* api_;
  char buffer_[kMessage];
};

class Attributes {
 public:
  Attributes(const Api* api, const OrtKernelInfo* info, Text& why)
      : api_(api), info_(info), why_(why) {}

  bool integer(const char* name, int64_t* value) const {
    if (succeeded(api_, api_->KernelInfoGetAttribute_int64(info_, name, value))) return true;
    return fail(name, "an int");
  }

  bool real(const char* name, float* value) const {
    if (succeeded(api_, api_->KernelInfoGetAttribute_float(info_, name, value))) return true;
    return fail(name, "a float");
  }

  // From `least` to `most` integers.
  bool integers(const char* name, int64_t* values, int64_t least, int64_t most, int64_t* n) const {
    size_t size = 0;
    if (!succeeded(api_, api_->KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size))) {
      return fail(name, "a list of ints");
    }
    *n = size > 0x7fffffff ? 0x7fffffff : static_cast<int64_t>(size);
    if (*n < least || *n > most) {
      why_ << "attribute " << name << " has " << *n << " ints, it must have " << least;
      if (least != most) why_ << " to " << most;
      return false;
    }
    if (succeeded(api_, api_->KernelInfoGetAttributeArray_int64(info_, name, values, &size))) {
      return true;
    }
    return fail(name, "a list of ints");
  }

  bool integers(const char* name, int64_t* values, int64_t n) const {
    int64_t size = 0;
    return integers(name, values, n, n, &size);
  }

 private:
  bool fail(const char* name, const char* type) const {
    why_ << "attribute " << name << " is missing or is not " << type;
    return false;
  }

  const Api* api_;
  const OrtKernelInfo* info_;
  Text& why_;
};

// perm names the view: of the matrix, or of its transpose (docs/operators.md).
inline bool read_perm(const Attributes& attributes, int64_t* transposed, Text& why) {
  int64_t perm[4];
  if (!attributes.integers("perm", perm, 4)) return false;
  const bool plain = perm[0] == 0 && perm[1] == 2 && perm[2] == 1 && perm[3] == 3;
  *transposed = perm[0] == 1 && perm[1] == 3 && perm[2] == 0 && perm[3] == 2;
  if (plain || *transposed == 1) return true;
  why << "attribute perm must be 0 2 1 3 or 1 3 0 2";
  return false;
}

// Fills fields[kHeaderLength + kMaxDims]. `drawn` reads the attributes that RoastGatherDrawn has
// in addition; the other operators have hashed maps and no signs or tile signs.
inline bool read_fields(const Attributes& attributes, bool drawn, int64_t* fields, int64_t* n_dims,
                        float* scale, Text& why) {
  int64_t view[2], unit = 0;
  fields[0] = roast::kVersion;
  if (!attributes.integers("shape", fields + roast::kHeaderLength, 1, roast::kMaxDims, n_dims) ||
      !attributes.integers("view", view, 2) || !read_perm(attributes, fields + 6, why) ||
      !attributes.integers("tile", fields + 7, 2) ||
      !attributes.integers("origin", fields + 9, 2) ||
      !attributes.integers("hash1", fields + 11, 5) ||
      !attributes.integers("hash2", fields + 16, 5) ||
      !attributes.integers("sign_hash", fields + 24, 5) ||
      !attributes.integer("range", fields + 21) || !attributes.integer("align", fields + 22) ||
      !attributes.integer("n_memory", fields + 3) || !attributes.integer("unit", &unit) ||
      !attributes.real("scale", scale)) {
    return false;
  }
  fields[4] = view[fields[6]];
  fields[5] = view[1 - fields[6]];
  fields[31] = *n_dims;
  if (drawn) {
    return attributes.integer("element", fields + 1) && attributes.integer("sign", fields + 2) &&
           attributes.integer("seed", fields + 23) &&
           attributes.integer("sign_seed", fields + 29) &&
           attributes.integer("sign_skip", fields + 30);
  }
  fields[1] = roast::kHashed;
  fields[2] = roast::unused(roast::read_hash(fields + 24)) ? roast::kNoSign : roast::kTileSign;
  fields[23] = fields[29] = fields[30] = 0;
  return true;
}

}  // namespace roast_ort
