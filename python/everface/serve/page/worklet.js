// Passes the microphone's samples on, 20 ms at a time.
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.size = Math.round(sampleRate / 50);
    this.held = new Float32Array(this.size);
    this.count = 0;
  }

  process([input]) {
    const samples = input[0];
    for (let at = 0; samples && at < samples.length; at++) {
      this.held[this.count++] = samples[at];
      if (this.count === this.size) {
        this.port.postMessage(this.held.slice());
        this.count = 0;
      }
    }
    return true;
  }
}

registerProcessor("capture", Capture);
