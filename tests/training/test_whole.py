"""What a run says of the whole network while each process holds a piece of it."""

from typing import Any

import pytest

from minigpt.model.routing import Routers
from minigpt.parallel.world import DIMENSIONS, World
from minigpt.training.whole import routing_metrics


class Stages(World):
    """The first of the processes that found `others`."""

    others: Any

    def collect(self, value: Any) -> list[Any]:
        return [value, *self.others]


def named(balance: float, load: float) -> dict[str, float]:
    return {"train/moe_balance_loss": balance, "train/moe_max_load": load}


@pytest.fixture
def routers(monkeypatch: pytest.MonkeyPatch) -> Routers:
    """Of one layer."""
    made = Routers([])
    monkeypatch.setattr(made, "layers", [None])
    monkeypatch.setattr(made, "metrics", lambda: named(1.0, 2.0))
    return made


def test_metrics_are_of_the_experts_of_all_stages(routers: Routers):
    world = Stages(size=3, sizes=dict.fromkeys(DIMENSIONS, 1) | {"pp": 3})
    world.others = [(3, named(2.0, 1.5)), (0, {})]  # one stage has no experts
    assert routing_metrics(world, routers) == {"train/moe_balance_loss": 7 / 4, "train/moe_max_load": 2.0}


def test_without_stages_nobody_is_asked(routers: Routers):
    assert routing_metrics(World(), routers) == named(1.0, 2.0)
