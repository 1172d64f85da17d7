"""A LiveKit agent with a face, in one process: every job opens a session on the same model.

    pip install 'everface[livekit]'
    python examples/livekit_agent.py dev    # LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET in the environment
"""

import asyncio
import os

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, JobExecutorType, cli

from everface import Avatar, best_deployment
from everface.avatar.demo import IMAGE
from everface.integrations.livekit import AvatarSession

server = AgentServer(job_executor_type=JobExecutorType.THREAD)
avatar = Avatar(deployment=best_deployment(live=True))


@server.rtc_session()
async def talk(ctx: JobContext) -> None:
    await ctx.connect()
    voice = AgentSession(stt="deepgram/nova-3", llm="openai/gpt-4.1-mini", tts="cartesia/sonic-3")
    face = AvatarSession(await asyncio.to_thread(avatar.open_live, IMAGE))
    await face.start(voice, ctx.room, livekit_url=os.environ["LIVEKIT_URL"])
    await voice.start(Agent(instructions="You are Ada. Answer in one or two sentences."), room=ctx.room)
    voice.generate_reply(instructions="Greet the user.")


if __name__ == "__main__":
    cli.run_app(server)
