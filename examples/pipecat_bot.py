"""A Pipecat bot with a face: pip install 'everface[pipecat]' 'pipecat-ai[runner,webrtc]', set OPENAI_API_KEY, run, open the page it prints."""

import asyncio

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.runner.utils import create_transport
from pipecat.services.openai import llm, stt, tts
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

from everface import Avatar, best_deployment
from everface.avatar.demo import IMAGE
from everface.integrations.pipecat import EverfaceVideoService, video_params

avatar = Avatar(deployment=best_deployment(live=True))  # one model, and a session for each visitor
PARAMS = {"webrtc": lambda: TransportParams(audio_in_enabled=True, audio_out_enabled=True, **video_params(*(avatar.live_size() or (256, 256))[::-1]))}


async def bot(arguments) -> None:
    transport = await create_transport(arguments, PARAMS)
    face = EverfaceVideoService(await asyncio.to_thread(avatar.open_live, IMAGE))
    user, assistant = LLMContextAggregatorPair(LLMContext(), user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer()))
    services = [stt.OpenAISTTService(), user, llm.OpenAILLMService(), tts.OpenAITTSService(), face]
    worker = PipelineWorker(Pipeline([transport.input(), *services, transport.output(), assistant]))
    @transport.event_handler("on_client_disconnected")
    async def leave(*_: object) -> None:
        await worker.cancel()
    runner = WorkerRunner(handle_sigint=arguments.handle_sigint)
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    import pipecat.runner.run as development
    development.main()
