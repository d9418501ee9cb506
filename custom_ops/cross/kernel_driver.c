// Runs cases through the C ABI of a built library, on the machine or in an emulator of it.
//
//   kernel_driver LIBRARY CASES RESULTS
//
// Both files are little-endian words of 64 bits; byte strings are padded to whole words.
// CASES: per case 9 words: operation (0 gather, 1 rows, 2 linear), instruction set, 1 for a table,
// element type, number of fields, n (ids, rows of x), bytes of memory, of input, of bias; the scale
// as a double; the output's length; then fields, memory, input (ids or x), bias.
// RESULTS: the available instruction sets; per case a status (0 is good) and the output.
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../roast_kernel.h"

enum { GATHER, ROWS, LINEAR };

typedef struct {
  int64_t operation, isa, table, type, n_fields, n, memory_bytes, input_bytes, bias_bytes;
  double scale;
  int64_t numel;
} Head;

typedef struct {
  const int64_t* fields;
  const void *memory, *input, *bias;
  float* out;
} Data;

// What every part of a case is aligned to: more than any instruction needs.
enum { LINE = 64 };

static void* library;

static void* symbol(const char* name) {
  void* found = dlsym(library, name);
  if (found != NULL) return found;
  fprintf(stderr, "%s\n", dlerror());
  exit(2);
}

// The function of that name, with the type that roast_kernel.h gives it.
#define ROAST(name) ((__typeof__(&name))symbol(#name))

static void* block(size_t bytes) {
  void* found = NULL;
  if (posix_memalign(&found, LINE, bytes + LINE) == 0) return found;
  fprintf(stderr, "out of memory\n");
  exit(2);
}

static size_t padded(int64_t bytes) { return ((size_t)bytes + 7) / 8 * 8; }

static const void* part_of(FILE* cases, int64_t bytes) {
  if (bytes == 0) return NULL;
  void* found = block(padded(bytes));
  if (fread(found, 1, padded(bytes), cases) == padded(bytes)) return found;
  fprintf(stderr, "the cases end early\n");
  exit(2);
}

static void gather(const Head* h, const Data* d, const roast_plan* plan) {
  for (size_t part = ROAST(roast_gather_parts)(plan); part-- > 0;) {
    ROAST(roast_gather_part)(plan, d->memory, (int)h->type, NULL, part, d->out);
  }
}

static int64_t rows(const Head* h, const Data* d, const roast_plan* plan) {
  const size_t n = (size_t)h->n;
  const int64_t dim = h->numel / h->n;
  if (ROAST(roast_embedding_bad_id)(plan, dim, d->input, n) < n) return 1;
  for (size_t part = ROAST(roast_embedding_parts)(dim, n); part-- > 0;) {
    ROAST(roast_embedding_part)(plan, d->memory, (int)h->type, dim, d->input, n, part, d->out);
  }
  return 0;
}

static void linear(const Head* h, const Data* d, const roast_plan* plan) {
  const int type = (int)h->type;
  const size_t n = (size_t)h->n;
  void* scratch = block(ROAST(roast_linear_scratch_bytes)(plan, type, n));
  for (size_t part = ROAST(roast_linear_pack_parts)(plan, type, n); part-- > 0;) {
    ROAST(roast_linear_pack_part)(plan, type, d->input, n, scratch, part);
  }
  for (size_t part = ROAST(roast_linear_parts)(plan, type, n); part-- > 0;) {
    ROAST(roast_linear_part)
    (plan, d->memory, type, d->input, n, d->bias, scratch, part, d->out);
  }
  free(scratch);
}

static int64_t run(const Head* h, const Data* d) {
  char why[512] = "";
  roast_plan* plan = block(ROAST(roast_plan_bytes)());
  int64_t status = ROAST(roast_force_isa)((int)h->isa);
  const size_t n_fields = (size_t)h->n_fields;
  if (status == 0) {
    const float scale = (float)h->scale;
    status = ROAST(roast_plan_init)(plan, d->fields, n_fields, scale, why, sizeof why);
  }
  void* table = NULL;
  if (status == 0 && h->table != 0 && ROAST(roast_plan_table_bytes)(plan) > 0) {
    table = block(ROAST(roast_plan_table_bytes)(plan));
    ROAST(roast_plan_attach_table)(plan, table);
  }
  if (status == 0 && h->operation == GATHER) gather(h, d, plan);
  if (status == 0 && h->operation == ROWS) status = rows(h, d, plan);
  if (status == 0 && h->operation == LINEAR) linear(h, d, plan);
  if (why[0] != 0) fprintf(stderr, "%s\n", why);
  free(table);
  free(plan);
  return status;
}

static void run_case(const Head* h, FILE* cases, FILE* results) {
  const size_t bytes = (size_t)h->numel * sizeof(float);
  Data d;
  d.fields = part_of(cases, h->n_fields * 8);
  d.memory = part_of(cases, h->memory_bytes);
  d.input = part_of(cases, h->input_bytes);
  d.bias = part_of(cases, h->bias_bytes);
  d.out = block(padded((int64_t)bytes));
  memset(d.out, 0xff, padded((int64_t)bytes));  // NaN: what is not written shows
  const int64_t status = run(h, &d);
  fwrite(&status, sizeof status, 1, results);
  fwrite(d.out, 1, padded((int64_t)bytes), results);
  free((void*)d.fields);
  free((void*)d.memory);
  free((void*)d.input);
  free((void*)d.bias);
  free(d.out);
}

int main(int argc, char** argv) {
  FILE* cases = argc == 4 ? fopen(argv[2], "rb") : NULL;
  FILE* results = cases != NULL ? fopen(argv[3], "wb") : NULL;
  if (results == NULL) {
    fprintf(stderr, "usage: kernel_driver LIBRARY CASES RESULTS\n");
    return 2;
  }
  library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  const int64_t isas = ROAST(roast_available_isas)();
  fwrite(&isas, sizeof isas, 1, results);
  Head head;
  while (fread(&head, sizeof head, 1, cases) == 1) run_case(&head, cases, results);
  fclose(cases);
  return fclose(results) == 0 ? 0 : 2;
}
