// The part of ONNX Runtime's C API that a host program uses, under its own names, for builds
// without onnxruntime_c_api.h. The table only ever grows at the end. `to_N` ends the gap before
// slot N.
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef struct OrtAllocator OrtAllocator;
typedef struct OrtEnv OrtEnv;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtStatus OrtStatus;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtValue OrtValue;

typedef int ONNXTensorElementDataType;
enum { ORT_LOGGING_LEVEL_ERROR = 3, OrtArenaAllocator = 1, OrtMemTypeDefault = 0 };

typedef void (*OrtSlot)(void);

typedef struct OrtApi {
  OrtSlot to_2[2];
  const char* (*GetErrorMessage)(const OrtStatus*);
  OrtStatus* (*CreateEnv)(int, const char*, OrtEnv**);
  OrtSlot to_7[3];
  OrtStatus* (*CreateSession)(const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**);
  OrtSlot to_9[1];
  OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, const char* const*, const OrtValue* const*,
                    size_t, const char* const*, size_t, OrtValue**);
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**);
  OrtSlot to_31[20];
  OrtStatus* (*SessionGetOutputCount)(const OrtSession*, size_t*);
  OrtSlot to_37[5];
  OrtStatus* (*SessionGetOutputName)(const OrtSession*, size_t, OrtAllocator*, char**);
  OrtSlot to_49[11];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void*, size_t, const int64_t*,
                                               size_t, ONNXTensorElementDataType, OrtValue**);
  OrtSlot to_51[1];
  OrtStatus* (*GetTensorMutableData)(OrtValue*, void**);
  OrtSlot to_60[8];
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo*, ONNXTensorElementDataType*);
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo*, size_t*);
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo*, int64_t*, size_t);
  OrtSlot to_64[1];
  OrtStatus* (*GetTensorShapeElementCount)(const OrtTensorTypeAndShapeInfo*, size_t*);
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtTensorTypeAndShapeInfo**);
  OrtSlot to_69[3];
  OrtStatus* (*CreateCpuMemoryInfo)(int, int, OrtMemoryInfo**);
  OrtSlot to_78[8];
  OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator**);
  OrtSlot to_130[51];
  OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions*, const char*, const char*);
  OrtSlot to_228[97];
  OrtStatus* (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions*, const char*);
} OrtApi;

typedef struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)(void);
} OrtApiBase;
