"""Identity of a generated video of a rendered person: how well the renderer, in the pose that fits best, shows the same frame.

OpenGL has no gradient, so poses are fitted by Gauss-Newton steps with differences, coarse to fine, each step damped until it helps.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from everface.networks.motion import FACE
from everface.train.heads.light import sample_shot
from everface.train.heads.motion.body import EMOTIONS
from everface.train.heads.motion.visemes import mouth_actions
from everface.train.heads.renderer import FINER, Pose, Renderer

FELT = tuple(name for name in EMOTIONS if name != "neutral")
# What is fitted, and the step of its difference: rotation, shift of the head, sway of the body, gaze, blink, brows, emotions, articulators.
STEPS = np.array([0.02] * 3 + [0.15] * 3 + [0.15] * 2 + [0.15] * 2 + [0.25] + [0.25] + [0.2] * len(FELT) + [0.2] * 5)
FROM_0_TO_1 = slice(10, None)  # the last of these are shares
JAW, BLINK = 12 + len(FELT), 10
FITTED = ("gaze_right", "gaze_up", "blink", "brow", *FELT, "jaw", "spread", "round", "closed", "teeth")  # of FACE, from gaze on
ANY_FACE = 0.25  # of the random poses, so that faces beyond those of speech are read too
BLINKS = 0.3  # and of all of them, since clips have few
RIGID = 8  # the first of these move the head and the body as a whole
ROUNDS = ((32, RIGID), (32, RIGID), (32, 12), (64, 99), (64, 99), (128, 99))  # pixels of each step, and how many of the first are free
DAMPING = (1e-3, 0.1, 2.0)  # tried in this order
LEAST_DAMPING = 1e-6  # where nothing that is fitted changes the image
ROUGH = 2  # samples a pixel and side while fitting, as these images are shrunk at least to half


class HeadFit:
    """Of one person in its scene, without the sensor's noise. The renderer shows this person until another is asked for. Not thread-safe."""

    def __init__(self, renderer: Renderer, seed: int) -> None:
        self.renderer = renderer
        renderer.show(seed, scene=replace(sample_shot(seed), grain=0.0, jpeg=0))

    def draw(self, pose_P: np.ndarray, finer: int = FINER) -> np.ndarray:
        """float32 [H, W, 3] in 0..255."""
        return self.renderer.draw(pose_of(pose_P), finer).astype(np.float32)

    def random_pose(self, rng: np.random.Generator, face_NC: np.ndarray) -> np.ndarray:
        """The head where it rests; the face as one row of values of `networks.motion.FACE`, or, as often as `ANY_FACE` says, any mouth and gaze. Some blink."""
        pose_P = np.zeros(len(STEPS))
        if rng.random() < ANY_FACE:
            pose_P[8:10] = rng.normal(0, (0.2, 0.1))
            pose_P[BLINK + 1] = rng.uniform(0, 0.5)
            pose_P[JAW:] = rng.uniform(0, 1) * rng.uniform(0, 1, len(pose_P) - JAW)
        else:
            pose_P[8:] = face_NC[rng.integers(len(face_NC))][[FACE.index(name) for name in FITTED]]
        if rng.random() < BLINKS:
            pose_P[BLINK] = rng.uniform(0, 1)
        return pose_P

    def fit(self, image_HW3: np.ndarray, turn: np.ndarray, opening: float, blink: float) -> tuple[np.ndarray, np.ndarray]:
        """(pose, its image). image_HW3: float32 in 0..255, of the renderer's size. Begins with this rotation, opening and blink."""
        pose_P = np.zeros(len(STEPS))
        pose_P[:3], pose_P[JAW], pose_P[BLINK] = turn, opening, blink
        shown_HW3 = self.draw(pose_P, ROUGH)
        for pixels, free in ROUNDS:
            goal, now = shrink(image_HW3, pixels), shrink(shown_HW3, pixels)
            error = (goal - now).ravel()
            columns = []
            steps = STEPS[:free]
            for p, step in enumerate(steps):
                moved_P = pose_P.copy()
                sign = -1.0 if p >= FROM_0_TO_1.start and pose_P[p] + step > 1 else 1.0
                moved_P[p] += sign * step
                columns.append((shrink(self.draw(moved_P, ROUGH), pixels) - now).ravel() * sign)  # a change of one step each
            change_RP = np.stack(columns, 1)
            normal_PP, right_P = change_RP.T @ change_RP, change_RP.T @ error
            scale = np.diag(normal_PP) + 1e-3 * np.trace(normal_PP) / len(steps)
            for damping in DAMPING:
                tried_P = pose_P.copy()
                tried_P[:free] += steps * np.linalg.solve(normal_PP + np.diag(damping * scale + LEAST_DAMPING), right_P)
                tried_P[FROM_0_TO_1] = tried_P[FROM_0_TO_1].clip(0, 1)
                tried_HW3 = self.draw(tried_P, ROUGH)
                if np.square(shrink(tried_HW3, pixels).ravel() - goal.ravel()).sum() < np.square(error).sum():
                    pose_P, shown_HW3 = tried_P, tried_HW3
                    break
        return pose_P, self.draw(pose_P)


def pose_of(pose_P: np.ndarray) -> Pose:
    turn, shift, sway, gaze = pose_P[:3], pose_P[3:6], pose_P[6:8], pose_P[8:10]
    shut, brow, felt, mouth = float(pose_P[10]), float(pose_P[11]), pose_P[12 : 12 + len(FELT)], pose_P[JAW:]
    weights = mouth_actions(np.append(mouth, 0.0))

    def add(name: str, value: float) -> None:
        weights[name] = weights.get(name, 0.0) + value

    for side, sign in (("L", 1), ("R", -1)):
        for name, strength in zip(FELT, felt, strict=True):
            for action, value in EMOTIONS[name].items():
                add(f"{action}_{side}", value * float(strength) * (1 - shut if action in ("eyeWide", "eyeSquint") else 1.0))
        add(f"eyeBlink_{side}", shut)
        add(f"eyeLook{'Out' if sign * gaze[0] > 0 else 'In'}_{side}", min(1.0, abs(float(gaze[0]))))
        add(f"eyeLook{'Up' if gaze[1] > 0 else 'Down'}_{side}", min(1.0, abs(float(gaze[1]))))
        add(f"browOuterUp_{side}", 0.25 * brow)
        add(f"browInnerUp_{side}", 0.30 * brow)
    return Pose(weights, tuple(turn), tuple(shift), (float(sway[0]), float(sway[1]), 0.0))


def shrink(image_HW3: np.ndarray, pixels: int) -> np.ndarray:
    """The mean of squares of pixels."""
    pixels = min(pixels, image_HW3.shape[0])
    cell = image_HW3.shape[0] // pixels
    return image_HW3.reshape(pixels, cell, pixels, cell, 3).mean((1, 3))
