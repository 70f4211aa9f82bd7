"""What is said of the methods over all settings of a board, a setting being one pair on one data set."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class OverallLine:
    """One method over the settings of an :class:`Overall`.

    Attributes:
        variant: the method as the tables name it.
        rank: average over the settings of its rank by mean top-1; equal means share their average rank.
        iqm: interquartile mean over settings and seeds of the gap closed, a fraction; None where the `why` says.
        iqm_low, iqm_high: its 95 % interval by a stratified bootstrap.
        why: why `iqm` is None; else empty.
    """

    variant: str
    rank: float
    iqm: float | None = None
    iqm_low: float | None = None
    iqm_high: float | None = None
    why: str = ""


@dataclass(frozen=True)
class Friedman:
    """Friedman's test that all methods rank alike, in the form of Iman and Davenport (Demšar 2006).

    Attributes:
        chi2: Friedman's statistic, corrected for ties.
        f: Iman and Davenport's statistic; infinite where every setting has one and the same order.
        p: probability of at least this `f` if all methods were alike.
    """

    chi2: float
    f: float
    p: float

    @property
    def rejects(self) -> bool:
        """Whether p is below 0.05."""
        return self.p < 0.05


@dataclass(frozen=True)
class Overall:
    """Methods over settings: complete blocks, every method listed has a mean in every setting listed.

    Attributes:
        title: what the settings share.
        settings: what each block is, ``pair, data set``.
        lines: by average rank, the best first.
        friedman: None below six settings, see `why`.
        critical_difference: of average ranks by Nemenyi's test at 5 %; None where `friedman` is.
        cliques: groups of variants that are not told apart, from better to worse; all of them in one where
            Friedman's test does not reject.
        iqm_settings: how many settings have a gap to close, over which the IQM goes.
        left_out: what is not in the blocks, and why, as sentences.
        why: why there is no test; else empty.
    """

    title: str
    settings: list[str]
    lines: list[OverallLine]
    friedman: Friedman | None = None
    critical_difference: float | None = None
    cliques: list[tuple[str, ...]] = field(default_factory=list)
    iqm_settings: int = 0
    left_out: list[str] = field(default_factory=list)
    why: str = ""

    @property
    def n(self) -> int:
        """Number of settings."""
        return len(self.settings)
