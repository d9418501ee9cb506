// Tensors in a file, as the programs beside this header take and give them. Little-endian words of
// 64 bits: the number of tensors; per tensor bytes of its name, element type (its number in
// onnx.TensorProto), rank, bytes of its data, the dimensions, the name, the data; name and data
// padded to whole words.
#pragma once

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_TENSORS = 64, MOST_DIMS = 32 };

typedef struct {
  int64_t name_bytes, type, rank, bytes;
} TensorHead;

static inline void fail(const char* what, const char* why) {
  fprintf(stderr, "%s: %s\n", what, why);
  exit(1);
}

static inline size_t padded(int64_t bytes) { return ((size_t)bytes + 7) / 8 * 8; }

// Bytes of an element; 0 for types that these files do not hold.
static inline size_t width(int64_t type) {
  switch (type) {
    case 2:
    case 3:
    case 9:
      return 1;
    case 4:
    case 5:
    case 10:
    case 16:
      return 2;
    case 1:
    case 6:
    case 12:
      return 4;
    case 7:
    case 11:
    case 13:
      return 8;
    default:
      return 0;
  }
}

static inline void* read_bytes(FILE* file, int64_t bytes) {
  if (bytes < 0 || bytes > INT32_MAX) fail("inputs", "a size is out of range");
  void* found = calloc(padded(bytes) + 8, 1);
  if (found == NULL || fread(found, 1, padded(bytes), file) != padded(bytes)) {
    fail("inputs", "the file ends early");
  }
  return found;
}

static inline int at_end(FILE* file) {
  const int next = fgetc(file);
  if (next != EOF) ungetc(next, file);
  return next == EOF;
}

static inline int64_t read_count(FILE* file) {
  int64_t count = 0;
  if (fread(&count, 8, 1, file) != 1 || count < 0 || count > MOST_TENSORS) {
    fail("inputs", "the number of tensors is out of range");
  }
  return count;
}

// The next tensor's dimensions, name and data, each of which the caller frees.
static inline TensorHead read_parts(FILE* file, int64_t** dims, char** name, void** data) {
  TensorHead head;
  if (fread(&head, sizeof head, 1, file) != 1) fail("inputs", "the file ends early");
  if (head.rank < 0 || head.rank > MOST_DIMS) fail("inputs", "a rank is out of range");
  *dims = (int64_t*)read_bytes(file, head.rank * 8);
  *name = (char*)read_bytes(file, head.name_bytes);
  *data = read_bytes(file, head.bytes);
  int64_t bytes = (int64_t)width(head.type);
  for (int64_t d = 0; d < head.rank; ++d) bytes *= (*dims)[d];
  if (width(head.type) == 0 || bytes != head.bytes) fail(*name, "does not fill its dimensions");
  return head;
}

static inline void write_parts(FILE* file, const char* name, int64_t type, const int64_t* dims,
                               size_t rank, const void* data, size_t numel) {
  if (width(type) == 0) fail(name, "has elements that this program does not write");
  const int64_t bytes = (int64_t)(numel * width(type));
  const TensorHead head = {(int64_t)strlen(name), type, (int64_t)rank, bytes};
  const char zeros[8] = {0};
  fwrite(&head, sizeof head, 1, file);
  fwrite(dims, 8, rank, file);
  fwrite(name, 1, (size_t)head.name_bytes, file);
  fwrite(zeros, 1, padded(head.name_bytes) - (size_t)head.name_bytes, file);
  fwrite(data, 1, (size_t)bytes, file);
  fwrite(zeros, 1, padded(bytes) - (size_t)bytes, file);
}
