"""Exports classifiers for programs without this package: PyTorch's own format, and ONNX."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from nag.errors import one_line
from trainers.finished.classifier import Classifier

PROGRAM, ONNX = "model.pt2", "model.onnx"
TOLERANCE = 1e-4  # of outputs, relative to the largest of them
PACKAGES = ("onnx", "onnxscript", "onnxruntime")  # of the extra `export`


class ExportError(RuntimeError):
    """An exported file does not compute what the network computes."""


def can_write_onnx() -> bool:
    """Whether all required packages are installed."""
    return all(find_spec(name) is not None for name in PACKAGES)


def export(classifier: Classifier, images: Tensor, folder: Path) -> tuple[dict[str, float], str]:
    """Write model.pt2 and, if possible, model.onnx; both accept any number of images.

    images: (n, R, R, 3) uint8, n > 1, on the CPU: real images on which both files are tested, as
        a batch and one alone.

    Returns the largest difference between each file's outputs and the network's, relative to the
    largest output; and, if model.onnx should have been written but was not, the reason. Raises
    ExportError if model.pt2 does not compute what the network computes.
    """
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            classifier, (images[:2],), dynamic_shapes={"images": {0: Dim("batch")}}
        )
        torch.export.save(program, folder / PROGRAM)
        module = torch.export.load(folder / PROGRAM).module()
        found = {PROGRAM: _check(PROGRAM, lambda x: module(x).numpy(), classifier, images)}
        if can_write_onnx():
            try:
                _write_onnx(program, classifier, folder / ONNX)
                found[ONNX] = _check(ONNX, _onnx(folder / ONNX), classifier, images)
            except Exception as error:  # exporter and runtime raise errors of all kinds
                (folder / ONNX).unlink(missing_ok=True)
                return found, one_line(error)
    return found, ""


def _write_onnx(program: ExportedProgram, classifier: Classifier, path: Path) -> None:
    """Write a single file, which documents its input and the names of its classes."""
    found = torch.onnx.export(
        program,
        dynamo=True,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes={"images": {0: "batch"}},
        verbose=False,
    )
    assert found is not None
    preprocessing = json.dumps(classifier.spec.preprocessing())
    found.model.metadata_props["preprocessing"] = preprocessing
    found.save(path, external_data=False)


def _onnx(path: Path) -> Callable[[Tensor], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["logits"], {"images": images.numpy()})[0]


def _check(
    name: str, exported: Callable[[Tensor], np.ndarray], classifier: Classifier, images: Tensor
) -> float:
    worst = 0.0
    for batch in (images, images[:1]):
        expected = classifier(batch).numpy()
        difference = np.abs(exported(batch) - expected).max() / np.abs(expected).max()
        worst = max(worst, float(difference))
    if not worst <= TOLERANCE:
        raise ExportError(
            f"{name} does not compute the same as the network: outputs differ by {worst:.2g} of "
            f"the largest, but at most {TOLERANCE:g} is allowed"
        )
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's remarks on unneeded packages and on its own code."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
