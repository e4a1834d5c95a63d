"""Top-k and random-k with error feedback, against a transcription of Stich et al. in float64."""

from __future__ import annotations

import numpy as np
import pytest
from papers import SHAPES, Changes, Client, assert_near, change

from fl_darex.compression import METHODS, Terms, Uplink
from fl_darex.masks import ONE, keep_threshold
from fl_darex.positions import SeededMask
from fl_darex.wire.reader import read_packet

ROUNDS = 12


def top(numbers: np.ndarray, count: int) -> np.ndarray:
    """The operator top_k of the paper: all but the k largest magnitudes are 0."""
    kept = np.zeros_like(numbers)
    where = np.argsort(-np.abs(numbers.reshape(-1)), kind="stable")[:count]
    kept.reshape(-1)[where] = numbers.reshape(-1)[where]
    return kept


def sparsified(changes: list[Changes], count: dict[str, int]) -> list[Changes]:
    """Algorithm 1 of the paper, with a memory m of each tensor and a change for eta * grad."""
    memory = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    said = []
    for one in changes:
        g = {name: top(memory[name] + one[name], count[name]) for name in one}
        memory = {name: memory[name] + one[name] - g[name] for name in one}
        said.append(g)
    return said


def test_top_k_is_the_papers_algorithm_tensor_by_tensor() -> None:
    client, changes = Client("topk", 0.9), [change(0, t) for t in range(1, ROUNDS + 1)]
    # A tenth of the entries, rounded half up.
    count = {name: int(np.prod(shape) / 10 + 0.5) for name, shape in SHAPES.items()}
    assert count == {"a.weight": 7, "b.bias": 1, "c.weight": 6, "d": 4}
    for t, expected in enumerate(sparsified(changes, count), start=1):
        assert_near(client.sent(changes[t - 1], t), expected)
    # What is left is what all changes were, less all that was sent.
    assert any(np.abs(rest).max() > 1 for rest in client.state.values())


def test_top_k_over_the_whole_model_is_the_papers_algorithm_on_one_vector() -> None:
    client = Client("topk", 0.95, options={"scope": "global"})
    memory = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for t in range(1, ROUNDS + 1):
        now = change(0, t)
        summed = {name: memory[name] + now[name] for name in now}
        flat = np.concatenate([summed[name].reshape(-1) for name in sorted(now)])
        kept, start, expected = top(flat, round(flat.size * 0.05)), 0, {}
        for name in sorted(now):
            expected[name] = kept[start : start + now[name].size].reshape(now[name].shape)
            start += now[name].size
        assert_near(client.sent(now, t), expected)
        memory = {name: summed[name] - expected[name] for name in now}


def test_without_feedback_top_k_is_magnitude_pruning() -> None:
    plain, other = Client("topk", 0.8, options={"feedback": False}), Client("magnitude", 0.8)
    for t in range(1, 4):
        now = change(1, t)
        assert_near(plain.sent(now, t), other.sent(now, t), 0)
        assert plain.state == {}
    fed = Client("topk", 0.8)
    assert_near(fed.sent(change(1, 1), 1), other.sent(change(1, 1), 1), 0)
    apart = fed.sent(change(1, 2), 2), other.sent(change(1, 2), 2)
    assert any((apart[0][name] != apart[1][name]).any() for name in SHAPES)


@pytest.mark.parametrize("mask", ["client", "round", "disjoint"])
@pytest.mark.parametrize("count", ["random", "exact"])
def test_random_k_sends_seeded_entries_as_they_are_and_the_others_wait(
    mask: str, count: str
) -> None:
    clients = [Client("randk", 0.75, slot=slot, mask=mask, count=count) for slot in (0, 1)]
    memories = [{name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in clients]
    exact, apart = count == "exact", mask == "disjoint"
    for t in range(1, ROUNDS + 1):
        for slot, (client, memory) in enumerate(zip(clients, memories, strict=True)):
            drawn = SeededMask(
                *(3, t, -1 if mask == "round" else slot, ONE // 4), exact, disjoint=apart
            )
            now = change(slot, t)
            where = drawn.in_layout(client.uplink.layout(now))
            expected = {}
            for name, array in now.items():
                summed = (memory[name] + array).reshape(-1)
                kept = np.zeros_like(summed)
                kept[where[name]] = summed[where[name]]
                expected[name] = kept.reshape(array.shape)
                memory[name] = (summed - kept).reshape(array.shape)
            assert_near(client.sent(now, t), expected)
            # No positions travel, and q is 1.
            header = read_packet(client.packet, client.uplink.layout(now)).header
            assert (header.position_bytes, header.q) == (0, 1.0)


def test_random_k_delivers_everything_in_the_end() -> None:
    client, once = Client("randk", 0.75), change(0, 1)
    nothing = {name: np.zeros_like(array) for name, array in once.items()}
    total = client.sent(once, 1)
    for t in range(2, 60):  # an entry waits on with a probability of .75^58, about 6e-8
        moved = client.sent(nothing, t)
        total = {name: total[name] + moved[name] for name in total}
    assert_near(total, once)


def test_a_coarse_coding_is_fed_back_too() -> None:
    client, summed, total = Client("topk", 0.9, values="sign"), 0.0, 0.0
    for t in range(1, 30):
        now = {name: array.astype(np.float32) for name, array in change(0, t).items()}
        summed = summed + now["a.weight"]
        total = total + client.sent(now, t)["a.weight"]
        left = client.state["a.weight"].reshape(8, 9)
        np.testing.assert_allclose(total + left, summed, atol=1e-4)


@pytest.mark.parametrize("method", ["topk", "randk"])
@pytest.mark.parametrize("q", [0.5, "q-v", "server-validation", "curvature"])
def test_what_is_fed_back_is_not_divided(method: str, q: object) -> None:
    with pytest.raises(ValueError, match=r"^q = .* (both would be too much|for masks|drawn)"):
        Uplink.of(method, 0.9, q=q)
    assert Uplink.of(method, 0.9, q=1).divisor == Uplink.of(method, 0.9).divisor == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"mask": "auto"}, r"^mask = 'auto' measures how much clients' changes agree"),
        ({"rotate": False}, r"^rotate = False changes the same entries only"),
        ({"mask_first": True, "mask": "round"}, r"^mask_first = True changes the same entries"),
    ],
)
def test_settings_that_feedback_has_no_use_for_are_refused(
    settings: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Uplink.of("randk", 0.9, **settings)


def test_random_k_reads_its_terms_as_they_were_said() -> None:
    terms = Terms(Uplink.of("randk", 0.9, seed=1), round=4, slot=2)
    config: dict[str, object] = {}
    terms.attach(config)
    assert Terms.detach(config) == terms
    assert terms.uplink.divisor == 1.0 and terms.drawn.keep == keep_threshold(0.9)
    assert METHODS["randk"].remembers and METHODS["topk"].remembers
