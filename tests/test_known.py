"""Known circuits compute what they should, with the parts that they name and no others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from linnet.errors import BadInput
from linnet.model.contract import evaluating
from linnet.probing.known.programs import HARD, PROGRAMS, KnownCircuit, known_circuit


def logits(known: KnownCircuit, ids: Tensor, tap: str = "", index: int = 0) -> Tensor:
    """Of the model, with channel or head `index` of a tap at zero where one is named."""

    def without(values: Tensor) -> Tensor:
        values = values.clone()
        values[:, :, index] = 0
        return values

    with evaluating(known.model):
        hidden = known.model(ids, edit=((tap, without),) if tap else ()).hidden
        return known.model.head(hidden)


@pytest.mark.parametrize("sharpness", [HARD, 5.0, 2.0])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_programs_are_right_hard_and_soft(name: str, sharpness: float) -> None:
    known = known_circuit(name, sharpness)
    ids, answers = known.prompts(100)
    asked = answers >= 0
    assert asked.any() and torch.equal(logits(known, ids).argmax(-1)[asked], answers[asked])


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_named_part_matters_and_no_other(name: str) -> None:
    known = known_circuit(name)
    ids, answers = known.prompts(100)
    config, whole = known.model.config, logits(known, ids)[answers >= 0]

    def effect(tap: str, index: int) -> float:
        return float((logits(known, ids, tap, index)[answers >= 0] - whole).abs().max())

    for layer in range(config.depth):
        for head in range(config.attention.heads):
            found = effect(f"blocks.{layer}.attn.hook_z", head)
            assert found > 0.1 if (layer, head) in known.circuit.heads else found < 1e-6
        for neuron in range(config.feedforward_width):
            found = effect(f"blocks.{layer}.mlp.hook_post", neuron)
            assert found > 0.1 if (layer, neuron) in known.circuit.neurons else found < 1e-6


@pytest.mark.parametrize("name", PROGRAMS)
def test_pairs_differ_in_their_answer(name: str) -> None:
    known = known_circuit(name)
    clean, corrupt, steps = known.pairs(20)
    rows = torch.arange(len(steps))
    said = [logits(known, ids)[rows, steps].argmax(-1) for ids in (clean, corrupt)]
    assert clean.shape == corrupt.shape and (said[0] != said[1]).all()


def test_edges_join_parts_of_the_circuit() -> None:
    known = known_circuit("induction")
    assert known.circuit.edges == {
        ("embed", "v.0.2"),
        ("head.0.2", "k.1.1"),
        ("embed", "q.1.1"),
        ("embed", "v.1.1"),
        ("head.1.1", "logits"),
    }
    with pytest.raises(BadInput, match='did you mean "induction"'):
        known_circuit("inducton")
