import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from revision_jax.config import ConfigError, LoraConfig
from revision_jax.models.layers import GatedMlp, LayerNorm, LoraLinear, Mlp, RMSNorm, activate

X = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)


def test_norms_equal_their_formulas():
    scale, bias = np.linspace(0.5, 2, 8, dtype=np.float32), np.linspace(-1, 1, 8, dtype=np.float32)
    wide = X.astype(np.float64) + 100.0  # a mean far from zero: E[x^2] - E[x]^2 would lose it
    normed = LayerNorm(1e-6).apply({"params": {"scale": scale, "bias": bias}}, jnp.asarray(X + 100.0))
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6) * scale + bias
    np.testing.assert_allclose(normed, expected, atol=1e-4)
    expected = X / np.sqrt((X.astype(np.float64) ** 2).mean(-1, keepdims=True) + 0.1) * scale
    np.testing.assert_allclose(RMSNorm(0.1).apply({"params": {"scale": scale}}, jnp.asarray(X)), expected, atol=1e-6)


@pytest.mark.parametrize("norm", [LayerNorm(1e-6), RMSNorm(1e-6)])
def test_norm_statistics_are_float32(norm):
    x = jnp.full((1, 4096), 300.0, jnp.float16).at[:, ::2].set(-300.0)  # the sum of squares overflows float16
    out = norm.apply(norm.init(jax.random.key(0), x), x)
    assert out.dtype == jnp.float16
    np.testing.assert_allclose(np.abs(np.asarray(out, np.float32)), 1.0, atol=1e-2)


def test_activations_equal_their_formulas():
    x = np.linspace(-4, 4, 41)
    expected = {
        "gelu": 0.5 * x * (1 + erf(x / np.sqrt(2))),
        "gelu_tanh": 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
        "quick_gelu": x / (1 + np.exp(-1.702 * x)),
        "silu": x / (1 + np.exp(-x)),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(activate(jnp.asarray(x, jnp.float32), name), value, atol=1e-6)
    with pytest.raises(ConfigError, match="'swish' is not one of"):
        activate(jnp.zeros(1), "swish")


LORA = LoraConfig(rank=3, alpha=6.0, dropout=0.5)


def lora_variables(module, seed=0):
    variables = module.init({"params": jax.random.key(seed), "lora": jax.random.key(seed + 1)}, jnp.asarray(X))
    filled = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(5), leaf.shape), variables["lora"])
    return variables, {**variables, "lora": filled}


def test_the_gradients_of_lora_are_those_of_its_formula():
    module = LoraLinear(5, use_bias=True, lora=LORA)
    _, filled = lora_variables(module)

    def formula(lora, x):
        return jnp.sum(jnp.sin(x @ filled["params"]["kernel"] + filled["params"]["bias"] + 2.0 * (x @ lora["a"]) @ lora["b"]))

    def layer(lora, x):
        return jnp.sum(jnp.sin(module.apply({"params": filled["params"], "lora": lora}, x)))

    found, expected = (jax.jit(jax.grad(run, argnums=(0, 1)))(filled["lora"], jnp.asarray(X)) for run in (layer, formula))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def test_fresh_lora_changes_nothing_and_filled_lora_is_its_formula():
    module = LoraLinear(5, use_bias=True, lora=LORA)
    variables, filled = lora_variables(module)
    assert set(variables) == {"params", "lora"} and variables["lora"]["a"].shape == (8, 3) and variables["lora"]["b"].shape == (3, 5)
    assert (variables["lora"]["a"] != 0).all() and (variables["lora"]["b"] == 0).all()
    plain = module.apply({"params": variables["params"]}, jnp.asarray(X))
    np.testing.assert_array_equal(plain, LoraLinear(5, use_bias=True).apply({"params": variables["params"]}, jnp.asarray(X)))
    np.testing.assert_array_equal(module.apply(variables, jnp.asarray(X)), plain)
    expected = X @ (variables["params"]["kernel"] + 2.0 * filled["lora"]["a"] @ filled["lora"]["b"])
    np.testing.assert_allclose(module.apply(filled, jnp.asarray(X)), expected, atol=1e-4)


def test_rank_zero_makes_no_collection():
    assert set(LoraLinear(5, lora=LoraConfig(rank=0)).init(jax.random.key(0), jnp.asarray(X))) == {"params"}


def test_lora_dropout_leaves_the_base_path_alone():
    module = LoraLinear(5, lora=LORA)
    variables, filled = lora_variables(module)
    dropped = module.apply(filled, jnp.asarray(X), False, rngs={"dropout": jax.random.key(0)})
    assert np.abs(dropped - module.apply(filled, jnp.asarray(X))).max() > 1e-2
    np.testing.assert_array_equal(
        module.apply(variables, jnp.asarray(X), False, rngs={"dropout": jax.random.key(0)}), module.apply({"params": variables["params"]}, jnp.asarray(X))
    )


def test_rank_stabilised_scale():
    assert LoraConfig(rank=4, alpha=8.0).scale == 2.0 and LoraConfig(rank=4, alpha=8.0, rank_stabilised=True).scale == 4.0


def test_gradient_reaches_the_lora_alone_when_asked():
    module = LoraLinear(5, lora=LORA)
    variables, _ = lora_variables(module)
    gradient = jax.grad(lambda lora: jnp.square(module.apply({**variables, "lora": lora}, jnp.asarray(X))).sum())(variables["lora"])
    assert (gradient["b"] != 0).any() and (gradient["a"] == 0).all()  # b is zero, so nothing reaches a yet


def test_mlps_equal_their_formulas():
    module = Mlp(6, "gelu", features=4)
    params = module.init(jax.random.key(0), jnp.asarray(X))["params"]
    hidden = X @ params["fc1"]["kernel"] + params["fc1"]["bias"]
    expected = np.asarray(0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))) @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    np.testing.assert_allclose(module.apply({"params": params}, jnp.asarray(X)), expected, atol=1e-5)
    module = GatedMlp(6, lora=LoraConfig(rank=2))
    variables = module.init({"params": jax.random.key(0), "lora": jax.random.key(1)}, jnp.asarray(X))
    gate, up, down = (variables["params"][name]["kernel"] for name in ("gate", "up", "down"))
    expected = (X @ gate / (1 + np.exp(-X @ gate)) * (X @ up)) @ down
    np.testing.assert_allclose(module.apply(variables, jnp.asarray(X)), expected, atol=1e-5)
    assert set(variables["lora"]) == {"gate", "up", "down"}
