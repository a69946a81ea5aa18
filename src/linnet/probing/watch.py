"""Hooks for people who expect them: registered functions become `keep` and `edit` of each call.

Nothing is stored in the network, so a forgotten watch changes nothing:

    with Watch(model) as watch:
        watch.register("pattern", "blocks.0.attn.hook_pattern")
        watch.register("half", "blocks.1.hook_mlp_out", lambda value: value / 2)
        output = watch(ids)
        print(watch.values["pattern"].shape)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from torch import Tensor

from linnet.errors import BadInput, refuse_unknown
from linnet.model.contract import Batch, Network, evaluating
from linnet.model.inputs import Inputs, Output
from linnet.model.taps import Affine, AtPositions, Edit

Hook = Callable[[Tensor], Tensor | None] | Affine | AtPositions


class Watch:
    """Reads and edits of a network under names of one's own; calls run in evaluation mode without gradients."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.values: Mapping[str, Tensor] = {}  # of the last call, by the names of the reads
        self._taps: dict[str, str] = {}
        self._edits: dict[str, Edit] = {}

    def register(self, name: str, tap: str, hook: Hook | None = None) -> None:
        """Read this tap, or hand its value to `hook`, which gives another one, or None to leave it alone."""
        if name in self._taps:
            raise BadInput(f'"{name}" is registered already, at {self._taps[name]}; clear it first')
        refuse_unknown(tap, self.network.taps(), "this model has no tap")
        self._taps[name] = tap
        if hook is not None:
            self._edits[name] = hook if isinstance(hook, Affine | AtPositions) else _or_unchanged(hook)

    def clear(self, *names: str) -> None:
        """Forget these, or all."""
        for name in names or self.names:
            refuse_unknown(name, self._taps, "nothing is registered as")
            del self._taps[name]
            self._edits.pop(name, None)

    @property
    def names(self) -> tuple[str, ...]:
        """What is registered, in order."""
        return tuple(self._taps)

    @property
    def keep(self) -> tuple[str, ...]:
        """The taps that are read."""
        return tuple(dict.fromkeys(tap for name, tap in self._taps.items() if name not in self._edits))

    @property
    def edit(self) -> tuple[tuple[str, Edit], ...]:
        """The edits, in the order in which they were registered."""
        return tuple((self._taps[name], edit) for name, edit in self._edits.items())

    def __call__(self, inputs: Inputs | Tensor | Batch, state: Any = None) -> Output:
        """One call of the network; `values` has what was read."""
        with evaluating(self.network):
            output = self.network(inputs, state, keep=self.keep, edit=self.edit)
        reads = [name for name in self._taps if name not in self._edits]
        self.values = {name: output.kept[self._taps[name]] for name in reads}
        return output

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
        self.values = {}


def _or_unchanged(hook: Callable[[Tensor], Tensor | None]) -> Callable[[Tensor], Tensor]:
    def edit(value: Tensor) -> Tensor:
        changed = hook(value)
        return value if changed is None else changed

    return edit
