"""onnxruntime by itself on optimum's int8 file, with the options that it comes with; 0 threads are its own choice."""

from pathlib import Path

import engine
import onnxruntime
import serving


def load(folder: Path, _: str, threads: int) -> serving.Served:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    file = folder / "model_quantized.onnx"
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return engine.served(
        folder, lambda ids, mask: session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]
    )


if __name__ == "__main__":
    serving.answer(load)
