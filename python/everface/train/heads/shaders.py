"""The shaders (GLSL 3.30). One vertex stage for everything that moves with the head, its fragment stage for each material, and one for shadows."""

HEAD = """
uniform mat3 turn; uniform vec3 pivot; uniform vec3 shift; uniform vec3 body;
vec3 move(vec3 p, float w, out mat3 r) {
    // A blend of no rotation and the head's, made orthogonal: the neck bends.
    r = mat3(1.0) * (1.0 - w) + turn * w;
    r[0] = normalize(r[0]); r[1] = normalize(r[1] - dot(r[0], r[1]) * r[0]); r[2] = cross(r[0], r[1]);
    return r * (p - pivot) + pivot + shift * w + body * (1.0 - w);
}
"""

VERTEX = """
#version 330
uniform mat4 camera; uniform mat4 lamp;
in vec3 position; in vec3 normal; in vec2 uv; in float neck; in float material; in vec2 extra;
out vec3 P; out vec3 N; out vec2 UV; out vec2 X; out vec3 O; out vec4 L; flat out int M;
""" + HEAD + """
void main() {
    mat3 r; P = move(position, neck, r); N = r * normal; UV = uv; X = extra; O = position; M = int(material + 0.5);
    L = lamp * vec4(P, 1.0); gl_Position = camera * vec4(P, 1.0);
}
"""

SHADOW_VERTEX = """
#version 330
uniform mat4 lamp; in vec3 position; in float neck;
""" + HEAD + """
void main() { mat3 r; gl_Position = lamp * vec4(move(position, neck, r), 1.0); }
"""

SHADOW_FRAGMENT = """
#version 330
void main() {}
"""

LIGHT = """
uniform vec3 harmonics[9]; uniform vec3 key_color; uniform vec3 key; uniform vec3 eye; uniform sampler2DShadow shadows; uniform float softness;
vec3 around(vec3 n) {
    return max(vec3(0.0), harmonics[0] + harmonics[1] * n.y + harmonics[2] * n.z + harmonics[3] * n.x + harmonics[4] * n.x * n.y
        + harmonics[5] * n.y * n.z + harmonics[6] * (3.0 * n.z * n.z - 1.0) + harmonics[7] * n.x * n.z + harmonics[8] * (n.x * n.x - n.y * n.y));
}
float lit(vec4 l, float bias) {
    vec3 q = l.xyz / l.w * 0.5 + 0.5; float s = 0.0;
    for (int i = -1; i <= 1; i += 2) for (int j = -1; j <= 1; j += 2) s += texture(shadows, vec3(q.xy + 0.7 * softness * vec2(i, j), q.z - bias));
    return s / 4.0;
}
float dither() { return fract(52.9829 * fract(dot(gl_FragCoord.xy, vec2(0.06711056, 0.00583715)))); }
float ggx(vec3 n, vec3 h, float rough) { float a = rough * rough, c = max(dot(n, h), 0.0), d = c * c * (a * a - 1.0) + 1.0; return a * a / (3.1416 * d * d); }
vec3 film(vec3 c) { c = max(c, 0.0); return clamp((c * (2.51 * c + 0.03)) / (c * (2.43 * c + 0.59) + 0.14), 0.0, 1.0); }
vec4 finish(vec3 c, float a) { return vec4(pow(film(c * 0.62), vec3(1.0 / 2.2)), a); }
"""

_BODY = """
in vec3 P; in vec3 N; in vec2 UV; in vec2 X; in vec3 O; in vec4 L; out vec4 color;
uniform sampler2D skin; uniform vec3 tone; uniform vec3 hair; uniform vec3 iris; uniform vec3 teeth; uniform float pupil; uniform float scalp;
uniform float mouth_z; uniform float mouth_open; uniform float oil; uniform float white; uniform float mouth_y; uniform float lashes;
""" + LIGHT + """
float hash(vec2 p) { return fract(sin(dot(p, vec2(127.1, 311.7))) * 43758.5453); }
float grain(vec2 p) { vec2 i = floor(p), f = fract(p); f = f * f * (3.0 - 2.0 * f);
    return mix(mix(hash(i), hash(i + vec2(1, 0)), f.x), mix(hash(i + vec2(0, 1)), hash(i + vec2(1, 1)), f.x), f.y); }
void main() {
    vec3 n = normalize(N), v = normalize(eye - P); float nl, cover = 1.0, gloss = 0.0, rough = 0.5, spec = 0.0, cave = 1.0; vec3 base; vec3 wrap = vec3(0.0);
    if (!gl_FrontFacing) n = -n;
    if (M <= 1) {
        vec4 t = M == 0 ? texture(skin, vec2(UV.x, 1.0 - UV.y)) : vec4(tone * (0.985 + 0.03 * grain(O.xy * 3.0)), 0.5);
        base = pow(t.rgb, vec3(2.2));
        if (M == 0) {
            vec3 dx = dFdx(P), dy = dFdy(P); float h = t.a, hx = dFdx(h), hy = dFdy(h);
            vec3 g = cross(dy, n) * hx + cross(n, dx) * hy; n = normalize(n - 0.12 * clamp(g / max(dot(cross(dx, dy), n), 1e-4), -1.2, 1.2));
        }
        float s = X.x * scalp; base = mix(base, pow(hair, vec3(2.2)) * (0.7 + 0.6 * grain(O.xz * vec2(9.0, 4.0) + O.y)), s);
        wrap = vec3(0.42, 0.16, 0.09) * (1.0 - s); gloss = 0.022 + X.y * 0.03; rough = mix(0.58, 0.40, max(oil, X.y)); spec = 1.0 - 0.8 * s;
        // Skin that faces inwards between the lips is the mouth's lining.
        float inner = smoothstep(0.45, 1.5, mouth_z - O.z) * smoothstep(3.2, 2.4, abs(O.x)) * smoothstep(5.0, 3.2, abs(O.y - mouth_y)) * smoothstep(0.2, -0.15, dot(normalize(N), vec3(0, 0, 1)));
        base = mix(base, vec3(0.20, 0.045, 0.04), inner * 0.8); cave = 1.0 - 0.75 * inner;
    } else if (M == 2 || M == 3) {
        float deep = mouth_z - O.z; cave = mix(1.0, 0.04, smoothstep(0.5, 4.8, deep)) * (0.7 + 0.3 * smoothstep(0.0, 0.5, mouth_open)) * smoothstep(4.2, 1.4, abs(O.x));
        base = M == 3 ? pow(teeth, vec3(2.2)) * vec3(0.92, 0.90, 0.86) : mix(vec3(0.36, 0.10, 0.10), vec3(0.32, 0.07, 0.06), grain(O.xz * 4.0));
        wrap = vec3(0.2); gloss = 0.045; rough = 0.30; spec = 0.8;
    } else if (M == 4) {
        float r = length(X), ring = 0.405; float a = atan(X.y, X.x);
        float fiber = grain(vec2(a * 9.0, r * 6.0)) * 0.6 + grain(vec2(a * 24.0, r * 10.0)) * 0.4;
        vec3 col = pow(iris, vec3(2.2)) * (0.65 + 0.9 * fiber) * mix(1.5, 0.55, smoothstep(0.17, ring, r));
        col *= smoothstep(ring * 1.02, ring * 0.80, r) * 0.75 + 0.25;
        col = mix(vec3(0.004), col, smoothstep(pupil * ring * 0.9, pupil * ring * 1.1, r));
        vec3 sclera = vec3(0.62, 0.57, 0.545) * white * mix(vec3(1.0), vec3(0.95, 0.72, 0.68), smoothstep(0.55, 0.95, r));
        base = mix(col, sclera, smoothstep(ring * 0.95, ring * 1.07, r));
        cave = mix(1.0, 0.42, smoothstep(0.12, 0.52, X.y)) * mix(1.0, 0.5, smoothstep(0.55, 0.95, abs(X.x)));
        wrap = vec3(0.3); gloss = 0.035; rough = 0.13; spec = 1.0;
    } else { base = vec3(0.014, 0.010, 0.009); cover = lashes * mix(0.25, 1.0, X.x); if (cover < dither()) discard; }
    float shade = lit(L, 0.004); nl = dot(n, key);
    vec3 d = clamp((nl + wrap) / ((1.0 + wrap) * (1.0 + wrap)), 0.0, 1.0) * mix(vec3(1.0), vec3(shade), 1.0 - 0.25 * wrap);
    vec3 h = normalize(key + v); float f = gloss + (1.0 - gloss) * pow(1.0 - max(dot(h, v), 0.0), 5.0);
    float low = M <= 1 ? 0.55 + 0.45 * smoothstep(-18.0, -5.0, O.y + max(0.0, O.z - 2.0)) : 1.0;
    vec3 c = base * (around(n) * low + key_color * d) * cave;
    float rim = pow(1.0 - max(dot(n, v), 0.0), 4.0);
    c += spec * cave * (key_color * shade * max(nl, 0.0) * f * ggx(n, h, rough) * 0.8 + around(reflect(-v, n)) * (gloss * 0.55 + 0.10 * rim) * (M <= 1 ? 0.8 : 1.0));
    if (M == 4) { // two windows, mirrored in the cornea
        vec3 q = reflect(-v, normalize(n + 0.0)); c += (key_color * 2.2 + harmonics[0] * 2.0) * smoothstep(0.965, 0.985, dot(q, normalize(key + vec3(0, 0.15, 0.9)))) * smoothstep(0.7, 0.4, length(X));
    }
    color = finish(c, 1.0);
}
"""


def body_fragment(material: int) -> str:
    """Of one material: 0 face, 1 other skin, 2 gums and tongue, 3 teeth, 4 eyes, 6 lashes. OpenGL in software computes all sides of a branch."""
    return f"\n#version 330\nconst int M = {material};" + _BODY


HAIR_VERTEX = """
#version 330
uniform mat4 camera; uniform mat4 lamp;
in vec3 position; in vec3 normal; in vec3 along; in vec4 strand;  // across 0..1, along 0..1, shade, number
in float neck;
out vec3 P; out vec3 N; out vec3 T; out vec4 S; out vec4 L;
""" + HEAD + """
void main() {
    mat3 r; P = move(position, neck, r); N = r * normal; T = r * along; S = strand; L = lamp * vec4(P, 1.0); gl_Position = camera * vec4(P, 1.0);
}
"""

HAIR_FRAGMENT = """
#version 330
in vec3 P; in vec3 N; in vec3 T; in vec4 S; in vec4 L; out vec4 color;
uniform vec3 hair; uniform float fineness; uniform float thinning;
""" + LIGHT + """
float hash(float p) { return fract(sin(p * 127.1) * 43758.5453); }
void main() {
    // A card is a dozen hairs that end at different places.
    float x = S.x * fineness, k = floor(x), one = hash(k + 57.0 * S.w), two = hash(k * 3.1 + 19.0 * S.w + 4.0);
    float edge = 1.0 - abs(2.0 * S.x - 1.0);
    float a = smoothstep(1.0, 0.70, S.y + thinning * (one - 0.5)) * smoothstep(0.0, 0.22, edge + 0.25 * (two - 0.4));
    a *= mix(1.0, smoothstep(0.0, 0.35, 1.0 - abs(2.0 * fract(x) - 1.0)), smoothstep(0.35, 1.0, S.y));
    if (a < 0.08 + 0.84 * dither()) discard;
    vec3 n = normalize(N), v = normalize(eye - P), t = normalize(T); if (dot(n, v) < 0.0) n = normalize(n - 1.2 * dot(n, v) * v);
    vec3 base = pow(hair, vec3(2.2)) * (0.62 + 0.75 * one) * (0.45 + 0.55 * S.z);
    float shade = lit(L, 0.010);
    float tl = dot(t, key), diffuse = sqrt(max(0.0, 1.0 - tl * tl)) * clamp(dot(n, key) * 0.75 + 0.30, 0.0, 1.0);
    vec3 h = normalize(key + v); float th = dot(normalize(t + n * (0.10 + 0.16 * (two - 0.5))), h), th2 = dot(normalize(t - n * (0.18 + 0.2 * (one - 0.5))), h);
    float s1 = pow(max(0.0, 1.0 - th * th), 45.0), s2 = pow(max(0.0, 1.0 - th2 * th2), 12.0);
    float face = clamp(dot(n, key) + 0.35, 0.0, 1.0);
    float tv = dot(t, v), sheen = pow(max(0.0, 1.0 - tv * tv), 8.0);
    vec3 c = base * (around(n) * 1.15 + key_color * diffuse * shade * 1.25) * S.z;
    c += (key_color * shade * face * (s1 * 0.030 * vec3(1.0) + s2 * base * 0.55) + around(n) * sheen * (0.012 + 0.12 * base)) * S.z * (0.35 + 1.1 * one);
    color = finish(c, 1.0);
}
"""

PLAIN_FRAGMENT = """
#version 330
in vec3 P; in vec3 N; in vec2 UV; in vec2 X; in vec3 O; in vec4 L; flat in int M; out vec4 color;
uniform vec3 paint[4]; uniform float weave;
""" + LIGHT + """
float hash(vec2 p) { return fract(sin(dot(p, vec2(127.1, 311.7))) * 43758.5453); }
void main() {
    vec3 n = normalize(N), v = normalize(eye - P); if (dot(n, v) < 0.0) n = -n;
    if (X.y < 0.0) discard;
    if (M == 3) { // glass: only its reflection
        float r = pow(1.0 - max(dot(n, v), 0.0), 3.0); vec3 g = around(reflect(-v, n)) * (0.05 + 0.35 * r);
        vec3 h = normalize(key + v); g += key_color * pow(max(dot(n, h), 0.0), 300.0) * 0.5; color = vec4(pow(film(g * 0.8), vec3(1.0 / 2.2)), clamp(0.06 + r, 0.0, 0.5)); return;
    }
    vec3 base = pow(paint[M], vec3(2.2)); float gloss = M == 2 ? 0.05 : 0.0;
    if (M < 2) base *= 0.94 + 0.06 * sin(UV.x * weave) * sin(UV.y * weave) + 0.03 * hash(floor(UV * 400.0));
    float shade = lit(L, 0.006), nl = max(dot(n, key), 0.0); vec3 h = normalize(key + v);
    vec3 c = base * (around(n) * (0.45 + 0.55 * X.x) + key_color * nl * shade) + gloss * (key_color * shade * ggx(n, h, 0.3) * nl + around(reflect(-v, n)));
    color = finish(c, 1.0);
}
"""
