"""Names of the scalars that define a drawn character (a row of `IDENTITY`) and one frame of it (a row of `ANIMATION`)."""

COLORS = ("skin", "hair", "iris", "lips", "cloth", "collar_tone", "sky", "ground", "accent", "frame")
SHAPES = (
    "face_w", "face_h", "jaw", "eye_x", "eye_size", "brow_width", "brow_arch", "brow_tilt", "mouth_w", "lip_full", "nose",
    "glasses", "collar", "hair_alpha", "hair_volume", "hair_length", "hair_line", "hair_part", "hair_swoop", "hair_curl",
    "ear", "blush",
    "ink", "shade", "iris_size",  # the hand that draws: outline 0..1, soft shading 0..1, size of the iris
    "rest_dx", "rest_dy", "rest_tilt", "rest_scale",  # where the head rests
    "beard", "beard_width", "moustache", "earring", "square", "rim",  # square, rim: of the glasses
    "hat", "hat_line", "hat_height", "hat_fold", "hat_brim", "hat_bobble",
    "stripe", "tie", "scarf", "lapel", "hood", "necklace",
    "horizon", "window", "disc", "band", "vignette", "scene_x", "scene_y",
)  # fmt: skip
IDENTITY = tuple(f"{name}_{c}" for name in COLORS for c in "rgb") + SHAPES
ANIMATION = ("open", "wide", "blink", "brow", "dx", "dy", "rot")  # 0..1 each; dx, dy image units; rot radians
HEAD = ("dx", "dy", "rot")  # of those: what moves the head as a whole
