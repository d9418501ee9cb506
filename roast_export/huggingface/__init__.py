"""Models of the transformers library: folders with config.json and model.safetensors.

    dense = transformers.AutoModel.from_pretrained("MiniLM")
    small = roast_export.compress(dense, 10)
    small.save_pretrained("MiniLM-10x")            # arrays and records, as safetensors
    small = roast_export.huggingface.from_pretrained("MiniLM-10x")

transformers and safetensors are optional: they are imported when one of these functions is called.
"""

from roast_export.huggingface.folder import is_folder
from roast_export.huggingface.loading import from_pretrained, register
from roast_export.huggingface.pretrained import adopt, save_pretrained

__all__ = ["adopt", "from_pretrained", "is_folder", "register", "save_pretrained"]
