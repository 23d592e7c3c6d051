"""The ranges of a classifier's activations, and the scales that follow from them."""

from typing import Any

import numpy as np
import pytest
import torch

from retrue.training import ranges
from retrue.training.graph import Graph
from retrue.training.ranges import Range

WIDTH = 6


def given(low: Any, high: Any, weight: Any = 1.0) -> Range:
    each = (np.broadcast_to(np.asarray(value, np.float32), (WIDTH,)).copy() for value in (low, high, weight))
    return Range(*each, np.eye(WIDTH, dtype=np.float32))


def test_bytes_hold_every_value_of_the_range_and_zero_exactly() -> None:
    found = given([-1, -2, 0, 0, 1, 1], [0, 3, 5, 0, 2, 1])
    step, zero = found.scale(found.smoothing(0.0))
    assert (-2 - 0.5 * step) <= (0 - int(zero)) * step <= (-2 + 0.5 * step)
    assert (255 - int(zero)) * step == pytest.approx(5, abs=float(step))
    low_only = given(2, 4)
    step, zero = low_only.scale(low_only.smoothing(0.0))
    assert (int(zero), 255 * step) == (0, pytest.approx(4))


def test_a_site_that_is_always_zero_has_a_scale_all_the_same() -> None:
    silent = given(0, 0, 0)
    step, zero = silent.scale(silent.smoothing(0.8))
    assert step > 0
    assert zero == 0


def test_smoothing_takes_from_channels_that_are_large_and_meet_small_weights() -> None:
    found = given([-1, -1, -8, -1, -1, -1], 1, [1, 1, 1, 4, 1, 1])
    none, half, most = (found.smoothing(share) for share in (0.0, 0.5, 0.9))
    np.testing.assert_array_equal(none, np.ones(WIDTH))
    np.testing.assert_allclose(half / half[0], [1, 1, 8**0.5, 0.5, 1, 1], rtol=1e-5)
    assert most[2] / most[0] > half[2] / half[0]
    assert np.exp(np.log(half).mean()) == pytest.approx(1, rel=1e-5)


def test_what_is_measured_is_what_flows_into_each_product_and_no_padding(graph: Graph) -> None:
    rng = torch.Generator().manual_seed(1)
    ids = torch.randint(5, graph.model.config.vocab_size, (3, 12), generator=rng)
    mask = torch.ones_like(ids)
    alone = ranges.measure(graph.model, [(ids[:1], mask[:1]), (ids[1:], mask[1:])])
    padded = torch.cat([ids, torch.zeros(3, 20, dtype=ids.dtype)], dim=1)
    together = ranges.measure(graph.model, [(padded, torch.cat([mask, torch.zeros(3, 20, dtype=mask.dtype)], dim=1))])
    assert set(alone) == {(layer, site) for layer in range(2) for site in ranges.SITES}
    for key, found in alone.items():
        np.testing.assert_allclose(found.low, together[key].low, atol=1e-5)
        np.testing.assert_allclose(found.high, together[key].high, atol=1e-5)
    with torch.inference_mode():
        hidden = graph.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    np.testing.assert_allclose(alone[1, "attend"].high, hidden[1].amax((0, 1)).numpy(), atol=1e-6)
    tokens = hidden[1].flatten(0, 1)
    np.testing.assert_allclose(alone[1, "attend"].gram, tokens.T @ tokens, rtol=1e-4, atol=1e-4)
    query = graph.model.distilbert.transformer.layer[1].attention.q_lin.weight.abs().amax(0)
    assert (alone[1, "attend"].weight >= query.detach().numpy()).all()


def test_of_a_long_pass_some_tokens_tell_what_flows_in_together(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.arange(40)[None]
    monkeypatch.setattr(ranges, "TOGETHER", 13)
    found = ranges.measure(graph.model, [(ids, torch.ones_like(ids))])
    with torch.inference_mode():
        hidden = graph.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0]
    some = hidden[::4]
    np.testing.assert_allclose(found[1, "attend"].gram, some.T @ some, rtol=1e-4, atol=1e-4)


def test_nothing_is_left_behind_in_the_model(graph: Graph) -> None:
    ids = torch.ones(1, 4, dtype=torch.int64)
    ranges.measure(graph.model, [(ids, ids)])
    assert not any(module._forward_pre_hooks for module in graph.model.modules())
