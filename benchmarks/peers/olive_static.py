"""Olive's static quantisation with its defaults: python olive_static.py static MODEL.onnx CALIB.npz OUT.onnx."""

import shutil
import sys
import tempfile
from pathlib import Path

import samples
import torch
from olive.data.config import DataComponentConfig, DataConfig
from olive.data.registry import Registry
from olive.model import ONNXModelHandler
from olive.passes.olive_pass import create_pass_from_dict
from olive.passes.onnx.quantization import OnnxStaticQuantization


class Samples(torch.utils.data.Dataset):
    """What Olive takes: a feed and a label that nobody reads, without the batch axis."""

    def __init__(self, feeds):
        self.feeds = feeds

    def __len__(self):
        return len(self.feeds)

    def __getitem__(self, index):
        return {name: torch.from_numpy(array[0]) for name, array in self.feeds[index].items()}, 0


@Registry.register_dataset("benchmark_samples")
def benchmark_samples(path, **_):
    """Read the calibration samples."""
    return Samples(samples.read(path))


def main():
    """Run the one pass."""
    _, model, calib, out = sys.argv[1:5]
    data = DataConfig(
        name="calibration",
        load_dataset_config=DataComponentConfig(type="benchmark_samples", params={"path": calib}),
        pre_process_data_config=DataComponentConfig(type="skip_pre_process"),
        post_process_data_config=DataComponentConfig(type="skip_post_process"),
        dataloader_config=DataComponentConfig(type="default_dataloader", params={"batch_size": 1}),
    )
    quantize = create_pass_from_dict(OnnxStaticQuantization, {"data_config": data}, disable_search=True)
    with tempfile.TemporaryDirectory() as folder:
        result = quantize.run(ONNXModelHandler(model_path=model), str(Path(folder, "out.onnx")))
        shutil.copyfile(result.model_path, out)


if __name__ == "__main__":
    main()
