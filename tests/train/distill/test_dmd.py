"""Distribution matching moves samples to the teacher's distribution."""

from __future__ import annotations

import torch

from everface.train.distill.dmd import dmd_gradient


def test_a_generator_converges_to_the_teachers_distribution() -> None:
    """x = m + s z against N(3, 0.5^2): with the exact scores of both, mean and spread are found; with the two scores swapped, not."""
    g = torch.Generator().manual_seed(0)

    def of_normal(mean: float, std: float):
        def velocity(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            sigma = sigma[:, None]
            var = ((1 - sigma) * std) ** 2 + sigma**2
            off = x - (1 - sigma) * mean
            return sigma * off / var - (mean + (1 - sigma) * std**2 * off / var)  # E[noise | x] - E[x0 | x]

        return velocity

    def train(swapped: bool) -> float:
        m, s = torch.tensor(-1.0, requires_grad=True), torch.tensor(1.5, requires_grad=True)
        adam = torch.optim.Adam([m, s], lr=0.05, betas=(0.0, 0.99))
        for _ in range(150):
            x0 = m + s * torch.randn(64, 8, generator=g)
            real, fake = of_normal(3.0, 0.5), of_normal(m.item(), s.item())
            sigma = torch.rand(64, generator=g) * 0.96 + 0.02
            d = dmd_gradient(x0.detach(), *((fake, real) if swapped else (real, fake)), sigma, torch.randn(64, 8, generator=g))
            adam.zero_grad()
            (x0 * d).mean().backward()
            adam.step()
        return abs(m.item() - 3) + abs(abs(s.item()) - 0.5)

    assert train(swapped=False) < 0.35
    assert train(swapped=True) > 4.5


def test_equal_scores_leave_the_student_alone() -> None:
    x0, level, noise = torch.randn(2, 3, 4), torch.tensor([0.3, 0.9]), torch.randn(2, 3, 4)
    score = lambda x, sigma: x * sigma.view(-1, 1, 1)  # noqa: E731  a name for a short expression
    assert dmd_gradient(x0, score, score, level, noise).abs().max() == 0
