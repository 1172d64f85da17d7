"""Draws a person by OpenGL without a window (moderngl over EGL; software Mesa will do): one texture, a few meshes, one shadow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from everface.core.errors import Unavailable
from everface.train.heads import shaders
from everface.train.heads.backdrop import make_backdrop
from everface.train.heads.light import Shot, camera_matrix, expose, lamp_matrix, sample_shot
from everface.train.heads.mesh import neck_weight, read_mesh
from everface.train.heads.person.clothing import make_clothes
from everface.train.heads.person.figure import make_figure
from everface.train.heads.person.glasses import make_glasses
from everface.train.heads.person.hair import Cards, grow_hair
from everface.train.heads.person.identity import Person, sample_person
from everface.train.heads.person.scalp import scalp_mask, step
from everface.train.heads.person.skin import paint_skin, read_detail

FINER = 4  # drawn at four times the size: with twice, strands and lashes of less than a pixel are dots, and glitter as the head turns
SHADOW_SIDE = 512
PIVOT = (0.0, -5.0, -1.0)  # where the head turns


@dataclass
class Pose:
    """One frame: action weights by name, rotation of the head in radians (pitch, yaw, roll), its shift and the body's in mesh units."""

    weights: dict[str, float] = field(default_factory=dict)
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    body: tuple[float, float, float] = (0.0, 0.0, 0.0)


def in_context(method: Callable[..., Any]) -> Callable[..., Any]:
    """Makes the renderer's context the current one meanwhile, which it is not where a process has several renderers."""

    @wraps(method)
    def run(self: Renderer, *args: Any, **named: Any) -> Any:
        with self.ctx:
            return method(self, *args, **named)

    return run


class Renderer:
    """One context of one size. `show` a person, then `draw` frames. Not thread-safe: all renderers of a process are for one thread."""

    def __init__(self, assets: Path, size: int = 256) -> None:
        try:
            moderngl: Any = import_module("moderngl")
        except ImportError:
            raise Unavailable("Rendering heads needs moderngl; install the extra: pip install 'everface[heads]'.") from None
        try:
            self.ctx: Any = moderngl.create_context(standalone=True, backend="egl")
        except Exception as error:  # every driver has its own
            raise Unavailable(f"No OpenGL context by EGL ({error}); install libegl1, libegl-mesa0 and libgl1-mesa-dri.") from None
        self.gl, self.size = moderngl, size
        self.mesh, self.detail = read_mesh(assets), read_detail(assets)
        ctx = self.ctx
        held = self.mesh.static[self.mesh.triangles[:, 0], 3]
        self.bodies = {int(m): ctx.program(vertex_shader=shaders.VERTEX, fragment_shader=shaders.body_fragment(int(m))) for m in np.unique(held)}
        self.plain = ctx.program(vertex_shader=shaders.VERTEX, fragment_shader=shaders.PLAIN_FRAGMENT)
        self.hairs = ctx.program(vertex_shader=shaders.HAIR_VERTEX, fragment_shader=shaders.HAIR_FRAGMENT)
        self.shadow = ctx.program(vertex_shader=shaders.SHADOW_VERTEX, fragment_shader=shaders.SHADOW_FRAGMENT)
        self.screens: dict[int, tuple[Any, Any]] = {}
        self.shadow_map = ctx.depth_texture((SHADOW_SIDE, SHADOW_SIDE))
        self.shadow_map.compare_func = "<="
        self.shadow_screen = ctx.framebuffer(depth_attachment=self.shadow_map)
        self.moving = ctx.buffer(reserve=len(self.mesh.corner) * 24, dynamic=True)
        self.static = ctx.buffer(np.ascontiguousarray(self.mesh.static[:, :4]).tobytes())
        self.triangles = {m: ctx.buffer(self.mesh.triangles[held == m].tobytes()) for m in self.bodies}
        casts = np.isin(held, (0, 1))
        self.casting = ctx.buffer(self.mesh.triangles[casts].tobytes())
        self.kept: list[Any] = []

    @in_context
    def show(self, seed: int, person: Person | None = None, scene: Shot | None = None) -> None:
        """Make a person and a scene ready; all later frames are of them."""
        for thing in self.kept:
            thing.release()
        self.kept = []
        self.person, self.scene = person or sample_person(seed), scene or sample_shot(seed)
        self.shape = make_figure(self.person, self.mesh)
        self.noise = np.random.Generator(np.random.PCG64([seed, 9]))
        self.skin = self._texture(paint_skin(self.person, self.detail))
        self.backdrop = self._background(make_backdrop(seed))
        cards = grow_hair(self.person, self.mesh, self.shape)
        extra = self._keep(self.ctx.buffer(self._extra(cards).tobytes()))
        layout = [(self.moving, "3f 3f", "position", "normal"), (self.static, "2f 1f 1f", "uv", "neck", "material"), (extra, "2f", "extra")]
        self.head = [self._keep(self.ctx.vertex_array(self.bodies[m], layout, self.triangles[m], skip_errors=True)) for m in self.bodies]
        self.solids, self.shades = [], [self._keep(self.ctx.vertex_array(self.shadow, [(self.moving, "3f 12x", "position"), (self.static, "8x 1f 4x", "neck")], self.casting))]
        for solid in (make_clothes(self.person, self.mesh, self.shape), make_glasses(self.person, self.mesh, self.shape)):
            if solid is not None:
                rows, index = (self._keep(self.ctx.buffer(a.tobytes())) for a in solid)
                self.solids.append(self._keep(self.ctx.vertex_array(self.plain, [(rows, "3f 3f 2f 1f 1f 2f", "position", "normal", "uv", "neck", "material", "extra")], index)))
        self.strands = None
        if cards is not None:
            rows, index = (self._keep(self.ctx.buffer(a.tobytes())) for a in (cards.vertices, cards.triangles))
            self.strands = self._keep(self.ctx.vertex_array(self.hairs, [(rows, "3f 3f 3f 4f 1f", "position", "normal", "along", "strand", "neck")], index))
            self.shades.append(self._keep(self.ctx.vertex_array(self.shadow, [(rows, "3f 40x 1f", "position", "neck")], index)))
        self._set_person(cards)

    @in_context
    def draw(self, pose: Pose, finer: int = FINER) -> np.ndarray:
        """One frame, [size, size, 3] uint8, of `finer` x `finer` samples a pixel."""
        self.pose = pose
        self.vertices = self.mesh.pose(self.shape, pose.weights)
        rows = np.concatenate([self.vertices, self.mesh.normals(self.vertices)], 1)[self.mesh.corner]
        self.moving.write(np.ascontiguousarray(rows, np.float32).tobytes())
        turn = rotation(*pose.turn)
        for program in (*self.bodies.values(), self.plain, self.hairs, self.shadow):
            _set(program, turn=turn.T.ravel(), pivot=PIVOT, shift=pose.shift, body=pose.body)
        upper, lower = self.vertices[self.mesh.lips[0]], self.vertices[self.mesh.lips[1]]
        for program in self.bodies.values():
            _set(program, mouth_z=float(max(upper[2], lower[2]) + 0.2), mouth_open=float(np.linalg.norm(upper - lower)), mouth_y=float((upper[1] + lower[1]) / 2))
        gl, ctx = self.gl, self.ctx
        self.shadow_screen.use()
        self.shadow_screen.clear(depth=1.0)
        ctx.enable_only(gl.DEPTH_TEST)
        for shade in self.shades:
            shade.render()
        screen, flat = self._screens(finer)
        screen.use()
        screen.clear(depth=1.0)
        self.shadow_map.use(1)
        self.skin.use(0)
        if self.strands is not None:  # first, for what it hides is not shaded then
            self.strands.render()
        ctx.enable(gl.CULL_FACE)
        for part in self.head:
            part.render()
        ctx.disable(gl.CULL_FACE)
        ctx.enable(gl.BLEND)
        ctx.blend_func = gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA, gl.ONE, gl.ONE_MINUS_SRC_ALPHA
        for solid in self.solids:
            solid.render()
        ctx.disable(gl.BLEND)
        ctx.copy_framebuffer(flat, screen)
        raw = np.frombuffer(flat.read(components=4), np.uint8).reshape(self.size, finer, self.size, finer, 4)
        raw = np.stack([raw[:, y, :, x] for y in range(finer) for x in range(finer)]).sum(0, dtype=np.float32)[::-1] / finer**2
        alpha = raw[..., 3:] / 255
        return expose(raw[..., :3] + self.backdrop * (1 - alpha), self.scene, self.noise)

    def measure_mouth(self) -> tuple[float, float, np.ndarray]:
        """Of the last frame: gap between the inner lips and distance of the corners in mesh units, and their places [4, 2] in the image."""
        upper, lower, right, left = points = self.vertices[self.mesh.lips].astype(np.float64)
        neck = neck_weight(self.mesh.base[self.mesh.lips])[:, None]
        turn, pivot, pose = rotation(*self.pose.turn), np.array(PIVOT), self.pose
        moved = (points - pivot) @ turn.T + pivot + neck * np.array(pose.shift) + (1 - neck) * np.array(pose.body)
        clip = np.concatenate([moved, np.ones((4, 1))], 1) @ camera_matrix(self.scene).T
        at = (clip[:, :2] / clip[:, 3:] * [0.5, -0.5] + 0.5).astype(np.float32)
        return float(np.linalg.norm(upper - lower)), float(np.linalg.norm(right - left)), at

    def _screens(self, finer: int) -> tuple[Any, Any]:
        """What is drawn on, and where it is read from."""
        if finer not in self.screens:
            ctx, large = self.ctx, (self.size * finer, self.size * finer)
            self.screens[finer] = ctx.framebuffer(ctx.renderbuffer(large, 4), ctx.depth_renderbuffer(large)), ctx.framebuffer(ctx.renderbuffer(large, 4))
        return self.screens[finer]

    def _set_person(self, cards: Cards | None) -> None:
        p, s = self.person, self.scene
        eye = (s.center[0], s.center[1], s.distance + 5)
        for program in (*self.bodies.values(), self.plain, self.hairs):
            _set(program, camera=camera_matrix(s).T.ravel(), lamp=lamp_matrix(s).T.ravel(), harmonics=s.harmonics, key=s.key, key_color=s.key_color, eye=eye, shadows=1, softness=s.softness)
        _set(self.shadow, lamp=lamp_matrix(s).T.ravel())
        style = cards.style if cards else None
        for program in self.bodies.values():
            _set(program, skin=0, tone=p.tone, hair=p.hair_color, iris=p.iris, pupil=p.pupil, teeth=p.teeth, scalp=cards.paint if cards else 0.0, oil=0.3 + 0.4 * float(1 - p.tone.mean()), white=1.0, lashes=0.4 + (0.15 if p.sex == "woman" else 0) + 0.35 * p.make_up)
        _set(self.hairs, hair=p.hair_color, fineness=9.0, thinning=0.55 if style and style.curl < 0.3 else 0.9)
        _set(self.plain, paint=np.stack([p.cloth_color, p.inner_color, p.glasses_color, np.zeros(3)]), weave=60.0)

    def _extra(self, cards: Cards | None) -> np.ndarray:
        """[C, 2]: scalp and lips on skin; eye coordinates on eyes."""
        extra, base = self.mesh.static[:, 4:6].copy(), self.mesh.base[self.mesh.corner]
        skin = self.mesh.static[:, 3] <= 1
        extra[skin, 0] = scalp_mask(base[skin], cards.style.recede) if cards else 0.0
        u, v = self.mesh.static[:, 0], 1 - self.mesh.static[:, 1]
        side = self.detail.lips.shape[0]
        at = (np.clip(v * side, 0, side - 1).astype(int), np.clip(u * side, 0, side - 1).astype(int))
        lips = self.detail.lips[at] * (self.mesh.static[:, 3] == 0)
        extra[skin, 1] = step(0.3, 0.9, lips[skin]) * (0.5 + 0.5 * self.person.make_up)
        return extra.astype(np.float32)

    def _background(self, image: np.ndarray) -> np.ndarray:
        from PIL import Image

        return np.asarray(Image.fromarray(image).resize((self.size, self.size), Image.Resampling.BICUBIC), np.float32)

    def _texture(self, image: np.ndarray) -> Any:
        texture = self._keep(self.ctx.texture(image.shape[1::-1], 4, image.tobytes()))
        texture.build_mipmaps()
        texture.filter = (self.gl.LINEAR_MIPMAP_LINEAR, self.gl.LINEAR)
        return texture

    def _keep(self, thing: Any) -> Any:
        self.kept.append(thing)
        return thing


def rotation(pitch: float, yaw: float, roll: float) -> np.ndarray:
    """[3, 3]: positive pitch looks down, positive yaw to the image's right, positive roll leans to the image's left."""
    cx, sx, cy, sy, cz, sz = np.cos(pitch), np.sin(pitch), np.cos(yaw), np.sin(yaw), np.cos(roll), np.sin(roll)
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return z @ y @ x


def _set(program: Any, **values: Any) -> None:
    """Set uniforms; those that the compiler removed are skipped."""
    for name, value in values.items():
        if name in program:
            if np.ndim(value):
                program[name].write(np.ascontiguousarray(value, np.float32).tobytes())
            else:
                program[name].value = value
