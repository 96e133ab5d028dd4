"""One unit that denoises a label at any time between noise and label, for NoProp in continuous time.

References:
  Li, Teh, Pascanu. NoProp: Training Neural Networks without Full Back-propagation or Full
  Forward-propagation. arXiv 2503.24322, sections 3.2 and 3.3.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxlocal.diffusion import normal
from jaxlocal.layers import in_float32
from jaxlocal.models.noprop import Diffusion, Guess, ImageFeatures, LabelUnit, expected


class Labelled(NamedTuple):
    """What a unit of continuous time is trained on.

    Attributes:
      image: ``[b, h, w, c]``.
      label: ``[b]``.
    """

    image: Float[Array, "b h w c"]
    label: Int[Array, "b"]


class Terms(NamedTuple):
    """What a unit of continuous time is trained by, in float32 or wider.

    Attributes:
      error: ``[b]``, weighted squared distance to what is to be guessed.
      u: ``[b, d]``, the labels' embeddings.
      answer: ``[b, k]``, the output head's logits at the end of time.
      guess: ``[b, k]``, what the unit itself makes of the noised labels.
    """

    error: Float[Array, "b"]
    u: Float[Array, "b d"]
    answer: Float[Array, "b k"]
    guess: Float[Array, "b k"]


class LearnedSchedule(nn.Module):
    r"""A :math:`\gamma(t)` falling from ``end`` at time 0 to ``-end`` at 1; :math:`\mathrm{SNR}(t) = e^{-\gamma(t)}`.

    .. math:: \gamma = \gamma_1 + (\gamma_0 - \gamma_1)(1 - \bar\gamma(t)), \qquad
              \bar\gamma(t) = (f(t) - f(0)) / (f(1) - f(0))

    where :math:`f` is a network of two layers with positive weights (section 3.2).

    Attributes:
      end: :math:`\gamma_1 = -\gamma_0`.
      hidden: width of the network.
    """

    end: float
    hidden: int = 64

    @nn.compact
    def __call__(self, time: Float[Array, "b"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """The value and its derivative by time."""
        shape = (self.hidden,)
        slopes, weights = (
            nn.softplus(self.param(name, nn.initializers.normal(1.0), shape)).astype(time.dtype)
            for name in ("slopes", "weights")
        )
        shifts = self.param("shifts", nn.initializers.normal(1.0), shape).astype(time.dtype)

        def f(time: Array) -> tuple[Array, Array]:
            s = nn.sigmoid(time[:, None] * slopes + shifts)
            return s @ weights, (s * (1 - s)) @ (weights * slopes)

        (low, _), (high, _) = f(jnp.zeros_like(time)), f(jnp.ones_like(time))
        value, slope = f(time)
        fall = 2 * self.end / (high - low)
        return self.end - fall * (value - low), -fall * slope


class ContinuousUnit(nn.Module):
    """The whole network in continuous time: embeddings, output head, one denoiser, and the steps of a prediction.

    It is trained on :class:`Labelled` images, at a random time of each; an image alone is followed from noise at time 0
    to time 1, ``steps`` steps of the ordinary differential equation of either process.

    Labels, time and the sums of the steps are in float32, or wider if the images are: in bfloat16 a step of a
    thousandth would leave z where it is. Features and guesses are in the dtype of the images.

    Attributes:
      label: owner of embeddings and output head.
      width: relative to the paper's.
      dropout: after every convolution.
      flow: whether the unit guesses a velocity from noise to label, rather than the class under a learned schedule.
      sigma: noise around the straight lines of a flow.
      end: the schedule falls from it to its negative.
      steps: of a prediction.
      solver: ``euler`` or ``heun``.
    """

    label: LabelUnit
    width: float = 1.0
    dropout: float = 0.2
    flow: bool = False
    sigma: float = 0.0
    end: float = 7.0
    steps: int = 1000
    solver: str = "euler"

    @nn.compact
    def __call__(self, carry: Labelled | Float[Array, "b h w c"], *, train: bool) -> Terms | Float[Array, "b k"]:
        image = carry.image if isinstance(carry, Labelled) else carry
        start = jax.tree.map(in_float32, self.label(image, train=False))
        features = ImageFeatures(self.width, norm=False, dropout=self.dropout, name="image")(image, train=train)
        outputs = start.z.shape[1] if self.flow else self.label.classes
        guess = Guess(outputs, self.width, False, self.dropout, image.shape[1:], name="guess")
        schedule = None if self.flow else LearnedSchedule(self.end, name="schedule")
        if self.is_initializing():
            time = jnp.zeros(len(image))
            guess(features, start.z, time, train=train)
            if schedule:
                schedule(time)
        if isinstance(carry, Labelled) and train:
            draw = self._flow_terms if self.flow else self._diffusion_terms
            return draw(guess, schedule, features, start, start.table[carry.label])
        z = self._followed(guess, schedule, features, start)
        return start.answer(z) if start.kernel is not None else -distances(z, start.table)

    def _draw(self, u: Array) -> tuple[Array, Array]:
        """A time and noise for each example."""
        times, noise = jax.random.split(self.make_rng("dropout"))
        return jax.random.uniform(times, u.shape[:1], u.dtype), normal(noise, u)

    def _diffusion_terms(self, guess: Any, schedule: Any, features: Array, start: Diffusion, u: Array) -> Terms:
        time, noise = self._draw(u)
        gamma, slope = schedule(time)
        logits = in_float32(guess(features, _noised(u, gamma, noise), time, train=True))
        growth = -slope * jnp.exp(-gamma)  # of the signal-to-noise ratio
        distance = jnp.sum((expected(logits, start.table) - u) ** 2, axis=-1)
        end = _noised(u, schedule(jnp.ones_like(time))[0], self._draw(u)[1])
        return Terms(growth * distance, u, start.answer(end), logits)

    def _flow_terms(self, guess: Any, schedule: Any, features: Array, start: Diffusion, u: Array) -> Terms:
        del schedule
        time, noise = self._draw(u)
        at = time[:, None]
        z = at * u + (1 - at) * noise
        if self.sigma:
            z = z + self.sigma * self._draw(u)[1]
        velocity = in_float32(guess(features, z, time, train=True))
        error = jnp.sum((velocity - (u - noise)) ** 2, axis=-1)
        reached = z + (1 - at) * velocity
        nearest = -distances(reached, start.table)
        return Terms(error, u, nearest if start.kernel is None else start.answer(reached), nearest)

    def _followed(self, guess: Any, schedule: Any, features: Array, start: Diffusion) -> Array:
        """The end of the way from noise."""
        guess, of_guess = guess.unbind()
        if schedule:
            schedule, of_schedule = schedule.unbind()

        def velocity(z: Array, time: Array) -> Array:
            at = jnp.full(len(z), time)
            out = in_float32(guess.apply(of_guess, features, z, at, train=False))
            if self.flow:
                return out
            gamma, slope = (x[:, None] for x in schedule.apply(of_schedule, at))
            signal, noise = nn.sigmoid(-gamma), nn.sigmoid(gamma)
            u, mean = expected(out, start.table), jnp.sqrt(signal)
            growth = -slope * signal * noise / 2  # half of the signal's
            return growth / mean * u - growth / noise * (z - mean * u)

        def step(i: Any, z: Array) -> Array:
            now = i.astype(z.dtype) / self.steps
            first = velocity(z, now)
            if self.solver == "euler":
                return z + first / self.steps
            return z + (first + velocity(z + first / self.steps, now + 1 / self.steps)) / (2 * self.steps)

        return jax.lax.fori_loop(0, self.steps, step, start.z)


def _noised(u: Float[Array, "b d"], gamma: Float[Array, "b"], noise: Float[Array, "b d"]) -> Float[Array, "b d"]:
    r"""A draw from :math:`q(z_t \mid y)` at :math:`\mathrm{SNR} = e^{-\gamma}`."""
    mean, deviation = (jnp.sqrt(nn.sigmoid(x))[:, None] for x in (-gamma, gamma))
    return mean * u + deviation * noise


def distances(z: Float[Array, "b d"], table: Float[Array, "k d"]) -> Float[Array, "b k"]:
    """Squared distances to the class embeddings."""
    return jnp.sum((z[:, None] - table) ** 2, axis=-1)
