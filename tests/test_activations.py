import numpy as np
import pytest
import torch

from fl_darex.activations import evaluating, layer_inputs


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(3, 4)
        self.second = torch.nn.Linear(4, 2)
        self.unused = torch.nn.Linear(2, 2)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x, attention_mask=None):
        return self.second(self.drop(self.first(x)))


def test_moments_are_those_of_all_tokens_of_all_batches_whatever_their_sizes():
    torch.manual_seed(0)
    net, x = Net(), torch.randn(7, 5, 3)
    whole = layer_inputs(net, [{"x": x}])
    parts = layer_inputs(net, [{"x": x[:1]}, {"x": x[1:]}])
    rows = x.reshape(-1, 3).double().numpy()
    for found in (whole, parts):
        assert set(found) == {"first.weight", "second.weight"}
        np.testing.assert_allclose(found["first.weight"].mean, rows.mean(0), atol=1e-12)
        np.testing.assert_allclose(
            found["first.weight"].norm, np.linalg.norm(rows, axis=0), rtol=1e-12
        )
        assert found["first.weight"].count == 35
    np.testing.assert_allclose(whole["second.weight"].mean, parts["second.weight"].mean, atol=1e-6)
    np.testing.assert_allclose(whole["first.weight"].absolute, np.abs(rows).mean(0), rtol=1e-12)


def test_padding_does_not_count():
    net, x = Net(), torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    found = layer_inputs(net, [{"x": x, "attention_mask": mask}])["first.weight"]
    kept = x[mask.bool()].double().numpy()
    assert found.count == 4
    np.testing.assert_allclose(found.mean, kept.mean(0), atol=1e-12)


def test_no_hook_stays_and_modes_come_back():
    net = Net()
    net.train()
    net.drop.train(False)
    layer_inputs(net, [{"x": torch.zeros(1, 3)}])
    assert net.training and not net.drop.training
    assert not any(module._forward_pre_hooks for module in net.modules())
    with pytest.raises(RuntimeError), evaluating(net):
        raise RuntimeError
    assert net.training


def test_a_tied_weight_has_its_first_name():
    net = Net()
    net.second = torch.nn.Linear(4, 4)
    net.last = torch.nn.Linear(4, 4)
    net.last.weight = net.second.weight
    net.forward = lambda x: net.last(net.second(net.first(x)))
    found = layer_inputs(net, [{"x": torch.randn(6, 3)}])
    assert set(found) == {"first.weight", "second.weight"}
    assert found["second.weight"].count == 12


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        layer_inputs(Net(), [])
