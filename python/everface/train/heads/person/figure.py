"""Shape by sex and age: smooth changes of the neutral head that identity components do not tell apart."""

from __future__ import annotations

import numpy as np

from everface.train.heads.mesh import HeadMesh
from everface.train.heads.person.identity import Person
from everface.train.heads.person.scalp import step


def make_figure(person: Person, mesh: HeadMesh) -> np.ndarray:
    """The person's neutral vertices [N, 3]: identity components, then sex and age."""
    rng = np.random.Generator(np.random.PCG64([person.seed, 10]))
    shape, base = mesh.shape(person.components), mesh.base
    x, y, z = base.T
    woman = (1.0 if person.sex == "woman" else -0.5) * rng.uniform(0.6, 1.1)
    out = shape.copy()
    jaw = step(-1.5, -7.0, y) * step(-11.0, -8.5, y)
    neck = step(-6.5, -9.5, y) * step(-16.5, -12.5, y) * step(7.5, 3.5, z)
    out[:, 0] *= 1 - woman * (0.055 * jaw + 0.15 * neck)
    out[:, 2] -= woman * 0.13 * neck * (shape[:, 2] + 1.0)
    out[:, 1] += woman * 0.35 * step(-5.5, -8.5, y) * step(5, 8, z)  # a shorter chin
    ridge = np.exp(-(((y - 5.0) / 1.1) ** 2)) * step(6.2, 3.5, np.abs(x)) * step(7, 9, z)
    out[:, 2] -= woman * 0.28 * ridge
    nose = np.exp(-((x / 1.9) ** 2)) * np.exp(-(((y - 0.2) / 2.4) ** 2)) * step(10.3, 12.0, z)
    out[:, 2] -= woman * 0.32 * nose
    out[:, 0] *= 1 - woman * 0.09 * nose
    lips = np.exp(-(((y + 3.4) / 1.1) ** 2)) * step(2.6, 1.8, np.abs(x)) * step(9.5, 10.8, z)
    out[:, 2] += woman * 0.12 * lips
    old = float(np.clip((person.age - 35) / 40, 0, 1)) * rng.uniform(0.6, 1.2)
    jowl = np.exp(-(((np.abs(x) - 3.9) / 1.6) ** 2) - ((y + 5.6) / 1.7) ** 2) * step(2, 5, z)
    out[:, 1] -= old * 0.55 * jowl
    out[:, 0] += old * 0.28 * jowl * np.sign(x)
    hollow = np.exp(-(((np.abs(x) - 4.6) / 1.3) ** 2) - ((y + 1.4) / 1.6) ** 2) * step(4, 6, z)
    out[:, 2] -= old * 0.3 * hollow
    out[:, 1] -= old * 0.3 * nose
    return out
