"""The model card of a finished network."""

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np
import scipy
from jinja2 import Environment, PackageLoader, StrictUndefined

_LEVEL = 0.95


def model_card(spec: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """Markdown from a folder's config.json: `network` (`spec`) and the rest (`about`)."""
    environment = Environment(
        loader=PackageLoader("trainers.finished"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"accuracy": accuracy, "cell": _cell}
    template = environment.get_template("card.md")
    return template.render(spec=spec, **about, caveats=caveats(about))


def accuracy(values: Sequence[float]) -> str:
    """Percent: the mean over trainings with different seeds, with Student's 95 % interval."""
    mean = f"{np.mean(values):.2f}"
    if len(values) == 1:
        return mean
    half = scipy.stats.t.ppf((1 + _LEVEL) / 2, len(values) - 1) * np.std(values, ddof=1)
    each = ", ".join(f"{value:.2f}" for value in values)
    return f"{mean} ± {half / sqrt(len(values)):.2f} ({each})"


def caveats(about: Mapping[str, Any]) -> list[str]:
    """Caveats on the numbers of a card."""
    found = []
    search, results, how = about["search"], about["results"], about["how"]
    highest = search is not None and search["target"] is None  # the best is the highest value
    if highest and search["same_images"] and "held_out" in results:
        found.append(
            f"The search chose this architecture out of {search['trials']} by its accuracy on the "
            "held-out images: that accuracy is too high, the more so the fewer the images."
        )
    if search is not None and search["objective"] == "test":
        found.append(
            f"It was chosen by its test accuracy on {search['searched_on']}: no accuracy on those "
            "test images is a fair estimate."
        )
    if search is not None and search["evaluator"] == "surrogate":
        found.append(
            "The value in the search is the estimate of a surrogate of ImageNet-1K accuracy; "
            "nothing was trained to find it."
        )
    if how == "supernet":
        found.append(
            "The weights are shared with all networks of a supernet; networks trained on their "
            "own may be better, and may rank differently."
        )
    if how == "search" and highest:
        found.append(
            "The search chose this architecture by the accuracy of these very weights, which "
            "favours lucky trainings."
        )
    if how == "train" and len(about["seeds"]) == 1:
        found.append(
            "There was only one training: how much the accuracy varies with the seed is not known."
        )
    if "held_out" in results and about["seen_held_out"]:
        found.append(
            "It is not known whether the supernet that the weights come from was trained on "
            "held-out images; if it was, the accuracy on them is too high."
        )
    if "test" not in results:
        found.append("There are no images in val, whose accuracy would be free of selection bias.")
    found.append(
        "Not measured: images from other cameras or places, of other classes, or damaged; "
        "differences between groups of people. Outputs are logits, not calibrated probabilities."
    )
    return found


def _cell(text: object) -> str:
    """Text for a cell of a table."""
    return " ".join(str(text).split()).replace("|", "\\|")
