"""Each rule is needed, and the simulation notices when it is missing."""

from __future__ import annotations

import pytest

from tests.simulation.mutants import MUTANTS, Mutant, find


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_missing_rule_is_missed(mutant: Mutant) -> None:
    """With the rule taken out, some run ends with an overlap, a stuck role, ill-formed events or a slot gone wrong."""
    assert find(mutant) is not None, f"{mutant.name}: no run of {mutant.scenario} found it"
