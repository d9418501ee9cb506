# ONNX Runtime looks for a package description only, which Debian does not have: CMake's own module.
include(FindProtobuf)
