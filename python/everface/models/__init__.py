"""The models that the runtime can run. Each registers one import path; `everface.runtime.model` says what must stand there."""

from everface.runtime.registry import register

LIVE_AVATAR = "live-avatar"

register(LIVE_AVATAR, "everface.models.live_avatar.model:LiveAvatar")
