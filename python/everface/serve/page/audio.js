// Audio of the user's: from the microphone, from a file, or made from text. All of it as 16-bit PCM at the context's rate.

const AHEAD_S = 10; // of a file that is sent before it is spoken

export const context = new AudioContext();

export function toPcm(samples) {
  const pcm = new Int16Array(samples.length);
  for (let i = 0; i < samples.length; i++) pcm[i] = Math.max(-1, Math.min(1, samples[i])) * 32767;
  return pcm;
}

export class Microphone {
  constructor(onPcm) {
    this.onPcm = onPcm;
    this.stream = null;
  }

  async start() {
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true, noiseSuppression: true } });
    await context.resume();
    await context.audioWorklet.addModule("/page/worklet.js");
    this.source = context.createMediaStreamSource(this.stream);
    this.node = new AudioWorkletNode(context, "capture", { numberOfOutputs: 0 });
    this.node.port.onmessage = (event) => this.stream && this.onPcm(toPcm(event.data));
    this.source.connect(this.node);
  }

  stop() {
    this.stream?.getTracks().forEach((track) => track.stop());
    this.source?.disconnect();
    this.stream = null;
  }
}

// Mono samples of an audio file's content, at the context's rate.
export async function decode(content) {
  const audio = await context.decodeAudioData(content);
  const mono = new Float32Array(audio.length);
  for (let c = 0; c < audio.numberOfChannels; c++) {
    const channel = audio.getChannelData(c);
    for (let i = 0; i < mono.length; i++) mono[i] += channel[i] / audio.numberOfChannels;
  }
  return toPcm(mono);
}

// Sends pcm half a second at a time, never far ahead of what is spoken. `wanted` says whether to go on.
export async function feed(pcm, send, wanted) {
  const piece = context.sampleRate / 2;
  const began = performance.now();
  for (let at = 0; at < pcm.length && wanted(); at += piece) {
    while (wanted() && at / context.sampleRate - (performance.now() - began) / 1000 > AHEAD_S) await new Promise((done) => setTimeout(done, 100));
    if (wanted()) send(pcm.subarray(at, at + piece));
  }
  return wanted();
}
