# Read by CMake after project() of ONNX Runtime (CMAKE_PROJECT_INCLUDE).
set_source_files_properties(
  ${CMAKE_CURRENT_SOURCE_DIR}/../onnxruntime/core/providers/cpu/math/element_wise_ops.cc
  PROPERTIES COMPILE_DEFINITIONS "EIGEN_ARRAYBASE_PLUGIN=<${CMAKE_CURRENT_LIST_DIR}/eigen_array.h>")
