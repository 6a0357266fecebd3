"""Import and export of models in other projects' formats.

from modeling_gptlite.interchange import convert

convert("out/quickstart", "out/quickstart-gguf", target_format="gguf", dtype="q8_0")
"""

from .formats import FORMATS, Format, VerificationError, convert, read, readable, verify, writable, write
from .material import Engine, Material
from .native import ConversionError, from_native, to_native


__all__ = [
    "FORMATS",
    "ConversionError",
    "Engine",
    "Format",
    "Material",
    "VerificationError",
    "convert",
    "from_native",
    "read",
    "readable",
    "to_native",
    "verify",
    "writable",
    "write",
]
