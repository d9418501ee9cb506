"""What every child process finds imported already: torch, its exporters and the package, and no model's code.

It saves each of a few hundred processes some seconds.
"""

import onnxruntime  # noqa: F401
import onnxscript.function_libs.torch_lib.ops  # noqa: F401
import torch._dynamo
import torch._functorch.aot_autograd
import torch._inductor.decomposition
import torch.fx.experimental.symbolic_shapes
import torch.onnx._internal.exporter._core  # noqa: F401

import roast_export.cli  # noqa: F401
