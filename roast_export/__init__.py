"""Deploy hash-compressed neural networks: one small array and the hash seeds, proved equal to PyTorch."""

from importlib.metadata import version

from roast_export.compress import compress, scale_gradients
from roast_export.modules import (
    RoastConv1d,
    RoastConv2d,
    RoastEmbedding,
    RoastEmbeddingBag,
    RoastLinear,
    VirtualWeight,
    make_virtual,
)

# __version__ = version("roast-export")
