"""Deploy hash-compressed neural networks: one small array and the hash seeds, proved equal to PyTorch."""

from importlib.metadata import version as _version

from roast_export.compress import compress, scale_gradients
from roast_export.errors import (
    ExportError,
    InputError,
    LoadError,
    MappingError,
    RoastError,
    VerificationError,
)
from roast_export.export import export
from roast_export.importers import convert
from roast_export.libraries import ort_library_path, torch_library_path
from roast_export.load import load
from roast_export.mapping import Mapping
from roast_export.modules import (
    RoastConv1d,
    RoastConv2d,
    RoastEmbedding,
    RoastEmbeddingBag,
    RoastLinear,
    VirtualWeight,
    make_virtual,
)
from roast_export.report import Report
from roast_export.runtimes import create_session
from roast_export.save import save
from roast_export.summary import summary
from roast_export.verify import verify

__version__ = _version("roast-export")

__all__ = [
    "ExportError",
    "InputError",
    "LoadError",
    "Mapping",
    "MappingError",
    "Report",
    "RoastConv1d",
    "RoastConv2d",
    "RoastEmbedding",
    "RoastEmbeddingBag",
    "RoastError",
    "RoastLinear",
    "VerificationError",
    "VirtualWeight",
    "compress",
    "convert",
    "create_session",
    "export",
    "load",
    "make_virtual",
    "ort_library_path",
    "save",
    "scale_gradients",
    "summary",
    "torch_library_path",
    "verify",
]
