import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.vae import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder

PAIRS = [(MLPEncoder, MLPDecoder), (ConvEncoder, ConvDecoder)]


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 10, 3)])
@pytest.mark.parametrize("maps", [1, 2])
def test_maps_have_the_image_size_and_every_latent_matters(key, encoder, decoder, shape, maps):
    x = jax.random.normal(key, (3, *shape))
    q, _ = encoder(4, hidden=32).init_with_output(key, x)
    assert q.mean.shape == q.log_std.shape == (3, 4)
    assert not np.allclose(q.mean[0], q.mean[1])
    model = decoder(shape, maps=maps, hidden=32)
    out, variables = model.init_with_output(key, q.mean)
    assert out.shape == (3, *shape[:2], maps * shape[2])
    jacobian = jax.jacobian(lambda z: model.apply(variables, z[None])[0])(q.mean[0])
    assert (jnp.abs(jacobian).max(axis=(0, 1, 2)) > 0).all()
