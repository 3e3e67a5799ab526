"""After a search: train its best networks and export them: `python -m trainers.finalize --help`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from nag.cli import WholeNumber, command_line, end_interrupted, plain_console
from nag.cli import run as run_command
from nag.errors import UserError, one_line
from nag.files import sha256_of
from nag.locks import claim
from nag.spaces import StagedSpace, find_space
from trainers.base import EvaluationError
from trainers.build import ON_IMAGES, EvaluatorSettings, build_evaluator
from trainers.evaluators.supernet import SupernetEvaluator
from trainers.evaluators.training import TrainingEvaluator
from trainers.finished.export import ONNX, ExportError, can_write_onnx
from trainers.finished.finalists import Finalist, Search, read_search
from trainers.finished.packaging import How, Packaging
from trainers.rows import read_list
from trainers.training.loop import of_the_machine
from trainers.training.task import NetworkOptions, Place

app = command_line(
    "python -m trainers.finalize",
    "python -m trainers.finalize runs/R --data PETS --weights ofa_mbv3_d234_e346_k357_w1.0 "
    "--seeds 3 --out best",
    "python -m trainers.finalize runs/R --data ILSVRC2012 --weights W.pt --no-train --out best",
)


@app.default
def main(
    run: Path | None = None,
    *,
    out: Path,
    archs: Path | None = None,
    space: str = "mobilenetv3",
    top: WholeNumber = 3,
    seeds: WholeNumber = 1,
    train: Annotated[bool, Parameter(negative="--no-train")] = True,
    with_held_out: Annotated[bool, Parameter(negative=())] = False,
    networks: NetworkOptions = NetworkOptions(),
    place: Place = Place(),
) -> int:
    """Train the best networks of a search and export them, each into a folder OUT/RANK.

    A folder holds model.onnx, model.pt2 (PyTorch), model.safetensors and config.json (this
    program), arch.json (in the format of once-for-all or NAS-Bench-201), preprocessing.json and
    README.md, the model card. Repeat an interrupted command to continue it; trainings are kept in
    OUT/checkpoints unless --checkpoints is given.

    Parameters
    ----------
    run
        Folder of a run. If the run used images, --data must be the same, and --resolution,
        --held-out, --width and --recipe default to those of the run.
    out
        Folder to write to.
    archs
        Architectures instead of a run, best first: a text file, or a parquet file with a column
        arch, such as orchestrator.propose writes.
    space
        Search space of --archs.
    top
        Number of best architectures to train.
    seeds
        Trainings of each, with seeds 0, 1, ...; the exported weights are those of seed 0.
    train
        Without training, the weights are those of the supernet or those trained by the run.
    with_held_out
        Also train on held-out images; the only accuracy is then that on val.
    networks
        What networks are trained and measured on.
    place
        Where they are trained and measured.
    """
    if min(top, seeds) < 1:
        raise UserError("--top and --seeds must be at least 1")
    if (run is None) == (archs is None):
        raise UserError("give either the folder of a run or --archs, a list of architectures")
    if not train and (seeds > 1 or with_held_out):
        raise UserError("--seeds and --with-held-out cannot be combined with --no-train")
    if (out / "config.json").exists():
        raise UserError(f"--out {out} is a run: choose another folder")
    search = None if run is None else read_search(run, top)
    if search is not None:
        networks = _as_in(search, networks, train)
        found, finalists = search.space, search.finalists
    else:
        assert archs is not None
        found = find_space(space)
        finalists = tuple(map(Finalist, read_list(archs, found)[:top]))
    packaging = _packaging(
        found, search, networks, place, out, train=train, seeds=seeds, all_images=with_held_out
    )
    for rank, finalist in enumerate(finalists, start=1):
        packaging.there(rank, finalist)
    out.mkdir(parents=True, exist_ok=True)
    console = plain_console()
    failed = 0
    try:
        with claim(out):
            for rank, finalist in enumerate(finalists, start=1):
                try:
                    said = packaging.package(rank, finalist, console)
                except Exception as error:
                    own = isinstance(error, EvaluationError | ExportError)
                    if not (own or of_the_machine(error)):
                        raise
                    failed, said = failed + 1, f"failed: {one_line(error)}"
                console.print(f"{rank} of {len(finalists)}: {said}")
    except KeyboardInterrupt:
        end_interrupted()
    if not can_write_onnx():
        console.print(f"{ONNX} was not written: pip install 'diffusionnag-bo[export]'")
    return 1 if failed else 0


def _as_in(search: Search, given: NetworkOptions, train: bool) -> NetworkOptions:
    """Options that were not given default to those of the run, if it used images.

    A full training does not inherit the options that shortened the trainings of the run.
    """
    if search.evaluator not in ON_IMAGES:
        return given
    weights = search.config.get("weights")
    if weights and given.weights is None:
        raise UserError(
            f"{search.path} took weights from {weights}: give --weights, or list its "
            "architectures in --archs to train them from scratch"
        )
    names = ["resolution", "held_out", "width"]
    if search.evaluator == "train" or not train:
        names.append("recipe")
    if not train:
        names += ["epochs", "precision", "train_fraction", "calibration"]
    default = NetworkOptions()
    kept = {
        name: search.config.get(name, getattr(default, name))
        for name in names
        if getattr(given, name) == getattr(default, name)
    }
    return replace(given, **kept)


def _packaging(
    space: StagedSpace,
    search: Search | None,
    networks: NetworkOptions,
    place: Place,
    out: Path,
    *,
    train: bool,
    seeds: int,
    all_images: bool,
) -> Packaging:
    """Raises UserError if the options do not fit together."""
    how: How = "train" if train else "supernet"
    if not train and search is not None and search.evaluator == "train":
        how = "search"
    evaluator = build_evaluator(
        space,
        "supernet" if how == "supernet" else "train",
        EvaluatorSettings(networks=networks, place=place, with_held_out=all_images),
    )
    assert isinstance(evaluator, TrainingEvaluator | SupernetEvaluator)
    weights = None
    if networks.weights is not None:
        weights = {"name": networks.weights.name, "sha256": sha256_of(networks.weights)}
    if search is not None:
        if search.sha256.get("data", evaluator.task.digest) != evaluator.task.digest:
            raise UserError(
                f"{networks.data} does not hold the images that {search.path} used: "
                "list its architectures in --archs to train them on others"
            )
        if weights and not train and search.sha256.get("weights") not in (None, weights["sha256"]):
            raise UserError(
                f"{networks.weights} is not the file that {search.path} took weights from"
            )
    if all_images and not evaluator.task.has_test:
        raise UserError(
            f"{networks.data} has no val: --with-held-out would leave no images to measure"
        )
    here = search.path if how == "search" and search else out
    return Packaging(
        space=space,
        evaluator=evaluator,
        how=how,
        weights=weights,
        seeds=seeds,
        measured_by_held_out=not all_images,
        search=search,
        out=out,
        checkpoints=place.checkpoints or here / "checkpoints",
    )


if __name__ == "__main__":
    run_command(app)
