"""The conditions of a step: a table of their tensors on the device, and a plan that adds them to attention.

A condition is the same at all tokens of a sequence, so it takes no positions and no blocks. The table has a fixed place
in memory and a slot for every sequence that can run, so a captured decode step reads it like a step that is not.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from collections.abc import Sequence as Ordered
from dataclasses import dataclass

import torch

from model.engine.attention import AttentionPlan
from model.engine.config import EngineConfig
from model.engine.kv_cache import KVCache
from model.engine.sequence import ADDED, Condition


def table_bytes(config: EngineConfig, dtype: torch.dtype) -> int:
    """Memory that the table of an engine takes; 0 for a model without conditions."""
    return _num_slots(config) * sum(map(math.prod, config.condition_shapes.values())) * dtype.itemsize


class ConditionTable:
    """The tensors of recent conditions, by slot. Slot 0 holds zeros, for sequences without a condition.

    A condition stays in its slot until the slot is needed, so a sequence that decodes writes to the table once.
    """

    def __init__(self, config: EngineConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        num_slots = _num_slots(config)
        self.tensors = {
            name: torch.zeros(num_slots, *shape, dtype=dtype, device=device)
            for name, shape in config.condition_shapes.items()
        }
        """By name, [slots, *shape]."""
        self._free = list(reversed(range(1, num_slots)))
        self._slots: OrderedDict[str, int] = OrderedDict()
        """The slots of conditions by their identity, the least recently used first."""

    def slots_of(self, conditions: Ordered[Condition | None]) -> list[int]:
        """Return the slot of each condition of a step; those that are not in the table are written to it.

        There must be no more different conditions than sequences can run.
        """
        for condition in conditions:
            if condition is not None and condition.identity in self._slots:
                self._slots.move_to_end(condition.identity)  # so that no condition of this step is replaced
        return [0 if condition is None else self._slot_of(condition) for condition in conditions]

    def plan(self, plan: AttentionPlan, slots: torch.Tensor) -> "ConditionedPlan":
        """Extend the plan of a step by the slot [rows] of each row's condition."""
        return ConditionedPlan(plan, self.tensors, slots)

    def _slot_of(self, condition: Condition) -> int:
        slot = self._slots.get(condition.identity)
        if slot is None:
            slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
            for name, tensor in self.tensors.items():
                tensor[slot].copy_(condition.tensors[name])
            self._slots[condition.identity] = slot
        return slot


@dataclass(frozen=True, slots=True, eq=False)
class ConditionedPlan:
    """The plan of a step whose rows have conditions; a `model.engine.attention.AttentionPlan`.

    A layer that attends to a condition's tensor `name` reads `tensors[name][condition_slots]`.
    """

    plan: AttentionPlan
    tensors: Mapping[str, torch.Tensor]
    """Those of the table: by name, [slots, *shape]."""
    condition_slots: torch.Tensor
    """[rows]: the slot of each row's condition."""

    @property
    def slots(self) -> torch.Tensor:
        """[rows]: the slot of the KV cache in which each row's key and value are stored."""
        return self.plan.slots

    @property
    def kv_cache(self) -> KVCache:
        """The cache in which they are stored."""
        return self.plan.kv_cache

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        """As `AttentionPlan.attend`, plus what the condition of each row adds in this layer."""
        result = self.plan.attend(layer, query, key, value, scaling)
        if ADDED not in self.tensors:
            return result
        return result + self.tensors[ADDED][:, layer].index_select(0, self.condition_slots)


def _num_slots(config: EngineConfig) -> int:
    """One for every sequence that can run, and slot 0."""
    return config.max_num_seqs + 1 if config.condition_shapes else 0
