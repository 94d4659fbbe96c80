"""What a plan consists of: needs beside what there is, and findings that somebody who launches should know."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from skyrl_stack.errors import ProfileError

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Need:
    """A row of the table."""

    what: str
    needed: str
    there_is: str = ""
    "Empty where it is not known."


@dataclass(frozen=True)
class Finding:
    """One thing that somebody who launches should know."""

    level: Level
    text: str


@dataclass(frozen=True)
class Plan:
    """All of it, the findings with the errors first."""

    needs: list[Need]
    findings: list[Finding]

    @classmethod
    def of(cls, parts: Iterable[Need | Finding]) -> "Plan":
        parts = list(parts)
        findings = [part for part in parts if isinstance(part, Finding)]
        rank = ("error", "warning", "note").index
        needs = [part for part in parts if isinstance(part, Need)]
        return cls(needs, sorted(findings, key=lambda finding: rank(finding.level)))

    @property
    def fits(self) -> bool:
        return not any(finding.level == "error" for finding in self.findings)

    def require_fit(self) -> None:
        """Refuse what cannot work.

        Raises:
            ProfileError: the first error.
        """
        for finding in self.findings:
            if finding.level == "error":
                raise ProfileError(finding.text)


def gb(size: float) -> str:
    """Bytes for people."""
    return f"{size / 1e9:.1f} GB" if size < 1e12 else f"{size / 1e12:.1f} TB"
