"""What the doctor says: findings, and the report that holds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from squidiff.config import InputError

Severity = Literal["error", "warning"]
Mend = Callable[..., str]
"""Gives the command of `prepare` that mends the data with some options more."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. Errors stop training, warnings do not."""

    severity: Severity
    what: str
    where: str
    count: int
    remedy: str
    command: str = ""
    """What does it: a command of ours, or a line of Python on `adata`; empty where only the user can know."""

    def __str__(self) -> str:
        return f"{self.what} (in {self.where}; {self.count:,}): {self.remedy}"


@dataclass(frozen=True)
class CheckReport:
    """What the doctor found in a data set, and what it took it for."""

    n_cells: int
    n_genes: int
    findings: tuple[Finding, ...]
    unit: str = "unknown"
    """What X holds, as far as its values tell."""
    gene_names: str = "unknown"
    """What kind of names the genes have."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop training."""
        return tuple(f for f in self.findings if f.severity == "error")

    def raise_errors(self) -> None:
        """Raises InputError with the first error, and the number of the others, if there is any."""
        if self.errors:
            others = len(self.errors) - 1
            more = f" ({others} more error{'s' if others > 1 else ''}: see `squidiff check`)" if others else ""
            raise InputError(f"{self.errors[0]}{more}")

    def without(self, what: str) -> CheckReport:
        """The report without one kind of finding, for whoever means it so."""
        return replace(self, findings=tuple(f for f in self.findings if f.what != what))

    def to_json(self) -> dict[str, Any]:
        """JSON-able form, as in a run's check.json."""
        return asdict(self) | {"findings": [asdict(f) for f in self.findings]}
