"""The orthogonal matrix nearest to a matrix: all its singular values become one, and its singular vectors stay.

An odd polynomial of a matrix, X p(X^T X), changes the singular values alone, and needs nothing but products; a few of
them one after the other bring all singular values near one (Higham 2008, "Functions of Matrices", chapter 8).
"""

from typing import Literal

import torch
from torch import Tensor

Method = Literal["newton-schulz", "polar-express"]
Quintic = tuple[float, float, float]
"""a, b, c of a s + b s^3 + c s^5, which a singular value s becomes."""

NEWTON_SCHULZ: Quintic = (3.4445, -4.7750, 2.0315)
"""Jordan et al. 2024 (Muon): steepest at zero, and everything beyond it ends between 0.68 and 1.13."""

POLAR_EXPRESS: tuple[Quintic, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
"""Amsel et al. 2025 (The Polar Express, arXiv:2505.16932), algorithm 2: each the best for what the one before leaves of
singular values from 0.001 to 1; the last holds from there on."""

SAFETY = 1.01
"""Room for rounding: all polynomials but the last take singular values up to this (the same algorithm)."""

EPS = 1e-7
"""Added to the norm, so that zeros stay zeros."""


@torch.no_grad()
def orthogonalise(matrices: Tensor, method: Method = "polar-express", steps: int = 5) -> Tensor:
    """The orthogonal factor U V^T of each of `matrices` U S V^T, (..., rows, columns), as well as `steps` give it.

    In the dtype of `matrices`. Singular values below a thousandth of the Frobenius norm remain too small.
    """
    x = matrices.mT if matrices.size(-2) > matrices.size(-1) else matrices  # the smaller Gram matrix
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=wide)
    room = SAFETY if method == "polar-express" else 1.0
    x = x / (norm * room + EPS).to(x.dtype)  # then no singular value is above one
    shape, x = x.shape, x.reshape(-1, *x.shape[-2:])
    for a, b, c in quintics(method, steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.reshape(shape)
    return x.mT if matrices.size(-2) > matrices.size(-1) else x


def quintics(method: Method, steps: int) -> list[Quintic]:
    """The polynomials in their order."""
    if method == "newton-schulz":
        return [NEWTON_SCHULZ] * steps
    safe = [(a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in POLAR_EXPRESS[:-1]]
    return (safe + [POLAR_EXPRESS[-1]] * steps)[:steps]
