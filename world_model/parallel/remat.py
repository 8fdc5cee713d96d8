"""What the backward pass recomputes instead of keeping, by name (`train.remat`)."""

from collections.abc import Callable

import jax

ATTENDED = "attended"  # output of self-attention (and its log-sum-exp), as its kernel leaves it
MLP_OUTPUT = "mlp_output"
MLP_HIDDEN = "mlp_hidden"  # its first product
ATTENTION_OUTPUT = "attention_output"  # of self-attention's and cross-attention's last product
PROJECTED = "projected"  # queries, keys and values, before they are normalised

_policies = jax.checkpoint_policies


def _by_cudnn(primitive, *_, **__) -> bool:
    """Output and log-sum-exp of jax.nn.dot_product_attention's kernel, which cannot be named from outside."""
    return primitive.name.startswith("dot_product_attention_fwd")


def _keep(policy: Callable) -> Callable:
    return _policies.save_from_both_policies(policy, _by_cudnn)


# name -> jax.checkpoint policy: which values inside a block are kept for the backward pass. From least memory to
# least work.
POLICIES = {
    "full": _policies.nothing_saveable,  # the block's input alone
    # What costs most to make again per byte: attention, and the second product of the MLP.
    "lean": _keep(_policies.save_only_these_names(ATTENDED, MLP_OUTPUT)),
    # And all that is added to the tokens.
    "added": _keep(_policies.save_only_these_names(ATTENDED, MLP_OUTPUT, ATTENTION_OUTPUT)),
    # And all that is D wide: the first product of the MLP and element-wise work are done again.
    "wide": _keep(_policies.save_only_these_names(ATTENDED, MLP_OUTPUT, ATTENTION_OUTPUT, PROJECTED)),
    # Outputs of all products of tokens with weights, and of attention: element-wise work and cross-attention are done
    # again.
    "dots": _keep(_policies.save_only_these_names(ATTENDED, MLP_OUTPUT, MLP_HIDDEN, ATTENTION_OUTPUT, PROJECTED)),
    # Keep every matrix product, attention's too: element-wise work alone is done again. The default: a loop stacks
    # what it keeps, and on a CPU writing and reading that costs more than the work.
    "products": _keep(_policies.dots_saveable),
}

# policy -> (D-wide, MLP-wide) arrays kept per token and block, the block's input among them; for reckoning memory.
KEPT = {"full": (1, 0), "lean": (3, 0), "added": (5, 0), "wide": (9, 0), "dots": (9, 1)}


def remat(fn: Callable, name: str) -> Callable:
    """`fn` (a transformer block: the body of the scan over layers) under the named policy; `none` keeps all.

    Raises ValueError listing the names where `name` is none of them.
    """
    if name == "none":
        return fn
    if name not in POLICIES:
        raise ValueError(f"train.remat = {name!r} is no policy; there are none, {', '.join(POLICIES)}")
    # Inside a scan forward and backward are two loops, which no common-subexpression pass merges: no barrier.
    return jax.checkpoint(fn, policy=POLICIES[name], prevent_cse=False)
