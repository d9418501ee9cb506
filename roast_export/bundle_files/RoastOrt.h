// The entry of libroast_ort.a, for Swift and Objective-C.
#pragma once

struct OrtApiBase;
struct OrtSessionOptions;
struct OrtStatus;

struct OrtStatus* RegisterCustomOps(struct OrtSessionOptions* options,
                                    const struct OrtApiBase* api);
