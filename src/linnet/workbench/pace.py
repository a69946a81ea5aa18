"""How long a generation took, in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """How long it took; `first` is when the first token was there, so it is the time of the first prompts."""

    samples: int
    prompt_tokens: int
    tokens: int
    first: float
    seconds: float
    compiling: float = 0.0  # seconds of the first compiled step, which are among the others

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        compiled = f"; {self.compiling:.2f} s of that compiled the steps" if self.compiling else ""
        return (
            f"{counted(self.samples, 'sample')}, {counted(self.tokens, 'token')} in {self.seconds:.2f} s "
            f"({self.tokens_per_second:,.0f} tokens/s{compiled}); the first after {self.first:.2f} s "
            f"({counted(self.prompt_tokens, 'token')} of prompts)"
        )


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
