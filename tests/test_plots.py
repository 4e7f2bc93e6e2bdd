"""What pictures show: the axes that are drawn, before they are written."""

import anndata
import numpy as np
import pandas as pd
import pytest

from scvae_jax import plots
from scvae_jax.calibration import Calibration
from scvae_jax.checks import InputError


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the pictures that a test draws."""
    seen = []
    monkeypatch.setattr(
        plots, "_save", lambda figure, *_, **__: seen.extend(figure.axes)
    )
    return seen


def test_a_picture_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "new" / "picture"
    figure = plots._figure(1.0, 1.0)
    plots._save(figure, path)
    assert path.read_bytes()[:4] == b"\x89PNG"

    def stop(file, **_):
        file.write_text("half")
        raise KeyboardInterrupt

    figure.savefig = stop
    with pytest.raises(KeyboardInterrupt):
        plots._save(figure, path)
    assert path.read_bytes()[:4] == b"\x89PNG" and len(list(path.parent.iterdir())) == 1
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="not a folder that can be written to"):
        plots._save(figure, tmp_path / "file" / "picture.png")


def test_a_sweep(drawn, tmp_path):
    table = pd.DataFrame(
        {
            "n_clusters": [3, 2],
            "validation_bound": [-1.0, -2.0],
            "validation_bound_sd": [0.1, np.nan],
            "stability": [0.9, 1.0],
            "recommended": [True, False],
        }
    )
    plots.cluster_sweep(table, tmp_path / "sweep.png")
    bound, stability = drawn
    np.testing.assert_array_equal(bound.lines[0].get_xydata(), [[2, -2], [3, -1]])
    np.testing.assert_array_equal(stability.lines[0].get_xydata(), [[2, 1], [3, 0.9]])
    for axes in drawn:
        assert list(axes.lines[-1].get_xdata()) == [3, 3]


def test_differences(drawn, tmp_path):
    ranks = pd.DataFrame(
        {
            "data": "cells",
            "ranked_with": "counts",
            "likelihood": ["poisson", "negative_binomial", "categorised_poisson"],
            "model": "vae",
            "reference": "poisson/vae",
            "difference": [0.0, -3.0, None],
            "low": [None, -4.0, None],
            "high": [None, -1.0, None],
        }
    )
    plots.differences(ranks, tmp_path / "differences.png")
    (axes,) = drawn
    (bars,) = axes.containers
    np.testing.assert_array_equal(bars.lines[0].get_xydata(), [[0, 0], [-3, 1]])
    ends = [segment[:, 0].tolist() for segment in bars.lines[2][0].get_segments()]
    assert ends == [[0.0, 0.0], [-4.0, -1.0]]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["poisson, vae", "negative_binomial, vae"]
    # the best is above
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert axes.get_xlabel() == "nats per cell above poisson/vae"


@pytest.mark.parametrize("score", ["ari", "stability"])
def test_bounds_and_clusters(drawn, tmp_path, score):
    table = pd.DataFrame(
        {
            "data": "cells",
            "ranked_with": "counts",
            "likelihood": "poisson",
            "model": ["vae", "gmvae", "gmvae"],
            "comparable_bound": [-5.0, -4.0, -3.0],
            "ari": None,
            "stability": None,
            "oracle_k": [True, False, False],
        }
    ).assign(**{score: [0.5, 0.6, 0.7]})
    plots.bounds_and_clusters(table, tmp_path / "clusters.png")
    (axes,) = drawn
    one, other = (points.get_offsets().tolist() for points in axes.collections)
    assert one == [[-5.0, 0.5]]
    assert other == [[-4.0, 0.6], [-3.0, 0.7]]
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any("K of the labels" in text for text in told) == (score == "ari")
    assert ("labels" in axes.get_ylabel()) == (score == "ari")


def test_names_with_dollars_are_no_formulas(tmp_path):
    name = "run_$A_$B"
    genes = pd.DataFrame(
        {name: [0.5] for name in ("zeros", "expected_zeros", "mean", "variance")}
    ).assign(expected_variance=1.0)
    cells = pd.DataFrame({"total": [5.0], "expected_total": [6.0]})
    one = Calibration({}, np.full(20, 0.05), genes, cells)
    plots.calibration({name: one}, tmp_path / "calibration.png")
    adata = anndata.AnnData(np.ones((5, 3)))
    adata.obs[name] = list("aabbc")
    adata.obsm["X_scvae"] = np.random.default_rng(0).normal(size=(5, 2))
    plots.latent_space(adata, tmp_path / "latent.png", colors=name, method="pca")
    assert len(list(tmp_path.iterdir())) == 2


def test_calibration(drawn, tmp_path):
    genes = pd.DataFrame(
        {
            "mean": [1.0, 2.0, 0.0],
            "variance": [4.0, 900.0, 0.0],
            "expected_variance": [2.0, 1.0, 0.1],
            "zeros": [0.4, 0.2, 1.0],
            "expected_zeros": [0.5, 0.1, 0.9],
        }
    )
    cells = pd.DataFrame({"total": [5.0, 7.0], "expected_total": [6.0, 6.5]})
    pit = np.full(20, 0.05)
    one = Calibration({}, pit, genes, cells)
    plots.calibration({"poisson": one}, tmp_path / "calibration.png")
    zeros, variance, totals, transform = drawn

    def points(axes):
        return axes.collections[0].get_offsets().tolist()

    assert points(zeros) == [[0.4, 0.5], [0.2, 0.1], [1.0, 0.9]]
    # of genes that are seen, at most 30
    assert points(variance) == [[1.0, 2.0], [2.0, 30.0]]
    assert points(totals) == [[5.0, 6.0], [7.0, 6.5]]
    (stairs,) = transform.patches
    np.testing.assert_allclose(stairs.get_data().values, 1.0)
