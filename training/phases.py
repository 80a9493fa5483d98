"""The phases of a training: which epochs are whose, and what each of them goes over."""

import dataclasses
from collections.abc import Callable

from mln_keras.data.checks import ArgumentError


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of a training.

    Attributes:
        name: in words.
        start: the (0-based) epoch with which it begins.
        step: function of a batch, and of the meta batch where there is one, that trains on it; None
            is the model's `step`.
        samples: what an epoch goes over: "labeled" samples, "all" samples or the "meta" set.
        with_meta: whether each batch comes with a meta batch.
        metrics: names of the metrics that this phase has and not all others have.
        begin: function without arguments, called once, when the phase begins.
        reads: which samples, "labeled" or "meta", `begin` goes over, all of them, a tuple.
    """

    name: str
    start: int = 0
    step: Callable | None = None
    samples: str = "labeled"
    with_meta: bool = False
    metrics: tuple = ()
    begin: Callable = lambda: None
    reads: tuple = ()

    @property
    def needs_meta(self):
        return self.with_meta or "meta" in (self.samples, *self.reads)


def plan(phases, current, initial_epoch, epochs):
    """Which epochs of a `fit` are whose.

    Args:
        phases: of the model, a sequence of `Phase` by their start.
        current: the number (from 1) of the phase that the model is in; it never goes back.
        initial_epoch, epochs: as `keras.Model.fit`.

    Returns:
        list of (number of a phase, range of its epochs), without empty ranges.
    """
    ends = [min(phase.start, epochs) for phase in phases[1:]] + [epochs]
    ranges = [range(max(initial_epoch, p.start), end) for p, end in zip(phases, ends, strict=True)]
    return [(n, epochs_of) for n, epochs_of in enumerate(ranges, 1) if n >= current and epochs_of]


def check_plan(phases, current, initial_epoch, epochs, has_meta, has_unlabeled):
    """Refuses epochs and data that do not fit together. Arguments: as `plan`.

    Raises:
        ArgumentError: where clean data are missing, and where data would never be used.
    """
    planned = plan(phases, current, initial_epoch, epochs)
    needing = [phase for phase in phases if phase.needs_meta]
    goes_over_all = any(phase.samples == "all" for phase in phases)
    for name, is_useless in (
        ("meta_data", has_meta and not needing),
        ("unlabeled_data", has_unlabeled and not goes_over_all),
    ):
        if is_useless:
            raise ArgumentError(name, "this method learns nothing from it; leave it out")
    for number, epochs_of in planned:
        if phases[number - 1].needs_meta and not has_meta:
            raise ArgumentError(
                "meta_data",
                f"needed from epoch {epochs_of.start} on, where {phases[number - 1].name} begins; "
                f"received None with epochs={epochs}",
            )
    if current > 1 and epochs <= phases[current - 1].start:
        raise ArgumentError(
            "epochs",
            f"expected more than {phases[current - 1].start}, as this model is in "
            f"{phases[current - 1].name}, received {epochs}",
        )
    if has_meta and epochs <= needing[0].start:
        raise ArgumentError(
            "epochs",
            f"expected more than {needing[0].start}, received {epochs}, so {needing[0].name} would "
            f"never begin; leave meta_data out to train without it",
        )
