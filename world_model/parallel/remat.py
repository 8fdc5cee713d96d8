"""Policies of what the backward pass recomputes instead of keeping, by name (`train.remat`)."""

from collections.abc import Callable

import jax

# Names of values inside a layer that a policy may keep.
ATTENDED = "attended"  # self-attention's output and log-sum-exp, as its kernel leaves them
MLP_OUTPUT = "mlp_output"
MLP_HIDDEN = "mlp_hidden"  # the MLP's first product
ATTENTION_OUTPUT = "attention_output"  # the last products of self-attention and cross-attention
PROJECTED = "projected"  # queries, keys and values, before they are normalised

_policies = jax.checkpoint_policies


def _is_cudnn(primitive, *_, **__) -> bool:
    """Whether a value comes from jax.nn.dot_product_attention's kernel, which cannot be named from outside."""
    return primitive.name.startswith("dot_product_attention_fwd")


def _keep(policy: Callable) -> Callable:
    return _policies.save_from_both_policies(policy, _is_cudnn)


# name -> jax.checkpoint policy, which says what the backward pass finds of a layer; from least memory to least work.
POLICIES = {
    # It keeps the layer's input alone.
    "full": _policies.nothing_saveable,
    # It keeps what costs most to make again per byte: attention, and the second product of the MLP.
    "lean": _keep(_policies.save_only_these_names(ATTENDED, MLP_OUTPUT)),
    # It also keeps the rest of what is added to the tokens.
    "added": _keep(_policies.save_only_these_names(ATTENDED, MLP_OUTPUT, ATTENTION_OUTPUT)),
    # It keeps all that is D wide: the first product of the MLP and element-wise work are done again.
    "wide": _keep(_policies.save_only_these_names(ATTENDED, MLP_OUTPUT, ATTENTION_OUTPUT, PROJECTED)),
    # It keeps attention and the products of tokens with weights: element-wise work and cross-attention are done again.
    "dots": _keep(_policies.save_only_these_names(ATTENDED, MLP_OUTPUT, MLP_HIDDEN, ATTENTION_OUTPUT, PROJECTED)),
    # It keeps every matrix product, attention's too: element-wise work alone is done again. This is the default away
    # from known chips: a loop stacks what it keeps, and a CPU takes longer to write and read that than to recompute it.
    "products": _keep(_policies.dots_saveable),
}

# policy -> (D-wide, MLP-wide) arrays kept per token and layer, the layer's input among them; for estimates of memory.
KEPT = {"full": (1, 0), "lean": (3, 0), "added": (5, 0), "wide": (9, 0), "dots": (9, 1)}


def remat(fn: Callable, name: str) -> Callable:
    """Puts `fn`, the body of the scan over layers, under the named policy; `none` keeps everything.

    Raises ValueError listing the names where `name` is none of them.
    """
    if name == "none":
        return fn
    if name not in POLICIES:
        raise ValueError(f"train.remat = {name!r} is no policy; there are none, {', '.join(POLICIES)}")
    # Forward and backward of a scan are two loops. No common-subexpression pass merges them: no barrier is needed.
    return jax.checkpoint(fn, policy=POLICIES[name], prevent_cse=False)
