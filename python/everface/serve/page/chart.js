// The timeline: one lane a stage, the last eight seconds, now at the right edge.

const WINDOW_S = 8;
const LANES = ["audio", "made", "ready", "shown"];
const BLOCK_S = 0.48;
const ROWS = 3; // of the pipeline's lane: blocks overlap there

export class Chart {
  constructor(canvas) {
    this.canvas = canvas;
    this.bars = []; // { lane, from, to } in seconds of this page's clock
    this.offset = null; // this page's clock less the server's
    const draw = () => {
      this.draw();
      requestAnimationFrame(draw);
    };
    draw();
  }

  reset() {
    this.bars = [];
    this.offset = null;
  }

  audio(seconds) {
    const now = performance.now() / 1000;
    const last = this.bars.findLast((bar) => bar.lane === "audio");
    if (last && now - last.to < 0.15) last.to = now;
    else this.bars.push({ lane: "audio", from: now - Math.min(seconds, 0.1), to: now });
  }

  stats(stats) {
    const offset = performance.now() / 1000 - stats.time_s;
    this.offset = this.offset === null ? offset : Math.min(offset, this.offset);
    for (const block of stats.blocks) {
      const [sent, made, shown] = [block.sent_s, block.made_s, block.shown_s].map((at) => at + this.offset);
      this.bars.push({ lane: "made", from: sent, to: made, row: block.index % ROWS }, { lane: "ready", from: made, to: shown }, { lane: "shown", from: shown, to: shown + BLOCK_S });
    }
    const oldest = performance.now() / 1000 - 2 * WINDOW_S;
    this.bars = this.bars.filter((bar) => bar.to > oldest);
  }

  draw() {
    const { canvas } = this;
    const pen = canvas.getContext("2d");
    const style = getComputedStyle(document.documentElement);
    const now = performance.now() / 1000;
    const x = (at) => canvas.width * (1 - (now - at) / WINDOW_S);
    const lane = canvas.height / LANES.length;
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.fillStyle = style.getPropertyValue("--line");
    for (let second = 0; second < WINDOW_S; second++) pen.fillRect(x(Math.floor(now) - second), 0, 1, canvas.height);
    for (const bar of this.bars) {
      pen.fillStyle = style.getPropertyValue(`--${bar.lane}`);
      const left = x(bar.from);
      pen.beginPath();
      const height = bar.row === undefined ? 0.56 : 0.56 / ROWS;
      const top = LANES.indexOf(bar.lane) + 0.22 + height * (bar.row ?? 0);
      pen.roundRect(left, lane * top, Math.max(3, x(Math.min(bar.to, now)) - left - 2), lane * height - (bar.row === undefined ? 0 : 3), 5);
      pen.fill();
    }
  }
}
