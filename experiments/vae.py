"""Variational autoencoders (Kingma & Welling 2014).

python -m experiments.vae                                # digits: train, sample, measure, draw
python -m experiments.vae --data mnist --manual-dir DIR  # 400 units, 20 latents, 20 epochs
python -m experiments.vae --latents 2                    # also draws the latent manifold
python -m experiments.vae --data moons                   # points in the plane
python -m experiments.vae --conditional                  # p(x|z, y)
python -m experiments.vae --sweep beta=0,1,4             # how latents collapse, in a picture
python -m experiments.vae --posterior iaf --prior flow   # beyond diagonal and standard normals
python -m experiments.vae --objective iwae --latent-samples 50
python -m experiments.vae --model made                   # p(x|z) pixel by pixel: z collapses
python -m experiments.vae --model pixelcnn --reach 1     # ... each of z and of its neighbours alone

Expect, with seed 0 on two CPU cores: digits, 21 s, test ELBO -22.6 nats and 500-sample
log-likelihood -22.4; MNIST, 2 minutes, test ELBO -99.1 and log-likelihood -94.9 (binarized).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

from flax import linen as nn

from jaxgen import runner
from jaxgen.data.records import DataSet, Image, Points
from jaxgen.losses import elbo
from jaxgen.losses.importance import dreg_loss, iwae_loss, stl_loss
from jaxgen.losses.latents import cyclical, warm_up
from jaxgen.models.vae import (
    ConvDecoder,
    ConvEncoder,
    FlowPrior,
    Head,
    MADEDecoder,
    MixturePrior,
    MLPDecoder,
    MLPEncoder,
    PixelCNNDecoder,
    StandardPrior,
    VampPrior,
    autoregressive_flow,
    committed_normal,
    full_normal,
    householder_flow,
    latent_normal,
    planar_flow,
)
from jaxgen.systems.bounds import (
    Discrepancy,
    Importance,
    NegativeElbo,
    Objective,
    Over,
    TotalCorrelation,
)
from jaxgen.systems.vae import (
    DIAGONAL,
    Likelihoods,
    Vae,
    annealed,
    bound,
    collapse,
    conditionals,
    interpolations,
    latents,
    log_likelihood,
    reconstructions,
    use_of_latents,
)

MODELS = {
    "mlp": (MLPEncoder, MLPDecoder),
    "conv": (ConvEncoder, ConvDecoder),
    "made": (MLPEncoder, MADEDecoder),
    "pixelcnn": (MLPEncoder, PixelCNNDecoder),
}
IN_ORDER = ("made", "pixelcnn")
OF_POINTS = ("gaussian", "learned_gaussian")
LIKELIHOODS = (
    "bernoulli",
    *OF_POINTS,
    "logistic",
    "logistic_mixture",
    "beta",
    "continuous_bernoulli",
)
POSTERIORS = (*DIAGONAL, "full", "planar", "householder", "iaf")
PRIORS = ("normal", "mixture", "vamp", "flow")
IMPORTANCE = {"iwae": iwae_loss, "stl": stl_loss, "dreg": dreg_loss}
OBJECTIVES = ("elbo", *IMPORTANCE, "tc", "mmd")


@dataclass(frozen=True)
class Config:
    """VAE on images or points."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    measured: Likelihoods = runner.measuring(Likelihoods)
    # mlp, conv, or a perceptron whose decoder makes x entry by entry, each of z and of those before
    # it, which is strong enough to do without z (see experiments.collapse): made or pixelcnn.
    model: str = "mlp"
    latents: runner.Count = 10  # Dimensions of z.
    hidden: runner.Count = 400  # Units of the hidden layers.
    layers: runner.Count = 1  # Hidden layers of the encoder and of the decoder (but for conv).
    channels: runner.Count = 32  # Of the decoder pixelcnn.
    reach: runner.Count = 5  # Pixels that it sees at the left, and rows above but one: its layers.
    # bernoulli (of images binarized at random), gaussian, learned_gaussian, logistic,
    # logistic_mixture, beta or continuous_bernoulli (default: bernoulli for grey images, logistic
    # for coloured ones, learned_gaussian for points).
    likelihood: str = "default"
    std: Annotated[float, runner.Range(1e-6)] = 0.2  # Of the gaussian likelihood.
    # q(z|x): normal (diagonal), committed (diagonal, each latent's KL at least --committed-rate),
    # full (every covariance), or a diagonal normal moved by planar, householder or iaf (inverse
    # autoregressive) steps.
    posterior: str = "normal"
    committed_rate: runner.NonNegative = 0.5  # Nats of each latent, of committed.
    posterior_steps: runner.Count = 2  # Of planar, householder and iaf.
    prior: str = "normal"  # p(z): normal, mixture, vamp or flow (autoregressive).
    prior_components: runner.Count = 100  # Of mixture and vamp.
    conditional: bool = False  # Tell the classes: q(z|x, y) and p(x|z, y).
    # elbo, iwae (importance-weighted; stl and dreg: with other gradients), tc (the total
    # correlation weighted) or mmd (with a discrepancy of q(z) and p(z)).
    objective: str = "elbo"
    beta: runner.NonNegative = 1.0  # Weight of the KL, of its total correlation for tc.
    latent_samples: runner.Count = 1  # Draws of z a training example.
    free_bits: runner.NonNegative = 0.0  # Nats of a latent's KL that cost nothing.
    kl_warmup: runner.Natural = 0  # Steps in which the KL's weight rises to beta.
    kl_cycles: runner.Natural = 0  # How often it rises anew, each time over half a cycle.
    mmd_weight: runner.NonNegative = 100.0  # Of mmd.


def build(config: Config, data: DataSet) -> Vae:
    """The VAE of the options."""
    likelihood, binary = likelihood_of(config, data)
    encoder_type, decoder_type = runner.choose("model", config.model, MODELS)
    layers = {} if config.model == "conv" else {"layers": config.layers}
    size = {"hidden": config.hidden, **layers}
    convolved = convolutions_of(config, data) if config.model == "pixelcnn" else {}
    return Vae(
        data,
        runner.make_optimizer(config.train),
        encoder_type(config.latents, head=head_of(config), **size),
        decoder_type(data.shape, maps=likelihood.maps, **size, **convolved),
        prior_of(config, data, binary),
        likelihood,
        config.latents,
        binary,
        objective_of(config, data),
        classes_of(config, data),
    )


def likelihood_of(config: Config, data: DataSet) -> tuple[elbo.Likelihood, bool]:
    """p(x|z), and whether it is of bits."""
    points = isinstance(data.kind, Points)
    usual = "learned_gaussian" if points else "logistic" if data.shape[-1] > 1 else "bernoulli"
    name = usual if config.likelihood == "default" else config.likelihood
    runner.choose("likelihood", name, LIKELIHOODS)
    if points and name not in OF_POINTS:
        raise ValueError("points have a density: use --likelihood learned_gaussian or gaussian.")
    likelihoods = {
        "bernoulli": elbo.bernoulli,
        "gaussian": partial(elbo.gaussian, config.std),
        "learned_gaussian": elbo.learned_gaussian,
        "logistic": lambda: elbo.discretized_logistic(data.levels),
        "logistic_mixture": lambda: elbo.logistic_mixture(data.levels, data.shape[-1]),
        "beta": lambda: elbo.beta(data.levels),
        "continuous_bernoulli": elbo.continuous_bernoulli,
    }
    likelihood = likelihoods[name]()
    if config.model == "made" and name == "logistic_mixture":
        raise ValueError("logistic_mixture couples channels itself: use --likelihood logistic.")
    if config.model in IN_ORDER:
        likelihood = elbo.in_order(likelihood)
    return likelihood, name == "bernoulli"


def convolutions_of(config: Config, data: DataSet) -> dict[str, Any]:
    """The options of the decoder pixelcnn."""
    if not isinstance(data.kind, Image):
        raise ValueError("pixelcnn is of images: use --model made.")
    coupled = config.likelihood == "logistic_mixture"
    groups = 1 if coupled else data.shape[-1]
    if config.channels % groups:
        raise ValueError(f"--channels are divided among {groups} colours: use a multiple.")
    return {"channels": config.channels, "reach": config.reach, "coupled": coupled}


def classes_of(config: Config, data: DataSet) -> int | None:
    """How many classes the networks are told of, if they are."""
    if config.conditional and config.prior == "vamp":
        raise ValueError("the inputs of --prior vamp have no class: use another with --conditional")
    return runner.classes_told(config.conditional, data)


def head_of(config: Config) -> Head:
    """What makes q(z|x) of the encoder's features."""
    steps = {"steps": config.posterior_steps}
    heads: dict[str, Head] = {
        "normal": latent_normal,
        "committed": partial(committed_normal, rate=config.committed_rate),
        "full": full_normal,
        "planar": partial(planar_flow, **steps),
        "householder": partial(householder_flow, **steps),
        "iaf": partial(autoregressive_flow, **steps),
    }
    return heads[runner.choose("posterior", config.posterior, POSTERIORS)]


def prior_of(config: Config, data: DataSet, binary: bool) -> nn.Module:
    """p(z)."""
    if config.posterior == "committed" and config.prior != "normal":
        raise ValueError(
            "a rate is committed to N(0, I): use --prior normal, or another posterior."
        )
    if config.prior == "vamp" and config.posterior != "normal":
        raise ValueError("the components of --prior vamp are posteriors: use --posterior normal.")
    count, low = config.prior_components, 0.0 if binary else -1.0
    priors = {
        "normal": lambda: StandardPrior(config.latents),
        "mixture": lambda: MixturePrior(config.latents, count),
        "vamp": lambda: VampPrior(data.shape, count, low),
        "flow": lambda: FlowPrior(config.latents),
    }
    return priors[runner.choose("prior", config.prior, PRIORS)]()


def objective_of(config: Config, data: DataSet) -> Objective:
    """What is descended."""
    name = runner.choose("objective", config.objective, OBJECTIVES)
    samples, weighed = config.latent_samples, weight_over_time(config)
    if name in IMPORTANCE:
        if config.beta != 1 or config.free_bits or config.kl_warmup or config.kl_cycles:
            raise ValueError(f"--objective {name} has no KL to weigh: leave out its options.")
        if name != "iwae" and config.posterior not in (*DIAGONAL, "full"):
            raise ValueError(f"--objective {name} takes --posterior normal or full: use iwae.")
        return Importance(IMPORTANCE[name], samples)
    if name == "elbo":
        return NegativeElbo(weighed, samples, config.free_bits)
    if config.free_bits or samples > 1:
        raise ValueError(
            f"--free-bits and --latent-samples are of --objective elbo, not of {name}: leave out."
        )
    if not 2 <= config.train.batch <= len(data.train):
        raise ValueError(
            f"--objective {name} is of a batch of 2 to {len(data.train)} examples: change --batch."
        )
    if name == "tc":
        if config.posterior not in DIAGONAL or config.prior != "normal":
            raise ValueError("--objective tc takes --posterior normal and --prior normal.")
        return TotalCorrelation(weighed, len(data.train))
    return Discrepancy(weighed, config.mmd_weight)


def weight_over_time(config: Config) -> Over:
    """The weight of the KL at a step."""
    if config.kl_warmup and config.kl_cycles:
        raise ValueError("--kl-cycles rise by themselves: leave out --kl-warmup.")
    if config.kl_cycles > config.train.steps:
        raise ValueError("--kl-cycles are of a step or more each: use fewer, or more --steps.")
    if config.kl_cycles:
        return lambda step: config.beta * cyclical(step, config.train.steps // config.kl_cycles)
    return lambda step: config.beta * warm_up(step, config.kl_warmup)


DIGITS = Config(
    train=runner.Train(
        steps=12_000, batch=128, ema=0.995, steps_per_call=50, log_every=200, checkpoint_every=3000
    )
)
MNIST = Config(
    train=runner.Train(
        steps=8600, batch=128, ema=0.999, steps_per_call=20, log_every=100, checkpoint_every=2140
    ),
    latents=20,
)
CIFAR10 = Config(
    train=runner.Train(steps=20_000, batch=128, ema=0.999, log_every=100, checkpoint_every=2000),
    model="conv",
    latents=64,
)
# Burda et al. 2016: two layers of 200 units, 50 latents.
BINARIZED = Config(
    train=runner.Train(
        steps=60_000,
        batch=128,
        decay="cosine",
        learning_rate=2e-3,
        ema=0.999,
        steps_per_call=50,
        log_every=500,
        checkpoint_every=5000,
    ),
    measured=Likelihoods(5000, 10_000),
    latents=50,
    hidden=200,
    layers=2,
)
POINTS = replace(
    DIGITS,
    latents=2,
    hidden=200,
    sampling=runner.Sampling(2048, 2048),
)
PRESETS = runner.by_data(
    digits=DIGITS,
    mnist=MNIST,
    fashion_mnist=MNIST,
    binarized_mnist=BINARIZED,
    cifar10=CIFAR10,
    points=POINTS,
)
EXPERIMENT = runner.Experiment(
    "vae",
    __doc__,
    PRESETS,
    build,
    pictures=(runner.samples, conditionals, reconstructions, interpolations, latents),
    measures=(bound, log_likelihood, annealed, use_of_latents, runner.quality),
    comparisons=(collapse,),
    kinds=(Image, Points),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
