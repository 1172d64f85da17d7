"""The models that the runtime can run. Each registers one import path; `everface.runtime.model` says what must stand there."""

from everface.runtime.registry import register

LIVE_AVATAR, LIVE_TALK = "live-avatar", "livetalk"

register(LIVE_AVATAR, "everface.models.live_avatar.model:LiveAvatar")
register(LIVE_TALK, "everface.models.live_talk.model:LiveTalk")
