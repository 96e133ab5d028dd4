"""An update that is made only where everything is finite, in the memory of the state that it changes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool


def checked(gradient: Any, others: Any) -> tuple[Any, Bool[Array, ""]]:
    """The gradient itself, and whether it and ``others``, squared, are finite.

    Its leaves are looked at one by one: a barrier over all of them, or none, lets the compiler put gradients
    off and keep what they need.
    """
    leaves, structure = jax.tree.flatten(gradient)
    seen = [jax.lax.optimization_barrier((leaf, jnp.sum(leaf * leaf))) for leaf in leaves]
    squares = [square for _, square in seen] + [jnp.sum(x * x) for x in jax.tree.leaves(others)]
    finite = jnp.isfinite(sum(squares))  # one: quick to compile
    return jax.tree.unflatten(structure, [leaf for leaf, _ in seen]), finite


def changed_if(finite: Bool[Array, ""], change: Callable[[Any, Any], Any], state: Any, by: Any) -> Any:
    """``change(state, by)`` where ``finite``, else ``state``.

    Compilers of GPUs and TPUs make a choice between new and old values in place. That of CPUs would keep both, so
    there it is a branch. Of several seeds (under :func:`jax.vmap`) all take it together; but where one of them is
    not finite, one after another.

    Args:
      finite: whether to change.
      change: ``(state, by) -> state`` of the same shapes and dtypes; closes over no array.
      state: a pytree of arrays.
      by: a pytree of arrays.
    """

    def choice(finite: Array, state: Any, by: Any) -> Any:
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), change(state, by), state)

    def branch(finite: Array, state: Any, by: Any) -> Any:
        return jax.lax.cond(finite, change, lambda state, by: state, state, by)

    guarded = custom_vmap(branch)

    @guarded.def_vmap
    def seeds(size: int, batched: Any, *args: Any) -> tuple[Any, Any]:
        def stacked(x: Array, is_batched: bool) -> Array:
            return x if is_batched else jnp.broadcast_to(x, (size, *x.shape))

        finite, state, by = jax.tree.map(stacked, args, tuple(batched))

        def one_by_one(state: Any, by: Any) -> Any:
            def one(i: Array, state: Any) -> Any:
                its = jax.tree.map(lambda x: x[i], (finite, state, by))
                return jax.tree.map(lambda x, new: x.at[i].set(new), state, branch(*its))

            return jax.lax.fori_loop(0, size, one, state)

        new = jax.lax.cond(jnp.all(finite), jax.vmap(change), one_by_one, state, by)
        return new, jax.tree.map(lambda _: True, new)

    return jax.lax.platform_dependent(finite, state, by, cpu=guarded, default=choice)
