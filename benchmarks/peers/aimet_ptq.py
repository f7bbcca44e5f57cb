"""AIMET's post-training quantisation, exported as Q/DQ: python aimet_ptq.py minmax MODEL.onnx CALIB.npz OUT.onnx.

Batch normalisation is folded first, as its guide has it; the export is asked for integer weights, since by
default it keeps float ones.
"""

import sys

import onnx
import samples
from aimet_onnx import QuantizationSimModel
from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight


def main():
    """Fold, calibrate, export."""
    _, path, calib, out = sys.argv[1:5]
    model = onnx.load(path)
    fold_all_batch_norms_to_weight(model)
    feeds = samples.read(calib)
    simulated = QuantizationSimModel(model, param_type="int8", activation_type="int8", dummy_input=feeds[0])
    simulated.compute_encodings(feeds)
    onnx.save(simulated.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), out)


if __name__ == "__main__":
    main()
