"""The verb that looks at the machine."""

from __future__ import annotations

from linnet.cli.face import speaking
from linnet.cli.groups import Groups
from linnet.cli.options import DebugOption, JsonOption


def doctor(json: JsonOption = False, debug: DebugOption = False) -> None:
    """Say what is fast and slow here, and why.

    Shows the device, its instruction sets, threads and memory, and measures matrix products.
    """
    with speaking(json=json, debug=debug) as face:
        from linnet.machine import doctor as examine

        face.show(examine())


def join(groups: Groups) -> None:
    groups.top.command("doctor")(doctor)
