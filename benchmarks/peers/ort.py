"""onnxruntime's own quantizer: python ort.py default|u8s8|dynamic MODEL.onnx CALIB.npz OUT.onnx."""

import sys
import tempfile
from pathlib import Path

import samples
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    """Hands out one sample after the other."""

    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        """Return the next feed, None after the last."""
        return next(self.feeds, None)


def quantize(form, model, feeds, out):
    """Clean up as the documentation advises, then quantise in one of the forms."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = str(Path(folder, "prepared.onnx"))
        quant_pre_process(model, prepared, skip_symbolic_shape=True)
        if form == "dynamic":
            quantize_dynamic(prepared, out)
        elif form == "u8s8":
            quantize_static(
                prepared,
                out,
                Reader(feeds),
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        elif form == "default":
            quantize_static(prepared, out, Reader(feeds))
        else:
            raise SystemExit(f"unknown form {form!r}: default, u8s8 or dynamic")


def main():
    """Read and quantise."""
    form, model, calib, out = sys.argv[1:5]
    quantize(form, model, samples.read(calib), out)


if __name__ == "__main__":
    main()
