"""Each head against somebody else's implementation, its start, and its options."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.neural_network import MLPClassifier
from torch import nn

from tl_experiments.config.compose import choices, conf_dir
from tl_experiments.config.heads import KNN, MLP, AttentionPool, Cosine, Head, Linear, Logistic, Ridge
from tl_experiments.errors import ConfigError
from tl_experiments.heads import build_head

HEADS: dict[str, Any] = {"linear": Linear, "mlp": MLP, "cosine": Cosine, "attention_pool": AttentionPool}
SOLVED: dict[str, Any] = {"ridge": Ridge, "logistic": Logistic, "knn": KNN}
DIM, CLASSES = 16, 5


def features(cfg: Head, n: int = 7) -> torch.Tensor:
    shape = (n, 9, DIM) if cfg.reads_tokens else (n, DIM)
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 1


def trained(head: nn.Module) -> nn.Module:
    """With weights as large as after training, so that nothing hides behind a small start."""
    torch.manual_seed(2)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head.eval()


def test_every_choice_is_tested_and_its_yaml_states_the_defaults():
    assert set(choices("head")) == set(HEADS | SOLVED)
    for name, cls in (HEADS | SOLVED).items():
        stated = OmegaConf.to_container(OmegaConf.load(conf_dir() / "head" / f"{name}.yaml"))
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(cls()).items()}
        assert stated == plain


@pytest.mark.parametrize("name", HEADS)
def test_the_same_seed_is_the_same_start_and_leaves_the_global_stream_alone(name):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, two, other = (build_head(HEADS[name](), DIM, CLASSES, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", HEADS)
def test_the_start_prefers_no_class(name):
    cfg = HEADS[name]()
    head = build_head(cfg, DIM, 40, seed=0).eval()
    assert head(features(cfg)).shape == (7, 40)
    if name == "cosine":  # directions, whose cosines are small beside the 1 at which a class is certain
        assert torch.allclose(head.weight.norm(dim=1).mean(), torch.tensor(1.0), atol=0.1)
    else:
        last = [layer for layer in head.modules() if isinstance(layer, nn.Linear)][-1]
        assert last.weight.std().item() == pytest.approx(0.01, rel=0.15)
        assert not last.bias.any()


def test_linear_is_torchs():
    head = trained(build_head(Linear(dropout=0.5), DIM, CLASSES, seed=0))
    x = features(Linear())
    assert {name for name, _ in head.named_parameters()} == {"weight", "bias"}
    assert torch.equal(head(x), nn.functional.linear(x, head.weight, head.bias))


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("hidden", [(8,), (12, 6)], ids=str)
def test_mlp_is_scikit_learns(activation, hidden):
    head = trained(build_head(MLP(hidden_sizes=hidden, activation=activation, dropout=0.3), DIM, CLASSES, seed=0))
    x = features(MLP()).double()
    layers = [layer for layer in head.double() if isinstance(layer, nn.Linear)]
    reference = MLPClassifier(hidden, activation=activation, max_iter=1)
    reference.partial_fit(x.numpy(), np.arange(7) % CLASSES, classes=np.arange(CLASSES))
    reference.coefs_ = [layer.weight.detach().numpy().T for layer in layers]
    reference.intercepts_ = [layer.bias.detach().numpy() for layer in layers]
    probabilities = head(x).softmax(1).detach().numpy()
    np.testing.assert_allclose(probabilities, reference.predict_proba(x.numpy()), rtol=1e-9)


@pytest.mark.parametrize(("activation", "function"), [("gelu", nn.functional.gelu), ("silu", nn.functional.silu)])
def test_mlp_norms_before_it_activates(activation, function):
    head = trained(build_head(MLP(hidden_sizes=(8,), activation=activation, layer_norm=True), DIM, CLASSES, seed=0))
    x = features(MLP())
    hidden = nn.functional.layer_norm(head[0](x), (8,), head[1].weight, head[1].bias)
    torch.testing.assert_close(head(x), head[-1](function(hidden)))


@pytest.mark.parametrize("learn", [True, False])
def test_cosine_is_torchs(learn):
    head = build_head(Cosine(temperature=0.05, learn_temperature=learn), DIM, CLASSES, seed=0).eval()
    x = features(Cosine())
    expected = nn.functional.cosine_similarity(x[:, None], head.weight[None], dim=2) / 0.05
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head(100 * x), expected)  # the length does not count
    head(x).square().sum().backward()
    assert ("log_temperature" in dict(head.named_parameters())) == learn
    assert not learn or head.log_temperature.grad != 0


def test_cosine_of_nothing_is_finite():
    head = build_head(Cosine(), DIM, CLASSES, seed=0)
    x = torch.zeros(1, DIM, requires_grad=True)
    head(x).sum().backward()
    assert torch.equal(head(x), torch.zeros(1, CLASSES))
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_pool_is_torchs_attention(num_heads):
    head = trained(build_head(AttentionPool(num_heads=num_heads), DIM, CLASSES, seed=0))
    tokens = features(AttentionPool())
    reference = nn.MultiheadAttention(DIM, num_heads, batch_first=True)
    with torch.no_grad():  # its query and output projections do nothing here
        reference.in_proj_weight.copy_(torch.cat([torch.eye(DIM), head.key.weight, head.value.weight]))
        reference.in_proj_bias.copy_(torch.cat([torch.zeros(2 * DIM), head.value.bias]))
        reference.out_proj.weight.copy_(torch.eye(DIM))
        reference.out_proj.bias.zero_()
    normed = nn.functional.layer_norm(tokens, (DIM,), head.norm.weight, head.norm.bias)
    pooled, _ = reference(head.query.expand(7, 1, DIM), normed, normed)
    torch.testing.assert_close(head(tokens), head.classifier(pooled[:, 0]), rtol=1e-4, atol=1e-5)


def test_attention_pool_does_not_mind_the_order_of_tokens():
    head = trained(build_head(AttentionPool(), DIM, CLASSES, seed=0))
    tokens = features(AttentionPool())
    torch.testing.assert_close(head(tokens), head(tokens.flip(1)))
    assert not torch.allclose(head(tokens), head(tokens[:, 1:]), atol=1e-3)


def test_attention_heads_must_divide_the_features():
    with pytest.raises(ConfigError, match=r"head.num_heads: got 8, .* the 386 dimensions .* -> give one of 1, 2$"):
        build_head(AttentionPool(), 386, CLASSES, seed=0)


@pytest.mark.parametrize("name", HEADS)
def test_dropout_acts_in_training_only(name):
    cfg = HEADS[name](dropout=0.5)
    head, x = trained(build_head(cfg, DIM, CLASSES, seed=0)), features(cfg)
    assert torch.equal(head(x), head(x))
    head.train()
    assert not torch.equal(head(x), head(x))
    off = trained(build_head(HEADS[name](), DIM, CLASSES, seed=0)).train()
    assert torch.equal(off(x), off(x))


def test_the_share_of_dropped_features_is_the_configs():
    head = build_head(Linear(dropout=0.3), 10_000, 2, seed=0).train()
    nn.init.ones_(head.weight)
    # n units kept with probability 0.7 and scaled by 1 / 0.7: mean n, standard deviation sqrt(0.3 / 0.7 n)
    assert head(torch.ones(1, 10_000)).mean().item() == pytest.approx(10_000, abs=4 * (0.3 / 0.7 * 10_000) ** 0.5)
