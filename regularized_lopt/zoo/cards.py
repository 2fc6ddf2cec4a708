"""What a trained optimizer of the zoo is, where it comes from and what it reached."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from regularized_lopt import serialization
from regularized_lopt.run_files import CONFIG_FILE

CARD_FILE = "card.json"
LICENSE = "Apache-2.0"


@dataclasses.dataclass(frozen=True)
class Card:
    """An entry of the zoo in words and figures.

    Attributes:
      name: the entry's.
      task: what it was meta-trained on; of several, with " + " between.
      regularizer: in the outer objective, with its parameters; "none" for none.
      space: where the regularizer acted: "meta", "optimizee", "update" (the smoothing term), some
        of them with " and " between, or "none".
      seed: of the meta-training.
      outer_steps: updates of theta.
      figures: what it reached at meta-test: per task `task`, `num_steps`, `num_runs`, the test
        accuracy in per cent, the rise of the test loss at radius 0.01 and the norm of the params at
        completion, each as mean and standard deviation over the runs; the rise over the first
        `measured_runs`, on `num_examples` test images, from `starts` random starts.
      measured_by: the command that measured `figures`.
      made_with: versions, device and commit of the meta-training.
      license: of the weights, an SPDX expression.
      sha256: of the file with the weights.
      config: the whole gin configuration, as text.
    """

    name: str
    task: str
    regularizer: str
    space: str
    seed: int
    outer_steps: int
    figures: list[dict[str, Any]]
    measured_by: str
    made_with: dict[str, str]
    license: str
    sha256: str
    config: str

    def write(self, directory: pathlib.Path) -> None:
        """Into card.json and config.gin."""
        contents = dataclasses.asdict(self)
        (directory / CONFIG_FILE).write_text(contents.pop("config"))
        (directory / CARD_FILE).write_text(json.dumps(contents, indent=1) + "\n")

    def __str__(self) -> str:
        made = [f"{key} {value}" for key, value in self.made_with.items()]
        lines = [
            self.name,
            f"  meta-trained on  {self.task}, {self.outer_steps:,} outer steps, seed {self.seed}",
            f"  regularizer      {self.regularizer}, space: {self.space}",
            f"  made with        {', '.join(made[:-1])}",
            f"                   {made[-1]}",
            f"  license          {self.license}",
            f"  sha256           {self.sha256}",
            f"  measured by      {self.measured_by}",
        ]
        for row in self.figures:
            lines += [
                f"  {row['task']}, {row['num_steps']:,} steps, {row['num_runs']} runs:",
                f"    test accuracy                              {_plus_minus(row['accuracy'])} %",
                f"    rise of the test loss within radius 0.01   {_plus_minus(row['rise'])}",
                f"    norm of the params                         {_plus_minus(row['norm'])}",
            ]
        return "\n".join(lines)


def read(directory: pathlib.Path) -> Card:
    """The card in an entry's directory."""
    contents = serialization.load_json(directory / CARD_FILE)
    return Card(**contents, config=(directory / CONFIG_FILE).read_text())


def checksum(path: pathlib.Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _plus_minus(mean_and_std: list[float]) -> str:
    mean, std = mean_and_std
    return f"{mean:.4g} ± {std:.2g}"
