// The page: one live session over the WebSocket, what the user says into it, and what comes of it.

import { context, decode, feed, Microphone } from "/page/audio.js";
import { Chart } from "/page/chart.js";
import { Player } from "/page/player.js";

const at = (id) => document.getElementById(id);
const video = at("video");
const player = new Player(video);
const chart = new Chart(at("chart"));
const microphone = new Microphone((pcm) => send(pcm));

let socket = null;
let image = "ada";
let upload = null; // the user's own image
let turn = 0; // of what is being said: another one ends the feeding of this
let spoke = null; // when the first audio of what is being said was sent
let marks = []; // { media, done }: what to do when the video has come there
let silentUntil = 0; // interrupted audio is not played on
let stopped = null; // when the interrupt button was pressed
let frames = 0;

function state(name, text) {
  document.body.dataset.state = name;
  at("state").textContent = text;
}

function problem(text) {
  at("problem").textContent = text;
  at("problem").hidden = !text;
}

function connect() {
  socket?.close();
  state("connecting", "Connecting …");
  problem("");
  at("again").hidden = true;
  chart.reset();
  marks = [];
  const mine = (socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/avatar/stream`));
  mine.binaryType = "arraybuffer";
  mine.onopen = () => {
    mine.send(JSON.stringify({ type: "start", image: upload ? "upload" : image, format: "fmp4", rate_hz: context.sampleRate }));
    if (upload) mine.send(upload);
  };
  mine.onmessage = ({ data }) => {
    if (mine !== socket) return;
    if (data instanceof ArrayBuffer) player.push(data);
    else event(JSON.parse(data));
  };
  mine.onclose = ({ reason }) => {
    if (mine !== socket) return;
    state("ended", "Not connected");
    if (reason && at("problem").hidden) problem(`The session has ended: ${reason}`);
    at("again").hidden = false;
    stopMicrophone();
  };
}

function event(message) {
  const { type } = message;
  if (type === "media") {
    at("video").parentElement.style.aspectRatio = `${message.width} / ${message.height}`;
    player.open(message.mime);
    state("live", "Live");
  } else if (type === "speech") {
    marks.push({ media: message.media_s, done: () => (player.silent = !message.on) });
    if (message.on && spoke !== null) {
      const began = spoke;
      spoke = null;
      marks.push({ media: message.media_s, done: (now) => (at("latency").textContent = `${Math.round(now - began)} ms`) });
    }
  } else if (type === "interrupted") {
    silentUntil = message.media_s;
    if (stopped !== null) {
      const began = stopped;
      stopped = null;
      marks.push({ media: message.media_s, done: (now) => (at("turnaround").textContent = `${Math.round(now - began)} ms`) });
    }
  } else if (type === "stats") {
    chart.stats(message);
    at("block").textContent = message.block_ms === null ? "–" : `${Math.round(message.block_ms)} ms`;
    at("held").textContent = message.held_frames;
  } else if (type === "recovering") {
    state("connecting", "Recovering …");
  } else if (type === "recovered") {
    state("live", "Live");
  } else if ((type === "started" || type === "changed") && message.remark) {
    problem(message.remark);
  } else if (type === "closing") {
    problem("The server is about to end.");
  } else if (type === "error") {
    problem(message.message);
  }
}

function send(pcm) {
  if (socket?.readyState !== WebSocket.OPEN) return;
  spoke ??= performance.now();
  chart.audio(pcm.length / context.sampleRate);
  socket.send(pcm);
}

function control(message) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
}

function interrupt() {
  turn++;
  stopped = performance.now();
  spoke = null;
  video.muted = true;
  silentUntil = Infinity; // until the server says where the new turn begins
  control({ type: "interrupt" });
}

async function say(content) {
  const mine = ++turn;
  await context.resume();
  at("hint").textContent = "";
  problem("");
  try {
    const pcm = await decode(content);
    if (mine !== turn) return;
    control({ type: "interrupt" });
    spoke = null;
    if (await feed(pcm, send, () => mine === turn)) control({ type: "end_segment" });
  } catch {
    problem("This file cannot be played: choose an audio file that the browser knows, such as wav, mp3 or ogg.");
  }
}

function stopMicrophone() {
  if (!microphone.stream) return;
  microphone.stop();
  at("microphone").setAttribute("aria-pressed", "false");
  at("microphone").textContent = "Speak";
  control({ type: "end_segment" });
}

async function toggleMicrophone() {
  if (microphone.stream) return stopMicrophone();
  turn++;
  try {
    await microphone.start();
  } catch (error) {
    return problem(`The microphone cannot be used (${error.name}): allow it in the browser, and open the page as localhost or over https.`);
  }
  spoke = null;
  problem("");
  at("microphone").setAttribute("aria-pressed", "true");
  at("microphone").textContent = "Stop";
  at("mute").checked = true;
  at("hint").textContent = "– unmute with headphones only, or it hears itself";
}

function watch() {
  const now = performance.now();
  while (marks.length && video.currentTime >= marks[0].media) marks.shift().done(now);
  if (video.currentTime >= silentUntil) silentUntil = 0;
  video.muted = at("mute").checked || silentUntil > 0 || !navigator.userActivation.hasBeenActive;
  requestAnimationFrame(watch);
}

function measure() {
  const total = video.getVideoPlaybackQuality().totalVideoFrames;
  at("fps").textContent = total >= frames ? total - frames : "–";
  frames = total;
  at("buffered").textContent = `${Math.round(1000 * Math.max(0, player.ahead))} ms`;
}

function choose(button) {
  for (const other of at("images").children) other.setAttribute("aria-pressed", String(other === button));
}

async function begin() {
  const about = await (await fetch("/v1/avatar")).json();
  image = about.images[0];
  for (const name of about.images) {
    const button = document.createElement("button");
    button.title = name;
    const picture = document.createElement("img");
    picture.src = `/page/images/${name}`;
    picture.alt = name;
    button.append(picture);
    button.onclick = () => {
      upload = null;
      image = name;
      choose(button);
      if (socket?.readyState === WebSocket.OPEN) control({ type: "change", image });
      else connect();
    };
    at("images").append(button);
  }
  choose(at("images").children[0]);
  at("say").hidden = !about.speech;
  connect();
}

at("microphone").onclick = toggleMicrophone;
at("interrupt").onclick = interrupt;
at("again").onclick = connect;
at("file").onchange = async ({ target }) => {
  const [file] = target.files;
  target.value = "";
  if (file) say(await file.arrayBuffer());
};
at("upload").onchange = ({ target }) => {
  [upload] = target.files;
  target.value = "";
  if (!upload) return;
  choose(null);
  connect();
};
at("say").onsubmit = async (submit) => {
  submit.preventDefault();
  const text = at("text").value.trim();
  if (!text) return;
  const reply = await fetch("/v1/speech", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ text }) });
  if (reply.ok) say(await reply.arrayBuffer());
  else problem((await reply.json()).error.message);
};
setInterval(measure, 1000);
watch();
begin().catch(() => state("ended", "The server does not answer"));
