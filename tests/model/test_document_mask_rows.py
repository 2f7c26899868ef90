"""A packed row gives each document the logits that it has alone, and the same loss and gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minigpt.config import DataConfig
from minigpt.data.dataset import TokenDataset
from minigpt.data.prepared import PreparedData, PreparedSource
from minigpt.data.rows.masks import IGNORED, PADDING
from minigpt.data.rows.training_rows import TrainingRows, make_rows
from minigpt.model import GPT
from minigpt.objectives import PretrainObjective, stack

CONTEXT = 16  # of the small models


def rows_of(lengths: list[int], context_length: int, ends: bool, data: dict[str, Any]) -> TrainingRows:
    """Random documents of ids 1 ... 28, with the end-of-text id 0 behind each, or not."""
    draw = np.random.default_rng(len(lengths))
    documents = [np.append(draw.integers(1, 29, length), [0] * ends) for length in lengths]
    starts = np.cumsum([0, *map(len, documents)])[:-1].astype(np.int64)
    tokens = TokenDataset([np.concatenate(documents).astype(np.uint16)], 29, "", starts=starts, eot_id=0)
    prepared = PreparedData((PreparedSource("a", tokens, None, 1.0),), (), "")
    config = DataConfig.model_validate({"document_mask": True} | data)
    return make_rows(prepared, config, context_length=context_length, seed=1, batch_rows=1, max_steps=None)


@pytest.mark.parametrize("packing", ["contiguous", "documents"])
@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize("position", ["rope", "learned"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 30), min_size=3, max_size=12).filter(lambda lengths: sum(lengths) > CONTEXT + 1),
    context_length=st.integers(1, CONTEXT),
    ends=st.booleans(),
)
def test_logits_of_a_row_are_those_of_each_document_alone(
    tiny: Callable[..., GPT], position: str, restart: bool, packing: str, lengths: list[int], context_length: int,
    ends: bool,
) -> None:  # fmt: skip
    model = tiny(position=position)
    rows = rows_of(lengths, context_length, ends, {"packing": packing, "restart_positions": restart})
    made = [rows.row(index) for index in range(min(4, rows.rows_per_epoch))]
    batch = stack(made)
    positions = {} if restart else {"positions": batch["positions"]}
    together = model(batch["ids"], document_ids=batch["document_ids"], **positions)
    for n in range(len(made)):
        documents = batch["document_ids"][n]
        for document in documents.unique().tolist():
            here = (documents == document).nonzero()[:, 0]
            assert (here.diff() == 1).all()  # in one piece
            if document == PADDING:
                assert (batch["targets"][n, here] == IGNORED).all()
                continue
            alone = {} if restart else {"positions": here[None]}
            expected = model(batch["ids"][n, here][None], **alone)[0]
            torch.testing.assert_close(together[n, here], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("restart", [True, False])
def test_the_objective_trains_on_documents_as_if_alone(tiny: Callable[..., GPT], restart: bool) -> None:
    """Loss and gradients of a packed batch are those of its documents, summed."""
    model = tiny(position="learned")
    rows = rows_of([5, 9, 3, 30, 4, 7], CONTEXT, True, {"packing": "documents", "restart_positions": restart})
    objective = PretrainObjective(None, None, context_length=CONTEXT, seed=1, rows=rows)
    batch = stack([objective.row(index) for index in range(objective.rows_per_epoch)])
    loss, valid, _ = objective.training_step(model, batch)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    total, count = torch.zeros(()), 0
    for ids, targets, documents in zip(batch["ids"], batch["targets"], batch["document_ids"], strict=True):
        for document in set(documents.tolist()) - {PADDING}:
            here = (documents == document).nonzero()[:, 0]
            alone = {} if restart else {"positions": here[None]}
            total = total + model(ids[here][None], targets=targets[here][None], **alone)
            count += len(here)
    total.backward()
    assert valid == count == 5 + 9 + 3 + 30 + 4 + 7 + 6 - 1
    torch.testing.assert_close(loss, total, atol=1e-4, rtol=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=2e-4, rtol=1e-3)
