"""Laws: what is drawn, its mean, and its posterior behind noise, against enumeration."""

import numpy as np
import pytest
import torch
from toy_law import ARCHS, POINTS, law, noisy

from nag.laws import ListLaw, UniformLaw, random_list, sde_of
from nag.sde import centre, uncentre
from nag.spaces import SPACES
from nag.spaces.toy import TOY

torch.set_num_threads(1)

UNIFORM = UniformLaw(TOY)
CHOSEN = (3, 50, 50, 100, 143)  # one of them twice
LIST = ListLaw(TOY, tuple(ARCHS[i] for i in CHOSEN), {"file": "list.txt"})


def weights(of):
    """Probability of each of the 144 architectures, (144,)."""
    if of is UNIFORM:
        return law()
    return torch.bincount(torch.tensor(CHOSEN), minlength=144).double() / len(CHOSEN)


@pytest.fixture(params=[UNIFORM, LIST], ids=["uniform", "list"])
def either(request):
    return request.param


# The contract.


def test_mean_is_that_of_the_enumerated_law(either):
    expected = torch.einsum("a,anf->nf", weights(either), uncentre(POINTS))
    torch.testing.assert_close(either.mean.double(), expected, atol=1e-6, rtol=0)


def test_draws_follow_the_law(either, rng):
    n = 20_000
    v = either.draw(n, rng)
    assert v.shape == (n, 4, 3)
    assert v.dtype == torch.float32
    index = {arch: i for i, arch in enumerate(ARCHS)}
    found = torch.bincount(torch.tensor([index[arch] for arch in TOY.decode(v)]), minlength=144)
    p = weights(either)
    assert (found[p == 0] == 0).all()
    error = (p * (1 - p) / n).sqrt()
    assert ((found / n - p).abs() <= 5 * error).all()


def test_draws_are_a_function_of_the_generator(either):
    first, again, other = (either.draw(50, np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_posterior_is_that_of_the_enumerated_law(either):
    """E[V | x_t], in [0, 1]."""
    x, sigma = noisy(64)
    distance = (x[:, None] - POINTS).square().sum((2, 3))
    p = (weights(either).log() - distance / (2 * sigma[:, None] ** 2)).softmax(1)
    expected = torch.einsum("ba,anf->bnf", p, uncentre(POINTS))
    torch.testing.assert_close(either.posterior(x, sigma), expected, rtol=1e-5, atol=1e-6)
    single = either.posterior(x.float(), sigma.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=1e-3)


def test_prior_is_centred_at_the_mean_of_the_law(either):
    sde = sde_of(either, 0.2, 3.0)
    torch.testing.assert_close(torch.tensor(sde.mean), centre(either.mean), atol=1e-6, rtol=0)
    assert (sde.sigma_min, sde.sigma_max) == (0.2, 3.0)


# Records.


def test_laws_are_told_apart_by_their_records():
    assert UNIFORM.to_json() == {"law": "uniform"}
    record = LIST.to_json()
    assert record.keys() == {"law", "num", "sha256", "file"}
    assert (record["law"], record["num"], record["file"]) == ("list", 5, "list.txt")
    same = ListLaw(TOY, LIST.archs, {"file": "copy.txt"})
    assert same.to_json()["sha256"] == record["sha256"]
    for archs in (LIST.archs[:4], LIST.archs[::-1], (*LIST.archs[:4], ARCHS[7])):
        assert ListLaw(TOY, archs, {}).to_json()["sha256"] != record["sha256"]


# Random lists.


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_random_list_is_distinct_and_the_same_for_a_seed(space):
    first, again, other = (random_list(space, 100, seed) for seed in (1, 1, 2))
    assert len(set(first.archs)) == len(first.archs) == 100
    assert first.archs == again.archs != other.archs
    assert first.to_json() == again.to_json()
    assert first.to_json()["sha256"] != other.to_json()["sha256"]
    assert first.to_json().items() >= {"law": "list", "num": 100, "random": 100, "seed": 1}.items()


def test_a_random_list_may_be_the_whole_space_and_no_more():
    assert set(random_list(TOY, 144, 0).archs) == set(ARCHS)
    with pytest.raises(ValueError, match="found fewer than 145 distinct architectures in toy"):
        random_list(TOY, 145, 0)
