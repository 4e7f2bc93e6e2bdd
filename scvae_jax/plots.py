"""Pictures of results. Needs matplotlib, and scanpy for UMAP."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np

from scvae_jax.checks import InputError
from scvae_jax.files import expect_writable, whole

# more names than this would leave no room for the picture
MOST_IN_LEGEND = 20


def latent_space(
    adata: anndata.AnnData,
    path: str | Path,
    *,
    basis: str = "X_scvae",
    colors: str | Sequence[str] = (),
    method: str = "umap",
    seed: int = 0,
) -> None:
    """Draw the latent space in two dimensions, once for each column of obs.

    Args:
        adata: the cells.
        path: of the PNG file to write.
        basis: obsm field with the latent coordinates.
        colors: obs columns to colour by: categories or numbers; cells without a
            category are grey, and beyond 20 categories there is no legend.
        method: "umap" or "pca".
        seed: of the layout.

    Raises:
        ImportError: without matplotlib, or without scanpy for UMAP.
        InputError: for another method, a field that is not there, or a path that cannot
            be written to.
    """
    expect_writable(Path(path))
    if method not in ("umap", "pca"):
        raise InputError(
            f"found method={method!r}, expected 'umap' or 'pca', choose one of these"
        )
    colors = (colors,) if isinstance(colors, str) else tuple(colors)
    absent = [key for key in colors if key not in adata.obs]
    if basis not in adata.obsm or absent:
        raise InputError(
            f"found no {', '.join([basis] * (basis not in adata.obsm) + absent)}, "
            "expected fields of obsm and obs, call sv.apply first"
        )
    n_panels = max(1, len(colors))
    figure = _figure(6.4 * n_panels, 4.6)
    latent = np.asarray(adata.obsm[basis])
    points = _umap(latent, seed) if method == "umap" else _pca(latent)
    size = float(np.clip(12_000 / len(points), 1, 14))
    for i in range(n_panels):
        axes = figure.add_subplot(1, n_panels, i + 1)
        key = colors[i] if colors else None
        _panel(figure, axes, points, None if key is None else adata.obs[key], size)
        name = "UMAP" if method == "umap" else "PC"
        axes.set(xlabel=f"{name} 1", ylabel=f"{name} 2")
        # a name may have dollars in it
        axes.set_title(key or basis, parse_math=False)
        axes.set(xticks=[], yticks=[])
    _save(figure, path)


def cluster_sweep(table: Any, path: str | Path) -> None:
    """Draw validation bound and stability against the number of clusters.

    A line stands at the recommended number, if there is one.

    Args:
        table: from `scvae_jax.sweep_clusters`.
        path: of the PNG file to write.

    Raises:
        ImportError: without matplotlib.
    """
    figure = _figure(6.4, 5.4)
    bound, stability = figure.subplots(2, 1, sharex=True)
    table = table.sort_values("n_clusters")
    k = table["n_clusters"]
    spread = table["validation_bound_sd"].fillna(0.0)
    bound.errorbar(k, table["validation_bound"], yerr=spread, marker="o", capsize=3)
    bound.set(ylabel="validation bound,\nnats per cell")
    stability.plot(k, table["stability"], marker="o")
    stability.set(ylabel="stability (ARI\nbetween seeds)", ylim=(-0.05, 1.05))
    stability.set(xlabel="number of clusters K", xticks=list(k))
    for axes in (bound, stability):
        for number in k[table["recommended"]]:
            axes.axvline(number, color="0.8", zorder=0)
    _save(figure, path)


def differences(ranks: Any, path: str | Path) -> None:
    """Draw differences of bounds to a reference, with their 95 % intervals.

    Args:
        ranks: `Comparison.ranks` of `scvae_jax.compare`; a panel for each data set and
            kind of likelihood.
        path: of the PNG file to write.

    Raises:
        ImportError: without matplotlib.
    """
    ranks = ranks[ranks["difference"].notna()]
    panels = list(ranks.groupby(["data", "ranked_with"], sort=False))
    heights = [1.0 + 0.34 * len(rows) for _, rows in panels]
    figure = _figure(5.0 + _width_of_names(ranks), sum(heights) + 0.3)
    every = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)
    for axes, ((data, kind), rows) in zip(every[:, 0], panels, strict=True):
        place = np.arange(len(rows))
        difference = rows["difference"].to_numpy(dtype=float)
        # without an interval, a bar of no length
        ends = rows[["low", "high"]].to_numpy(dtype=float)
        ends = np.where(np.isnan(ends), difference[:, None], ends)
        spread = np.abs(ends - difference[:, None]).T
        axes.axvline(0.0, color="lightgrey", zorder=0)
        axes.errorbar(difference, place, xerr=spread, fmt="o", capsize=3)
        axes.set(yticks=place, yticklabels=rows["likelihood"] + ", " + rows["model"])
        axes.set(ylim=(len(rows) - 0.5, -0.5))
        # a name with two dollars is no formula
        axes.set_title(f"{data} ({kind})", parse_math=False)
        axes.set(xlabel=f"nats per cell above {rows['reference'].iloc[0]}")
    # titles and labels may be wider than the axes
    _save(figure, path, bbox_inches="tight")


def bounds_and_clusters(table: Any, path: str | Path) -> None:
    """Draw the bound of each fit against its agreement with labels.

    Args:
        table: `Comparison.table` of `scvae_jax.compare`; a panel for each data set and
            kind of likelihood. Without labels, clusters are held against those of other
            seeds.
        path: of the PNG file to write.

    Raises:
        ImportError: without matplotlib.
    """
    score = "stability" if table["ari"].isna().all() else "ari"
    name = {"ari": "ARI to labels", "stability": "ARI between seeds (median)"}[score]
    # k-means is given the number of labels, and a mixture's own clusters are not
    told = "\n(k-means, K of the labels)" if score == "ari" else ""
    table = table[table[score].notna() & table["comparable_bound"].notna()]
    panels = list(table.groupby(["data", "ranked_with"], sort=False))
    figure = _figure(5.0 + _width_of_names(table), 3.8 * len(panels))
    every = figure.subplots(len(panels), 1, squeeze=False)
    for axes, ((data, kind), rows) in zip(every[:, 0], panels, strict=True):
        colours = {name: f"C{i}" for i, name in enumerate(rows["likelihood"].unique())}
        for (likelihood, model), fits in rows.groupby(
            ["likelihood", "model"], sort=False
        ):
            axes.scatter(
                fits["comparable_bound"].astype(float),
                fits[score].astype(float),
                color=colours[likelihood],
                marker={"vae": "o"}.get(model, "s"),
                label=f"{likelihood}, {model}" + told * bool(fits["oracle_k"].iloc[0]),
            )
        axes.set(xlabel="bound on log p(x), nats per cell", ylabel=name)
        lowest = min(0.0, float(rows[score].min()))
        axes.set(ylim=(lowest - 0.05, 1.05))
        axes.set_title(f"{data} ({kind})", parse_math=False)
        axes.legend(loc="center left", bbox_to_anchor=(1.03, 0.5), frameon=False)
    # legends may be wider than what is left for names
    _save(figure, path, bbox_inches="tight")


def _width_of_names(table: Any) -> float:
    """Inches that "likelihood, model" takes beside a picture."""
    longest = (table["likelihood"] + ", " + table["model"]).str.len().max()
    return 0.5 + 0.08 * longest


def calibration(found: Mapping[str, Any], path: str | Path) -> None:
    """Draw what models expect of held-out counts beside what there is.

    Four panels: the share of zeros of each gene, expected against observed; its
    observed variance over the expected one, at most 30 and at least 1/30, against its
    mean; the total of each cell's hidden half, expected against observed; and the
    histogram of the probability integral transform, flat where a model is right.

    Args:
        found: from `scvae_jax.calibrate`.
        path: of the PNG file to write.

    Raises:
        ImportError: without matplotlib.
    """
    figure = _figure(10.0, 8.4)
    (zeros, variance), (totals, transform) = figure.subplots(2, 2)
    dots = {"s": 5, "linewidths": 0, "alpha": 0.5, "rasterized": True}
    for i, (name, one) in enumerate(found.items()):
        style = dots | {"color": f"C{i}", "label": name}
        zeros.scatter(one.genes["zeros"], one.genes["expected_zeros"], **style)
        seen = one.genes[one.genes["mean"] > 0]
        ratio = seen["variance"] / seen["expected_variance"]
        # a gene that was all but ruled out would flatten all others
        variance.scatter(seen["mean"], ratio.clip(1 / 30, 30), **style)
        totals.scatter(one.cells["total"], one.cells["expected_total"], **style)
        edges = np.linspace(0.0, 1.0, len(one.pit) + 1)
        height = one.pit * len(one.pit)
        transform.stairs(height, edges, color=f"C{i}", label=name, linewidth=1.5)
    for axes in (zeros, totals):
        low, high = axes.get_xlim()
        axes.plot([low, high], [low, high], color="black", linewidth=0.8)
        axes.set(xlim=(low, high))
    for axes in (variance, transform):
        axes.axhline(1.0, color="black", linewidth=0.8)
    zeros.set(xlabel="observed", ylabel="expected", title="share of zeros, genes")
    variance.set(xlabel="observed mean", ylabel="observed / expected")
    variance.set(xscale="log", yscale="log", title="variance, genes")
    totals.set(xlabel="observed", ylabel="expected")
    totals.set(title="total of the hidden half, cells")
    transform.set(xlabel="probability integral transform", ylabel="density")
    transform.set(title="calibration", ylim=(0.0, None))
    for legend in (
        variance.legend(frameon=False, fontsize=8, markerscale=3),
        transform.legend(frameon=False, fontsize=8, loc="lower center"),
    ):
        for text in legend.get_texts():
            text.set_parse_math(False)
    _save(figure, path)


def expect_matplotlib() -> None:
    """Fail before the work and not after it.

    Raises:
        ImportError: without matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError(
            "found no matplotlib, expected it for pictures, "
            "pip install 'scvae_jax[analysis]'"
        )


def _save(figure: Any, path: str | Path, **options: Any) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    path = Path(path)
    expect_writable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part:
        # the part of a file without a suffix has none either
        figure.savefig(part, dpi=130, format=path.suffix[1:] or "png", **options)


def _figure(width: float, height: float) -> Any:
    expect_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _panel(figure, axes, points: np.ndarray, values, size: float) -> None:
    from matplotlib import colormaps

    if values is None:
        axes.scatter(*points.T, s=size, linewidths=0)
        return
    if values.dtype.kind in "iuf":
        drawn = axes.scatter(*points.T, c=values, s=size, linewidths=0)
        figure.colorbar(drawn, ax=axes, shrink=0.7)
        return
    values = values.astype("category").cat
    palette = colormaps["tab10" if len(values.categories) <= 10 else "tab20"]
    drawn = []
    for code in range(-1, len(values.categories)):
        mine = (values.codes == code).to_numpy()
        colour = palette(code % palette.N) if code >= 0 else "lightgrey"
        drawn.append(axes.scatter(*points[mine].T, s=size, linewidths=0, color=colour))
    if len(values.categories) > MOST_IN_LEGEND:
        return
    legend = axes.legend(
        drawn[1:],
        [str(category) for category in values.categories],
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        frameon=False,
        fontsize=8,
        markerscale=max(1.0, 18 / size) ** 0.5 * 1.5,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _umap(latent: np.ndarray, seed: int) -> np.ndarray:
    try:
        import scanpy
    except ImportError:
        raise ImportError(
            "found no scanpy, expected it for UMAP, "
            "pip install 'scvae_jax[analysis]' or choose method='pca'"
        ) from None
    cells = anndata.AnnData(obsm={"X_latent": latent})
    scanpy.pp.neighbors(cells, use_rep="X_latent", random_state=seed)
    scanpy.tl.umap(cells, random_state=seed)
    return np.asarray(cells.obsm["X_umap"])


def _pca(latent: np.ndarray) -> np.ndarray:
    """The first two principal components."""
    centred = latent - latent.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    points = left[:, :2] * scale[:2]
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
