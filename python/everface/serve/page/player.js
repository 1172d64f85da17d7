// Plays the fragmented MP4 as it comes, close behind its end.

const START_S = 0.12; // buffered before it plays
const LATE_S = 0.3; // behind the end: play faster until it is close again
const SPEECH_RATE = 1.08;
const SILENT_RATE = 1.5; // nobody hears it, and idle motion may be quick for a moment
const LOST_S = 1.2; // behind the end: jump
const KEPT_S = 10; // of what was played

export class Player {
  constructor(video) {
    this.video = video;
    this.queue = [];
    this.buffer = null;
    this.silent = true; // what plays now
    this.late = false;
  }

  open(mime) {
    this.close();
    const source = (this.source = new MediaSource());
    this.url = URL.createObjectURL(source);
    this.video.src = this.url;
    source.addEventListener("sourceopen", () => {
      if (source !== this.source) return;
      source.duration = Infinity;
      this.buffer = source.addSourceBuffer(mime);
      this.buffer.addEventListener("updateend", () => this.next());
      this.next();
    });
    this.timer = setInterval(() => this.follow(), 40);
  }

  push(piece) {
    this.queue.push(piece);
    this.next();
  }

  next() {
    if (!this.buffer || this.buffer.updating || this.source.readyState !== "open") return;
    const played = this.video.currentTime - KEPT_S;
    if (this.buffer.buffered.length && this.buffer.buffered.start(0) < played - KEPT_S) {
      this.buffer.remove(0, played);
    } else if (this.queue.length) {
      const size = this.queue.reduce((sum, piece) => sum + piece.byteLength, 0);
      const all = new Uint8Array(size);
      let at = 0;
      for (const piece of this.queue) {
        all.set(new Uint8Array(piece), at);
        at += piece.byteLength;
      }
      this.queue = [];
      this.buffer.appendBuffer(all);
    }
  }

  get ahead() {
    const ranges = this.video.buffered;
    return ranges.length ? ranges.end(ranges.length - 1) - this.video.currentTime : 0;
  }

  follow() {
    const ahead = this.ahead;
    if (this.video.paused && ahead > START_S) this.video.play().catch(() => {});
    if (ahead > LOST_S) this.video.currentTime += ahead - START_S;
    this.late = ahead > (this.late ? START_S : LATE_S);
    this.video.playbackRate = !this.late ? 1 : this.silent ? SILENT_RATE : SPEECH_RATE;
  }

  close() {
    clearInterval(this.timer);
    this.queue = [];
    this.silent = true;
    this.buffer = this.source = null;
    if (this.url) URL.revokeObjectURL(this.url);
  }
}
