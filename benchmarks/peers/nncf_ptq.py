"""NNCF's post-training quantisation with its defaults: python nncf_ptq.py ptq MODEL.onnx CALIB.npz OUT.onnx."""

import sys

import nncf
import onnx
import samples


def main():
    """Quantise with every calibration sample."""
    _, model, calib, out = sys.argv[1:5]
    feeds = samples.read(calib)
    quantized = nncf.quantize(onnx.load(model), nncf.Dataset(feeds), subset_size=len(feeds))
    onnx.save(quantized, out)


if __name__ == "__main__":
    main()
