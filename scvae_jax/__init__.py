"""Deep generative models of raw single-cell counts, in JAX.

Axes, in every docstring: B cells, G genes, L latent dimensions, S importance samples,
K clusters, C batches. Bounds are in nats per cell, and higher is better.
"""

import importlib

# public name -> module; loaded when first used, so that importing this costs nothing
_PUBLIC = {
    "ModelConfig": "config",
    "TrainConfig": "config",
    "DataConfig": "config",
    "InputError": "checks",
    "InputWarning": "checks",
    "Fitted": "checkpoints",
    "load": "checkpoints",
    "fit": "training",
    "fit_many": "training",
    "make_train_step": "steps",
    "init_train_state": "steps",
    "evaluate": "evaluation",
    "apply": "analysis",
    "denoise": "analysis",
    "calibrate": "calibration",
    "Calibration": "calibration",
    "sweep_clusters": "sweep",
    "compare": "comparison",
    "vae": "models",
    "gmvae": "models",
    "Model": "models",
    "Modality": "models",
}
_MODULES = (
    "batches",
    "counts",
    "datasets",
    "distributions",
    "latents",
    "likelihoods",
    "networks",
    "objectives",
    "plots",
    "public",
)

__all__ = [*_PUBLIC, *_MODULES]


def __getattr__(name: str):
    if name in _PUBLIC:
        module = importlib.import_module(f"{__name__}.{_PUBLIC[name]}")
        return getattr(module, name)
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
